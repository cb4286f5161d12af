"""The accurate recipe on a GPU: run `pytest tests/gpu` where there is one."""

from pathlib import Path

import pytest
import torch

from psaq import Recipe, gaussian_images, load, load_model, quantize, save
from psaq.tasks.classification import logit_sqnr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

EVERY_PART = {"ranges": "search", "fold": 0.5, "error_correction": 0.5, "distillation_steps": 2}


@torch.no_grad()
@pytest.mark.parametrize("name", ["micro_vit", "micro_swin"])
@pytest.mark.parametrize("parts", [{}, EVERY_PART], ids=["as it is", "every part"])
def test_a_model_is_quantised_and_loaded_where_it_is(name: str, parts: dict[str, float], tmp_path: Path) -> None:
    model = load_model(name).cuda()
    images = gaussian_images(model, 8).cuda()
    qmodel = quantize(model, images, Recipe.accurate(8, 8, **parts))
    assert {tensor.device.type for tensor in qmodel.state_dict().values()} == {"cuda"}
    assert logit_sqnr(qmodel(images), model(images)) > 20
    save(qmodel, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors", model)(images), qmodel(images))
