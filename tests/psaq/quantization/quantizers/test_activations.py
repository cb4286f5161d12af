"""Which quantiser a point gets, and ranges searched for the error they cause."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.quantization.model.points import live_points
from psaq.quantization.pipeline import quantize
from psaq.quantization.quantizers.affine import AffineQuantizer, asymmetric_per_tensor
from psaq.quantization.quantizers.observers import MinMaxObserver, SamplingObserver
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer
from psaq.quantization.recipes import Recipe


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def kinds(qmodel: nn.Module, suffix: str) -> set[type]:
    return {type(point) for name, point in live_points(qmodel).items() if name.endswith(suffix)}


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_softmax_and_gelu_get_quantisers_of_their_own(name, images, request):
    qmodel = quantize(request.getfixturevalue(name), images, Recipe(softmax="log", gelu="split", scope="matmul"))
    assert kinds(qmodel, "attn.probabilities") == {LogQuantizer}
    assert kinds(qmodel, "mlp.fc2.input") == {SplitQuantizer}
    for other in ("fc1.input", "query", "key", "value", "qkv.input", "proj.input", "weight_quantizer"):
        assert kinds(qmodel, other) == {AffineQuantizer}


def test_other_activations_keep_one_range(vit: VisionTransformer, images):
    for block in vit.blocks:
        block.mlp.act = nn.ReLU()
    assert kinds(quantize(vit, images, Recipe(gelu="split")), "fc2.input") == {AffineQuantizer}


def searched(vit: nn.Module, images: Tensor, bits: int) -> tuple[AffineQuantizer, Tensor]:
    """The quantiser that a search gives fc1's input, and what it saw."""
    seen = []
    vit.blocks[0].mlp.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    qmodel = quantize(vit, images, Recipe(8, bits, scope="linear", ranges="search"))
    return qmodel.blocks[0].mlp.fc1.input, seen[-1]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_searched_range_costs_the_layer_less(vit, images, bits):
    with torch.no_grad():
        vit.blocks[0].norm2.weight[0] = 9.0  # a channel far out, which fc1 hardly reads
        vit.blocks[0].mlp.fc1.weight[:, 0] = 1e-3
    quantizer, x = searched(vit, images, bits)
    full = asymmetric_per_tensor(x.min(), x.max(), bits)
    weight = vit.blocks[0].mlp.fc1.weight.double()

    def error(candidate: AffineQuantizer) -> float:
        return ((candidate(x) - x).double() @ weight.T).square().mean().item()

    assert error(quantizer) <= error(full)
    assert bits == 8 or error(quantizer) < 0.5 * error(full)


def test_a_sample_is_the_same_every_time():
    x = torch.randn(3000, 700)
    one, other = SamplingObserver(), SamplingObserver()
    for observer in (one, other):
        assert observer(x) is x
        observer(2 * x)
    assert torch.equal(one.sample, other.sample)
    assert len(one.sample) < 6000
    assert one.high == 2 * x.max()


def test_a_small_input_is_kept_whole():
    observer = SamplingObserver()
    x = torch.randn(2, 5, 7)
    observer(x)
    assert torch.equal(observer.sample, x.flatten(0, 1))
    one_dimension = SamplingObserver()
    one_dimension(torch.arange(3.0))
    assert one_dimension.sample.tolist() == [[0, 1, 2]]


def test_maps_of_several_sizes_are_sampled_value_by_value():
    observer = SamplingObserver()
    for side in (4, 2):
        observer(torch.full((1, 3, side, side), float(side)))
    assert observer.sample.shape == (3 * (16 + 4), 1)
    assert sorted(set(observer.sample.flatten().tolist())) == [2, 4]


def test_calls_with_many_rows_and_with_few_count_by_their_rows():
    """A detector's head sees a pyramid of levels, most places in the first."""
    observer = SamplingObserver()
    for value, rows in ((1.0, 8192), (2.0, 512), (3.0, 16)):
        observer(torch.full((rows, 256), value))
    assert [(observer.sample == value).all(1).sum() for value in (1, 2, 3)] == [512, 512, 16]
    assert [observer.shares[observer.sample[:, 0] == value].sum() for value in (1, 2, 3)] == [8192, 512, 16]


def test_nothing_seen_and_nan_are_named():
    with pytest.raises(PsaqError, match=r"a\.b: no activation"):
        MinMaxObserver().range("a.b")
    observer = SamplingObserver()
    observer(torch.tensor([1.0, torch.inf]))
    with pytest.raises(PsaqError, match=r"a\.b: .*infinite"):
        observer.range("a.b")
