"""Images on the grid of their own levels: the logits stay, and 8 bits lose nothing of the image."""

import pytest
import timm
import torch
from dense_makes import SIDE, dense_model
from sqnr import usual_sqnr
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq import Recipe, deploy, load, quantize, save
from psaq.models.zoo import data_config
from psaq.quantization.model.conversion import converted, structure
from psaq.quantization.model.layers import PIXELS
from psaq.quantization.model.points import live_points
from psaq.quantization.model.streams import streams
from psaq.quantization.passes.pixels import Pixels, read_pixels
from psaq.quantization.pipeline import left_out
from psaq.tasks.classification import logit_sqnr

GRID = Recipe(pixel_grid=True, scope="matmul")


def photographs(model: nn.Module, size: int = 32, count: int = 4) -> Tensor:
    """Images of 8 bits a colour, black and white among them, normalised as the model wants it."""
    config = data_config(model)
    levels = torch.randint(0, 256, (count, config.channels, size, size), generator=torch.Generator().manual_seed(2))
    levels[0, :, 0], levels[0, :, 1] = 0, 255
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (config.mean, config.std))
    return (levels / 255 - mean) / std


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **{**size, **options}).eval()


def input_error(qmodel: nn.Module, images: Tensor) -> float:
    proj = qmodel.patch_embed.proj
    pixels = proj.pixels(images) if reads_pixels(qmodel) else images
    return (proj.input(pixels) - pixels).abs().max().item()


def reads_pixels(qmodel: nn.Module) -> bool:
    return PIXELS in qmodel.patch_embed.proj._modules


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_logits_stay(variant):
    model = build(variant)
    images = photographs(model, images_for(variant).shape[-1])
    model, trace = converted(model, images)
    before = model(images)
    assert read_pixels(model, trace, [images[:1], images[1:]]) is None
    assert reads_pixels(model)
    assert logit_sqnr(model(images), before) > 90


@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)])
def test_eight_bits_hold_an_image_without_error_and_fewer_do_not(mean):
    model = vit()
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": mean, "std": (0.229, 0.224, 0.225)}
    images = photographs(model)
    assert input_error(quantize(model, images, GRID), images) < 1e-6
    assert input_error(quantize(model, images, Recipe.paper()), images) > 1e-3
    assert input_error(quantize(model, images, Recipe(8, 7, pixel_grid=True)), images) > 1e-3


def test_the_range_is_that_of_all_images_not_of_those_seen():
    model = vit()
    images = photographs(model)
    dark = images.clamp(max=0)
    assert input_error(quantize(model, dark, Recipe.accurate()), images) < 1e-6


def assert_left_alone(model: nn.Module, images: Tensor) -> None:
    model, trace = converted(model, images)
    before = model(images)
    assert read_pixels(model, trace, [images]) == "no single convolution without padding reads the images"
    assert not reads_pixels(model)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("size", [32, 36])
@torch.no_grad()
def test_images_that_may_be_padded_are_left_alone(size):
    """Zeros at an image's edge are no black; whether there are any depends on the image."""
    model = vit(dynamic_img_pad=True, dynamic_img_size=True)
    assert_left_alone(model, photographs(model, size))


@pytest.mark.parametrize("convolution", [{"padding": (1, 1)}, {"groups": 3}, {"padding": "same"}], ids=str)
@torch.no_grad()
def test_another_convolution_is_left_alone(convolution):
    model = vit()
    side, stride = (7, 1) if convolution.get("padding") == "same" else (8, 8)
    model.patch_embed.proj = nn.Conv2d(3, 48, side, stride, **convolution)
    images = photographs(model)
    patches = model.patch_embed(images).shape[1]
    model.pos_embed = nn.Parameter(torch.randn(1, 1 + patches, 48, generator=torch.Generator().manual_seed(0)))
    assert_left_alone(model, images)


@pytest.mark.parametrize("channels", [1, 4])
@torch.no_grad()
def test_images_of_other_channels_are_read_by_their_own_normalisation(channels):
    model = vit(in_chans=channels)
    images = photographs(model)
    assert images.shape[1] == channels
    qmodel = quantize(model, images, GRID)
    assert reads_pixels(qmodel)
    assert input_error(qmodel, images) < 1e-6
    assert logit_sqnr(qmodel(images), model(images)) > 20


