"""Size, channels and normalisation of any model's images."""

import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from psaq.errors import PsaqError
from psaq.models.data import data_config
from psaq.models.description import describe
from psaq.models.heads import classes_or_none, num_classes

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Own(nn.Module):
    def __init__(self, channels=3, **attributes):
        super().__init__()
        self.embed = nn.Conv2d(channels, 8, 4, 4)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.embed(x).mean((2, 3))


class Around(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def _detector(**options):
    backbone = nn.Conv2d(3, 32, 8, 8)
    backbone.out_channels = 32
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return FCOS(backbone, 2, anchor_generator=anchors, min_size=48, max_size=64, **options).eval()


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_timm_model_of_other_channels_has_statistics_for_each(channels):
    config = data_config(timm.create_model("vit_tiny_patch16_224", depth=1, in_chans=channels))
    assert config.channels == channels
    assert config.mean == (0.5,) * channels


def test_one_channel_takes_the_mean_and_more_repeat_the_stated_ones():
    grey, four = (data_config(timm.create_model("deit_tiny_patch16_224", depth=1, in_chans=n)) for n in (1, 4))
    assert grey.mean == pytest.approx((0.449,), abs=1e-3)
    assert four.std == (0.229, 0.224, 0.225, 0.229)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": (64, 96)}, (64, 96)),
        ("swinv2_tiny_window8_256", {"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 16}, (256, 256)),
        ("crossvit_9_240", {"img_size": 120}, (120, 120)),
        ("naflexvit_base_patch16_gap", {"depth": 1, "in_chans": 4}, (384, 384)),
    ],
)
def test_a_timm_model_has_the_size_it_was_built_for(name, options, size):
    config = data_config(timm.create_model(name, **options))
    assert config.image_size == size
    assert config.channels == options.get("in_chans", 3)


def test_torchvision_models_have_imagenets_format():
    vit = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=7)
    swin = torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=5)
    assert (data_config(vit).image_size, data_config(swin).image_size) == ((32, 32), (224, 224))
    assert (data_config(vit).mean, data_config(vit).std) == IMAGENET
    assert (num_classes(vit), num_classes(swin)) == (7, 5)


@pytest.mark.parametrize(
    ("name", "options", "size", "resized", "interpolation"),
    [
        ("swin_t", {}, 224, 232, "bicubic"),
        ("swin_v2_t", {"num_classes": 7}, 256, 260, "bicubic"),
        ("vit_b_16", {}, 224, 256, "bilinear"),
        ("vit_b_16", {"image_size": 384}, 384, 384, "bicubic"),
        ("vit_b_16", {"image_size": 160}, 160, 182, "bilinear"),
        ("maxvit_t", {"num_classes": 5}, 224, 224, "bicubic"),
    ],
)
def test_a_torchvision_classifier_takes_images_as_its_published_weights_do(name, options, size, resized, interpolation):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
    config = data_config(model)
    assert (config.image_size, config.interpolation) == ((size, size), interpolation)
    assert math.floor(size / config.crop_pct) == resized


def test_a_detector_normalises_its_images_itself():
    config = data_config(_detector())
    assert (config.image_size, config.mean, config.std) == ((48, 64), (0.0,) * 3, (1.0,) * 3)
    assert data_config(_detector(fixed_size=(80, 32))).image_size == (32, 80)
    assert classes_or_none(_detector()) is None


@pytest.mark.parametrize(
    ("attributes", "size"),
    [({"image_size": 32}, (32, 32)), ({"img_size": (16, 24)}, (16, 24)), ({"part": Own(image_size=8)}, (8, 8))],
)
def test_an_own_module_is_asked_for_its_size_and_channels(attributes, size):
    config = data_config(Own(channels=4, **attributes))
    assert (config.image_size, config.channels) == (size, 4)


def test_an_own_module_around_a_known_one_takes_its_images(vit):
    config = data_config(Around(vit))
    assert (config.image_size, config.mean) == ((32, 32), (0.5,) * 3)
    assert data_config(Around(_detector())).std == (1.0,) * 3
    model = Around(vit)
    model.image_size = (64, 32)
    assert data_config(model).image_size == (64, 32)


