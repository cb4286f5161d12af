"""Sensitivity: each row is a model in which that layer alone is quantised."""

import csv

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq import PsaqError, Recipe, gaussian_images, load_model, quantize, sensitivity
from psaq.quantization.model.points import Point, all_points, live_points
from psaq.tasks.classification import logit_sqnr


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("scope", ["all", "linear"])
@torch.no_grad()
def test_a_row_is_a_model_with_that_layer_alone_quantised(name, scope, images, request):
    model = request.getfixturevalue(name)
    recipe = Recipe.paper(3, 6, scope)
    measured = sensitivity(model, images, recipe, batch_size=4)
    rows = {row.layer: row for row in measured.layers}
    reference = model(images)
    for layer in list(rows)[::5]:
        alone = quantize(model, images, recipe, batch_size=4)
        for point in live_points(alone):
            if (point.rpartition(".")[0] or point) != layer:
                alone.set_submodule(point, Point())
        logits = alone(images)
        assert rows[layer].logit_sqnr == pytest.approx(logit_sqnr(logits, reference), abs=0.01), layer
        agreement = (logits.argmax(1) == reference.argmax(1)).double().mean().item()
        assert rows[layer].agreement == pytest.approx(100 * agreement)


def test_every_layer_has_a_row_with_its_bits(vit, images):
    rows = {row.layer: row for row in sensitivity(vit, images, Recipe.accurate(4, 6)).layers}
    assert list(rows)[:3] == ["patch_embed.proj", "blocks.0.attn", "blocks.0.attn.qkv"]
    assert len(rows) == 2 + 2 * 5
    assert (rows["blocks.1.mlp.fc1"].weights, rows["blocks.1.mlp.fc1"].activations) == (4, 6)
    assert (rows["blocks.1.attn"].weights, rows["blocks.1.attn"].activations) == (None, 6)
    assert (rows["head"].weights, rows["head"].activations) == (8, 8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_model_is_measured(variant):
    measured = sensitivity(build(variant), images_for(variant))
    assert all(row.logit_sqnr > 5 for row in measured.layers)


def test_a_layer_that_becomes_hard_to_quantise_is_seen(vit, images):
    def measured() -> dict[str, float]:
        return {row.layer: row.logit_sqnr for row in sensitivity(vit, images, Recipe.paper(4, 8, "linear")).layers}

    before = measured()
    with torch.no_grad():
        vit.blocks[1].mlp.fc2.weight[:, 0] *= 300  # one input's weights are all that a row's scale sees
        vit.blocks[1].mlp.fc1.weight[0] = 0
        vit.blocks[1].mlp.fc1.bias[0] = 0
    after = measured()
    lost = {layer: before[layer] - after[layer] for layer in before}
    assert max(lost, key=lambda layer: lost[layer]) == "blocks.1.mlp.fc2"
    assert lost["blocks.1.mlp.fc2"] > 6


def test_the_model_is_left_alone_and_a_generator_is_enough(vit, images):
    before, output = {name: t.clone() for name, t in vit.state_dict().items()}, vit(images)
    assert len(sensitivity(vit, (batch for batch in images.split(3))).layers) == 12
    assert torch.equal(vit(images), output)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert not any(isinstance(module, Point) for module in vit.modules())


def test_the_table_is_written_and_drawn(vit, images, tmp_path):
    measured = sensitivity(vit, images)
    measured.write_csv(tmp_path / "s.csv")
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [row.layer for row in measured.layers]
    assert float(rows[3]["logit_sqnr"]) == measured.layers[3].logit_sqnr
    assert rows[1]["weights"] == ""
    assert "W4A8" in str(measured)
    assert isinstance(measured.plot(tmp_path / "s.png"), Figure)
    assert (tmp_path / "s.png").stat().st_size > 1000
    with pytest.raises(PsaqError, match=r"s\.gif"):
        measured.plot(tmp_path / "s.gif")


@pytest.mark.parametrize("name", ["micro_segmenter", "micro_detector"])
def test_without_classes_there_is_no_agreement(name, tmp_path):
    model = load_model(name)
    measured = sensitivity(model, gaussian_images(model, 2))
    assert {row.agreement for row in measured.layers} == {None}
    assert "agreement" not in str(measured)
    assert len(measured.plot().axes) == 1
    measured.write_csv(tmp_path / "s.csv")
    with (tmp_path / "s.csv").open() as file:
        assert {row["agreement"] for row in csv.DictReader(file)} == {""}


def test_an_override_that_fits_no_layer_is_refused(vit: nn.Module, images: Tensor) -> None:
    for pattern in ("block.*", "blocks.7.*", "blocks.0.mlp.fc3"):
        with pytest.raises(PsaqError, match="fits no layer"):
            quantize(vit, images, Recipe(4, 8, overrides=((pattern, 8, 8),)))
        with pytest.raises(PsaqError, match="fits no layer"):
            sensitivity(vit, images, Recipe(4, 8, overrides=((pattern, 8, 8),)))
    qmodel = quantize(vit, images, Recipe(4, 8, overrides=(("*.attn", 8, 5), ("*.fc2", 3, 7))))
    points = all_points(qmodel)
    assert points["head.weight_quantizer"].bits == 4
    assert points["blocks.0.mlp.fc2.weight_quantizer"].bits == 3
    assert points["blocks.1.mlp.fc2.input"].bits == 7
    assert points["blocks.1.attn.scores"].bits == 5
