"""Models of boxes and pixels, tiny and untrained, as people build them; and pictures of which the truth is known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from psaq.experiments.architectures import awake
from psaq.models.description import describe

SIDE = 64


class SwinPyramid(nn.Module):
    """timm's Swin as torchvision's detectors take a backbone: maps by name, all of one width."""

    out_channels = 32  # FCOS takes no fewer

    def __init__(self) -> None:
        super().__init__()
        options = {"img_size": SIDE, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)}
        self.swin = timm.create_model("swin_tiny_patch4_window7_224", features_only=True, out_indices=(0, 1), **options)
        self.pyramid = FeaturePyramidNetwork([16, 32], self.out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [each.permute(0, 3, 1, 2) for each in self.swin(images)]
        return self.pyramid({str(index): each for index, each in enumerate(maps)})


def _mask_rcnn() -> nn.Module:
    anchors = AnchorGenerator(((16,), (32,)), ((1.0,),) * 2)
    box, mask = (MultiScaleRoIAlign(["0", "1"], size, 2) for size in (7, 14))
    return MaskRCNN(
        SwinPyramid(), min_size=SIDE, max_size=SIDE, rpn_anchor_generator=anchors, rpn_post_nms_top_n_test=20,
        box_roi_pool=box, box_head=TwoMLPHead(32 * 49, 32), box_predictor=FastRCNNPredictor(32, 4),
        box_score_thresh=0.0, mask_roi_pool=mask, mask_head=MaskRCNNHeads(32, (32,), 1),
        mask_predictor=MaskRCNNPredictor(32, 32, 4),
    )  # fmt: skip


def _fcos() -> nn.Module:
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return FCOS(SwinPyramid(), 4, anchor_generator=anchors, min_size=SIDE, max_size=SIDE, score_thresh=0.0)


def _transformers(name: str, config: Callable) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    return getattr(transformers, name)(config(transformers))


_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
_SWIN = {"image_size": SIDE, "embed_dim": 16, "depths": [1] * 4, "num_heads": [2] * 4, "window_size": 2}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_PIXELS = {
    "UperNet": lambda library: library.UperNetConfig(
        backbone_config=library.SwinConfig(**_SWIN, out_features=_STAGES),
        hidden_size=16, num_labels=4, use_auxiliary_head=False,
    ),
    "Mask2Former": lambda library: library.Mask2FormerConfig(
        backbone_config=library.SwinConfig(**_SWIN, out_features=_STAGES),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, dim_feedforward=32, encoder_feedforward_dim=32, num_queries=5, num_labels=4,
    ),
}  # fmt: skip
MAKES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "Swin Mask R-CNN": ("detection", _mask_rcnn),
    "Swin FCOS": ("detection", _fcos),
    "YOLOS": (
        "detection",
        lambda: _transformers(
            "YolosForObjectDetection",
            lambda library: library.YolosConfig(**_VIT, image_size=[SIDE, SIDE], num_detection_tokens=5, num_labels=3),
        ),
    ),
    "UperNet": ("segmentation", lambda: _transformers("UperNetForSemanticSegmentation", _PIXELS["UperNet"])),
    "Mask2Former": (
        "segmentation",
        lambda: _transformers("Mask2FormerForUniversalSegmentation", _PIXELS["Mask2Former"]),
    ),
}
"""Name → (task, how it is built)."""


def dense_model(name: str) -> nn.Module:
    """One of `MAKES`, of another draw than zero weights."""
    torch.manual_seed(0)
    model = awake(MAKES[name][1]()).eval()
    return describe(model, image_size=SIDE) if MAKES[name][0] == "segmentation" else model


def write_pictures(folder: Path, count: int = 3, size: tuple[int, int] = (60, 48)) -> list[Path]:
    """Pictures of noise, width × height pixels."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    files = [folder / f"{index}.png" for index in range(count)]
    for file in files:
        Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file)
    return files


def write_masks(folder: Path, count: int = 3, size: tuple[int, int] = (60, 48), classes: int = 4) -> list[Path]:
    """Masks of random classes, the first row void."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(1)
    files = [folder / f"{index}.png" for index in range(count)]
    for file in files:
        mask = draw.integers(0, classes, (size[1], size[0]), dtype=np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(file)
    return files


def annotations(count: int = 3, size: tuple[int, int] = (60, 48), each: int = 4) -> dict:
    """Boxes and their outlines in as many pictures, as COCO writes them."""
    draw = np.random.default_rng(2)
    objects = []
    for image in range(count):
        for _ in range(each):
            left, top = draw.uniform(0, size[0] - 12), draw.uniform(0, size[1] - 12)
            width, height = draw.uniform(4, 12, 2)
            right, bottom = left + width, top + height
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image + 1,
                    "category_id": int(draw.integers(1, 4)),
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                }
            )
    images = [
        {"id": index + 1, "file_name": f"{index}.png", "width": size[0], "height": size[1]} for index in range(count)
    ]
    categories = [{"id": index, "name": name} for index, name in ((1, "red"), (2, "white"), (3, "small"))]
    return {"images": images, "annotations": objects, "categories": categories}


def write_annotations(file: Path, content: dict | None = None) -> Path:
    """The file of `annotations`."""
    file.write_text(json.dumps(annotations() if content is None else content))
    return file


def write_models(folder: Path) -> None:
    """``models.py`` as a user's: a function for a detector and one for a segmenter."""
    here = str(Path(__file__).parent)
    builds = "".join(
        f"\n\ndef {name}():\n    return dense_model({make!r})\n"
        for name, make in (("detector", "Swin FCOS"), ("segmenter", "UperNet"))
    )
    imports = f"import sys\nsys.path.insert(0, {here!r})\nfrom dense_makes import dense_model\n"
    (folder / "models.py").write_text(imports + builds)