def test_without_a_size_the_way_out_is_named():
    with pytest.raises(PsaqError, match=r"Own: .*psaq\.describe\(model, image_size=…"):
        data_config(Own())


def test_what_is_described_counts():
    model = describe(Own(), image_size=32, mean=(0.1, 0.2, 0.3), std=0.4, takes="list", task="detection")
    config = data_config(model)
    assert (config.image_size, config.mean, config.std) == ((32, 32), (0.1, 0.2, 0.3), (0.4,) * 3)
    assert (model.psaq_takes, model.psaq_task) == ("list", "detection")


def test_what_is_not_described_stays(vit):
    before = data_config(vit)
    describe(vit, task="classification")
    assert not hasattr(vit, "psaq_data")
    describe(vit, mean=0.25)
    assert data_config(vit).mean == (0.25,) * 3
    assert (data_config(vit).image_size, data_config(vit).std) == (before.image_size, before.std)
    describe(vit, image_size=(32, 64))
    assert (data_config(vit).image_size, data_config(vit).mean) == ((32, 64), (0.25,) * 3)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"image_size": 0}, "image_size 0"),
        ({"image_size": (8, 8, 8)}, "image_size"),
        ({"image_size": "large"}, "image_size 'large'"),
        ({"mean": 0.5}, "give image_size as well"),
        ({"image_size": 8, "mean": (0.5,)}, "for 1 channels: the model takes 3"),
        ({"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,)}, "for 1, 3 channels"),
        ({"image_size": 8, "std": 0}, "std 0: must lie above 0"),
        ({"image_size": 8, "mean": float("nan")}, "mean nan: must be finite"),
        ({"image_size": 8, "mean": "red"}, "mean 'red'"),
        ({"takes": "tuple"}, "takes 'tuple': must be one of batch, list, pixel_values"),
        ({"task": "boxes"}, "task 'boxes': must be one of classification, segmentation"),
    ],
)
def test_what_cannot_be_described_is_named(told, message):
    with pytest.raises(PsaqError, match=message):
        describe(Own(), **told)


def test_only_a_module_is_described():
    with pytest.raises(PsaqError, match=r"'micro_vit': describe takes a torch\.nn\.Module"):
        describe("micro_vit", image_size=32)


def test_classes_are_the_heads(vit):
    assert classes_or_none(vit) == num_classes(vit) == 10
    vit.reset_classifier(0)
    assert classes_or_none(vit) is None
    assert classes_or_none(Own(num_classes=3)) == 3
    assert classes_or_none(describe(Own(num_classes=3), task="segmentation")) is None
    with pytest.raises(PsaqError, match="Own: names no number of classes"):
        num_classes(Own())


def test_the_models_images_run_through_it(vit):
    for model in (vit, Own(image_size=16), torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32)):
        config = data_config(model)
        assert model(torch.zeros(1, config.channels, *config.image_size)).ndim == 2


class Hybrid(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.stem = nn.Sequential(*list(torchvision.models.resnet18().children())[:6])
        for name, value in attributes.items():
            setattr(self, name, value)


def test_torchvisions_blocks_say_nothing_of_ones_own_model():
    config = data_config(Hybrid(image_size=64))
    assert (config.image_size, config.channels) == ((64, 64), 3)
    with pytest.raises(PsaqError, match="nothing says what size"):
        data_config(Hybrid())


class Grey(torchvision.models.VisionTransformer):
    def __init__(self):
        super().__init__(32, 8, 1, 2, 16, 32, num_classes=7)
        self.conv_proj = nn.Conv2d(1, 16, 8, 8)


def test_a_class_that_derives_from_torchvisions_takes_its_own_channels():
    assert (data_config(Grey()).image_size, data_config(Grey()).channels) == ((32, 32), 1)
    assert num_classes(Grey()) == 7


def test_a_torchvision_model_without_its_head_has_no_classes():
    vit, swin = Grey(), torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [4, 4], num_classes=5)
    vit.heads, swin.head = nn.Identity(), nn.Identity()
    assert (classes_or_none(vit), classes_or_none(swin)) == (None, None)
    vit.heads = nn.Linear(16, 3)
    assert classes_or_none(vit) == 3
