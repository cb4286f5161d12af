"""Accuracy, agreement and noise, counted by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.tasks.classification import Report, collect_logits, compare, logit_sqnr


class Shown(nn.Module):
    """Its logits are the first pixels of the image."""

    def __init__(self, classes: int = 7, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.classes] * self.gain


def dataset_of(logits: list[list[float]], labels: list[int]) -> TensorDataset:
    pixels = torch.zeros(len(logits), 3, 2, 2)
    for image, row in zip(pixels, logits, strict=True):
        image.view(-1)[: len(row)] = torch.tensor(row)
    return TensorDataset(pixels, torch.tensor(labels))


def test_top1_and_top5_are_counted():
    row = [7.0, 6, 5, 4, 3, 2, 1]
    report = evaluate(Shown(), dataset_of([row] * 4, [0, 1, 4, 6]))
    assert report == Report(top1=25.0, top5=75.0, n=4)


def test_with_fewer_than_five_classes_top5_is_all_of_them():
    assert evaluate(Shown(3), dataset_of([[3.0, 2, 1]] * 2, [2, 0])).top5 == 100


def test_of_equal_logits_the_first_counts():
    row = [1.0, 3, 3, 3, 3, 3, 3]
    reports = [compare(torch.tensor([row]), torch.tensor([label]), torch.tensor([row])) for label in range(7)]
    assert [report.top1 for report in reports] == [0, 100, 0, 0, 0, 0, 0]
    assert [report.top5 for report in reports] == [0, 100, 100, 100, 100, 100, 0]
    assert all(report.agreement == 100 for report in reports)


def test_the_reference_may_be_a_model_or_its_logits():
    dataset = dataset_of([[1.0, 2, 0], [3, 0, 1]], [0, 0])
    logits, _ = collect_logits(Shown(3, 2.0), dataset)
    by_model, by_logits = (evaluate(Shown(3), dataset, reference) for reference in (Shown(3, 2.0), logits))
    assert by_model == by_logits
    assert by_model.agreement == 100
    assert by_model.logit_sqnr == pytest.approx(10 * math.log10(4))


def test_agreement_asks_for_the_class_not_for_the_truth():
    logits, reference = (
        torch.tensor([[2.0, 1], [1, 2], [1, 2], [2, 1]]),
        torch.tensor([[2.0, 1], [2, 1], [1, 2], [2, 1]]),
    )
    report = compare(logits, torch.tensor([1, 1, 0, 0]), reference)
    assert (report.top1, report.agreement) == (50, 75)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), noise=st.floats(1e-3, 10))
def test_noise_is_measured_against_the_reference(seed, noise):
    generator = torch.Generator().manual_seed(seed)
    reference, error = torch.randn(2, 20, 7, generator=generator)
    logits = reference + noise * error
    expected = 10 * math.log10(reference.double().pow(2).sum() / (reference.double() - logits.double()).pow(2).sum())
    assert logit_sqnr(logits, reference) == pytest.approx(expected, abs=1e-9)


def test_equal_logits_have_no_noise():
    assert logit_sqnr(torch.ones(2, 3), torch.ones(2, 3)) == math.inf
    assert logit_sqnr(torch.ones(2, 3), torch.zeros(2, 3)) == -math.inf


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_does_not_matter(batch_size):
    dataset = dataset_of(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).tolist(), [0, 1, 2, 3, 4, 0, 1])
    assert evaluate(Shown(5), dataset, batch_size=batch_size) == evaluate(Shown(5), dataset)


def test_workers_give_the_same():
    dataset = dataset_of([[1.0, 2, 0], [3, 0, 1], [0, 0, 5]], [0, 0, 2])
    assert evaluate(Shown(3), dataset, workers=1, batch_size=2) == evaluate(Shown(3), dataset)


def test_a_report_reads_well_and_becomes_json():
    report = Report(top1=76.8333, top5=92.5, n=600, agreement=84.3, logit_sqnr=3.94)
    assert str(report) == "top-1 76.83 %, top-5 92.50 %, agreement 84.3 %, logit SQNR 3.9 dB (600 images)"
    assert report.as_dict() == {"top1": 76.8333, "top5": 92.5, "n": 600, "agreement": 84.3, "logit_sqnr": 3.94}
    assert "agreement" not in str(Report(top1=1.0, top5=5.0, n=3))


class Broken(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise PsaqError(f"image{index}.JPEG: is not an image")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_also_by_a_worker(workers):
    with pytest.raises(PsaqError) as raised:
        evaluate(Shown(), Broken(), workers=workers)
    assert str(raised.value) == "image0.JPEG: is not an image"


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (dataset_of([], []), {}, "empty"),
        (dataset_of([[1.0, 2]], [7]), {}, "classes 0 to 6"),
        (dataset_of([[1.0, 2]], [-1]), {}, "classes 0 to 6"),
        (dataset_of([[math.nan, 2]], [0]), {}, "NaN"),
        (dataset_of([[1.0, 2]], [0]), {"batch_size": 0}, "batch_size 0"),
        (dataset_of([[1.0, 2]], [0]), {"workers": -1}, "workers -1"),
        (dataset_of([[1.0, 2]], [0]), {"reference": Shown(5)}, "(1, 7)"),
    ],
)
def test_bad_input_is_named(dataset, options, message):
    with pytest.raises(PsaqError) as raised:
        evaluate(Shown(), dataset, **options)
    assert message in str(raised.value)


def test_images_alone_are_compared_without_labels(vit):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = evaluate(vit, images, reference=vit)
    assert (alone.n, alone.agreement, alone.logit_sqnr) == (6, 100.0, math.inf)
    assert math.isnan(alone.top1)
    assert str(alone) == "agreement 100.0 %, SQNR inf dB (6 images)"
    with pytest.raises(PsaqError, match="at least one"):
        evaluate(vit, images[:0])


@pytest.mark.parametrize("dataset", [None, iter(()), [torch.zeros(1, 3, 32, 32)], [(torch.zeros(3, 32, 32), 0, 0)]])
def test_what_is_no_dataset_is_refused(vit, dataset):
    with pytest.raises(PsaqError, match="dataset"):
        evaluate(vit, dataset)


@pytest.mark.parametrize("labels", [torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0])], ids=["(1,)", "float"])
def test_what_is_no_class_index_is_refused(labels: Tensor) -> None:
    dataset = TensorDataset(torch.zeros(2, 3, 2, 2), labels)
    with pytest.raises(PsaqError, match=r"knows a Tensor of shape \(.*\) of each picture.*give \(image, class index\)"):
        evaluate(Shown(), dataset)
