"""Wrappers are opened, with a word."""

import pytest
import torch
from torch import nn

from psaq import Recipe, deploy, load_model, quantize
from psaq.errors import PsaqError
from psaq.models.calling import takes
from psaq.models.data import data_config
from psaq.models.description import describe
from psaq.models.heads import classes_or_none, num_classes
from psaq.models.wrappers import unwrapped
from psaq.tasks.find import task_of


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (nn.DataParallel, "DataParallel"),
        (torch.compile, "OptimizedModule"),
        (lambda model: torch.compile(nn.DataParallel(model)), "OptimizedModule, DataParallel"),
    ],
)
def test_wrappers_are_opened_and_named(vit, capsys, wrap, named):
    assert unwrapped(wrap(vit)) is vit
    assert capsys.readouterr().err == f"psaq: took the VisionTransformer out of {named}\n"


def test_a_distributed_model_is_opened(vit, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert unwrapped(nn.parallel.DistributedDataParallel(vit)) is vit
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("vit", "model 'vit': must be a torch.nn.Module"),
        (None, "model None: must be a torch.nn.Module"),
        (nn.Identity(), "Identity: has no parameters"),
        (nn.Linear(2, 2, device="meta"), "Linear: is on the device meta"),
    ],
)
def test_what_is_no_model_is_refused(model, complaint):
    with pytest.raises(PsaqError, match=complaint):
        unwrapped(model)


def test_a_bare_model_comes_back_without_a_word(vit, capsys):
    assert unwrapped(vit) is vit
    assert capsys.readouterr().err == ""


def test_wrapped_models_are_asked_what_they_are(vit):
    detector = load_model("micro_detector")
    assert (num_classes(nn.DataParallel(vit)), num_classes(torch.compile(vit))) == (10, 10)
    assert (takes(nn.DataParallel(detector)), takes(torch.compile(detector))) == ("list", "list")
    assert classes_or_none(nn.DataParallel(detector)) is None
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    qmodel = quantize(vit, images, Recipe.paper(8, 8, "linear"))
    assert torch.equal(deploy(nn.DataParallel(qmodel))(images), deploy(qmodel)(images))


def test_what_is_told_of_a_wrapped_model_is_the_models():
    body = nn.Sequential(nn.Conv2d(3, 4, 4, 4))
    described = describe(nn.DataParallel(body), image_size=16, takes="list", task="features")
    assert (takes(described), takes(body)) == ("list", "list")
    assert data_config(described) == data_config(body)
    assert task_of(described).name == task_of(nn.DataParallel(body)).name == "features"