@pytest.mark.parametrize(("level", "reads"), [(1.02, False), (-0.02, False), (1.003, True), (-0.003, True)])
def test_one_pixel_beyond_black_or_white_by_more_than_a_level_makes_it_no_photograph(level, reads):
    model = vit()
    images = photographs(model)
    config = data_config(model)
    images[-1, 1, 5, 5] = (level - config.mean[1]) / config.std[1]
    model, trace = converted(model, images)
    why = read_pixels(model, trace, [images[:-1], images[-1:]])
    assert reads_pixels(model) == reads
    assert why == (None if reads else "the calibration images reach beyond black and white")


@pytest.mark.parametrize("missing", [{"mean": None}, {"std": None}, {"mean": 0.5}, {"std": (0.0, 0.2, 0.2)}], ids=str)
def test_a_model_that_does_not_say_how_its_images_are_normalised_is_left_alone(missing):
    model = vit()
    images = photographs(model).clamp(0, 1)  # by ImageNet's mean and deviation these would be photographs, too
    model.pretrained_cfg = {**model.pretrained_cfg, **missing}
    qmodel = quantize(model, images, Recipe.accurate())
    assert not reads_pixels(qmodel)
    assert left_out(qmodel)["pixel grid"] == "the model does not state its images' normalisation"


@torch.no_grad()
def test_fewer_bits_keep_the_range_that_was_observed():
    model = vit()
    images = photographs(model).clamp(-0.5, 0.5)
    coarse = quantize(model, images, Recipe(8, 4, pixel_grid=True))
    limits = coarse.patch_embed.proj.input(torch.tensor([-9.0, 9.0]))
    seen = coarse.patch_embed.proj.pixels(images)
    assert abs(limits - torch.stack([seen.min(), seen.max()])).max() < 0.02


@pytest.mark.parametrize("variant", ["class token", "swin"])
def test_streams_are_rotated_all_the_same(variant):
    model = build(variant)
    images = photographs(model)
    model, trace = converted(model, images)
    found = len(streams(model, trace, structure(model)))
    read_pixels(model, trace, [images])
    assert reads_pixels(model)
    assert len(streams(model, trace, structure(model))) == found == 1


@pytest.mark.parametrize("recipe", [GRID, Recipe.accurate(), Recipe.accurate(4, 8, "linear")], ids=str)
@torch.no_grad()
def test_it_deploys_and_comes_back_from_disk_bit_for_bit(recipe, tmp_path):
    model = vit()
    images = photographs(model)
    qmodel = quantize(model, images, recipe)
    assert "patch_embed.proj.input" in live_points(qmodel)
    save(qmodel, tmp_path / "model.safetensors")
    restored = load(tmp_path / "model.safetensors", model=vit())
    assert torch.equal(restored(images), qmodel(images))
    assert torch.equal(deploy(restored, torch.float32)(images), deploy(qmodel, torch.float32)(images))
    assert logit_sqnr(deploy(qmodel, torch.float32, "exact")(images), qmodel(images)) > 60
    assert "undoes the normalisation" in repr(deploy(qmodel))


@pytest.mark.parametrize("recipe", [GRID, Recipe.accurate(), Recipe.accurate(4, 8, "linear")], ids=str)
@torch.no_grad()
def test_onnx_undoes_the_normalisation(recipe, tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from psaq.quantization.deployment.onnx_graph import export_onnx

    model = vit()
    images = photographs(model)
    qmodel = quantize(model, images, recipe)
    export_onnx(qmodel, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    assert usual_sqnr(logits, qmodel(images)) > 40


def test_half_precision_does_not_move_the_grid():
    pixels = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).bfloat16()
    assert pixels.std.dtype == torch.float32
    assert pixels(torch.zeros(1, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@torch.no_grad()
def test_a_detector_that_normalises_its_images_itself_reads_their_pixels():
    model = dense_model("Swin FCOS")
    levels = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    images = levels / 255
    layers, trace = converted(model, images)
    before = layers(images)
    assert read_pixels(layers, trace, [images]) is None
    assert (layers(images)[0]["boxes"] - before[0]["boxes"]).abs().max() < 1e-3  # of a picture 64 pixels wide
    conv = quantize(model, images, GRID).backbone.swin.patch_embed.proj
    normalised = model.transform(list(images))[0].tensors
    assert (conv.input(pixels := conv.pixels(normalised)) - pixels).abs().max() < 1e-6
    assert left_out(quantize(model, images * 2, GRID))["pixel grid"].startswith("the calibration images reach beyond")
