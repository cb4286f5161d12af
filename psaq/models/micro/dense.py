"""The bundled models of boxes and pixels: heads on the bundled Swin, trained on procedural scenes.

`psaq.training.train_dense` trains them; the JSON beside each weight file records how, and what was reached.
"""

from collections.abc import Callable
from typing import Any

import timm
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from psaq.models.micro import MICRO_DENSE, micro_architecture
from psaq.rendering.painter import CLASS_NAMES, SIZE

WIDTH = 32  # FCOS takes no fewer
CLASSES = 1 + len(CLASS_NAMES)
"""0 is the background's."""
_SMALLEST_SCORE = 0.05

Images = Float[Tensor, "images 3 64 64"]


class Pyramid(nn.Module):
    """The bundled Swin's two maps, at strides of 4 and 8 pixels, the coarse one added to the fine one."""

    out_channels = WIDTH

    def __init__(self) -> None:
        super().__init__()
        architecture, options = micro_architecture("micro_swin")
        self.swin: Any = timm.create_model(architecture, pretrained=False, **{**options, "num_classes": 0})
        fine, coarse = self.swin.embed_dim, self.swin.num_features
        self.fine, self.coarse = nn.Conv2d(fine, WIDTH, 1), nn.Conv2d(coarse, WIDTH, 1)
        self.smooth = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, images: Images) -> dict[str, Float[Tensor, "images 32 rows columns"]]:
        fine, coarse = self.swin.forward_intermediates(images, intermediates_only=True)
        coarse = self.coarse(coarse)
        fine = self.fine(fine) + F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return {"4": self.smooth(fine), "8": coarse}


class MicroSegmenter(nn.Module):
    """Logits of every class for each square of 4 × 4 pixels, in a dictionary as transformers' segmenters give them."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.head = nn.Sequential(
            nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(WIDTH, CLASSES, 1)
        )

    def forward(self, images: Images) -> dict[str, Float[Tensor, "images classes rows columns"]]:
        return {"logits": self.head(self.pyramid(images)["4"])}


def micro_detector() -> nn.Module:
    """torchvision's FCOS (Tian et al., 2019) with fresh weights. It takes images in [0, 1] and normalises them."""
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    mean, std = ([value] * 3 for value in (0.5, 0.25))
    return FCOS(
        Pyramid(),
        CLASSES,
        fixed_size=(SIZE, SIZE),  # the Swin takes no other
        image_mean=mean,
        image_std=std,
        anchor_generator=anchors,
        score_thresh=_SMALLEST_SCORE,
    )


_BUILDERS: dict[str, Callable[[], nn.Module]] = dict(zip(MICRO_DENSE, (MicroSegmenter, micro_detector), strict=True))


def micro_dense(name: str) -> nn.Module:
    """A bundled model of pixels or boxes with fresh weights."""
    return _BUILDERS[name]()
