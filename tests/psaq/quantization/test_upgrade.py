"""Files of version 0.1: its names and its scale of queries, read to the same bits."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from variants import SWIN, build

from psaq import Recipe, load, quantize, save
from psaq.files import load_tensors, save_tensors
from psaq.models.zoo import data_config
from psaq.quantization.checkpoint import KIND

LATER = ("structure", "sites", "left_out", "dtype")
"""What its headers did not hold."""

RENAMED = {"patch_embed.norm.output": "embedded", "norm.output": "features"}
PIXELS = "patch_embed.proj.pixels."


def name_then(name: str) -> str:
    if name.startswith(PIXELS):
        return name.replace(PIXELS, "patch_embed.pixels.")
    point = next((now for now in RENAMED if name == now or name.startswith(f"{now}.")), None)
    return name if point is None else RENAMED[point] + name.removeprefix(point)


def write_as_then(path: Path, query_factor: float = 1.0) -> None:
    """Rewrite a file as version 0.1 wrote it; a Swin's query was scaled behind its point."""
    tensors, header = load_tensors(path, KIND)
    then = {name_then(name): tensor for name, tensor in tensors.items()}
    for name in then:
        if name.endswith(".attn.query.scale"):
            then[name] = then[name] / query_factor
    kept = {name: value for name, value in header.items() if name not in LATER}
    points = {name_then(name): description for name, description in header["points"].items()}
    save_tensors(path, then, KIND, {**kept, "points": points})


def photographs(model: nn.Module) -> Tensor:
    config = data_config(model)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (config.mean, config.std))
    pixels = torch.rand(4, 3, *config.image_size, generator=torch.Generator().manual_seed(3))
    return (pixels - mean) / std


def small(kind: str) -> nn.Module:
    """Of the Swin every head has 16 channels, so that their factor of 1/4 changes no bit of a scale."""
    torch.manual_seed(0)
    options = {**SWIN, "embed_dim": 32, "num_heads": (2, 4), "num_classes": 7}
    return (
        build("class token") if kind == "vit" else timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    )


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("recipe", [Recipe.paper(4, 8), Recipe.paper(8, 6, "matmul"), Recipe.accurate(4, 8)], ids=str)
@torch.no_grad()
def test_a_file_of_version_0_1_gives_the_same_bits(kind, recipe, tmp_path):
    model = small(kind)
    images = photographs(model)
    qmodel = quantize(model, images, recipe)
    save(qmodel, tmp_path / "q.safetensors")
    before, _ = load_tensors(tmp_path / "q.safetensors", KIND)
    write_as_then(tmp_path / "q.safetensors", 0.25 if kind == "swin" else 1.0)
    then, header = load_tensors(tmp_path / "q.safetensors", KIND)
    assert not header.keys() & set(LATER)
    assert ("patch_embed.pixels.std" in then) == recipe.pixel_grid
    assert ({"embedded", "features"} <= header["points"].keys()) == (kind == "swin" and recipe.scope == "all")
    loaded = load(tmp_path / "q.safetensors", model)
    assert torch.equal(loaded(images), qmodel(images))
    save(loaded, tmp_path / "again.safetensors")
    again, _ = load_tensors(tmp_path / "again.safetensors", KIND)
    assert again.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.items())
