"""Wrappers are opened, with a word."""

import pytest
import torch
from torch import nn

from psaq.errors import PsaqError
from psaq.models.wrappers import unwrapped


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
