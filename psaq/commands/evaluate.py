"""``psaq evaluate``: what a quantised model costs beside its full-precision original."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.choices import TaskName
from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError

PREDICTIONS_FILE = "predictions.png"


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on pictures of which the truth is known, and where a quantised model is given, its agreement with
    the full-precision one and the noise in its answers.

    Classes are scored by top-1 and top-5, pixels by mIoU, boxes by COCO's average precision.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    quantized: Path | None = None
    """A run of ``psaq quantize``, or its file; without it the full-precision model is measured alone."""
    task: TaskName | None = None
    """What the model is for; by default found from the model and its output."""
    images: Path | None = None
    """A folder of pictures. For classes with one subfolder per class: ImageNet's wnids, all or some, or the model's
    classes in order; or a Hugging Face ImageNet data set. For features any folder."""
    annotations: Path | None = None
    """For detection: the pictures' boxes, a JSON file in COCO's format."""
    labels: tuple[int, ...] = ()
    """For boxes and pixels: the number that stands in the annotations or masks for each of the model's labels, in
    order, where it is another."""
    masks: Path | None = None
    """For segmentation: a folder of masks that bear the pictures' names."""
    ignore: int = 255
    """For segmentation: the number that stands for void in the masks."""
    scenes: int = 1000
    """Without a folder, the bundled models are measured on so many held-out rendered scenes."""
    crop_pct: float | None = None
    """For classes: part of the resized image's side that the centre crop keeps; by default the model's own."""
    batch_size: int = 50
    """Images per batch."""
    workers: int = 0
    """Processes that read images beside this one."""
    pictures: int = 4
    """With --out, for pixels and boxes: so many of the pictures are drawn with what both models find in them."""
    out: Path | None = None
    """Also write the configuration, the results and their page into this run folder."""

    scales_out = True

    def check(self) -> None:
        """Raise PsaqError where options do not go together."""
        asked = {"annotations": self.annotations, "masks": self.masks}
        named = [name for name, value in asked.items() if value is not None]
        if len(named) > 1:
            raise PsaqError(
                "--annotations and --masks: the first is for boxes, the second for pixels; give one of them"
            )
        alone = {"labels": (self.labels, not named), "ignore": (self.ignore != 255, self.masks is None)}
        alone["crop-pct"] = (self.crop_pct is not None, bool(named) or self.images is None)
        alone["scenes"] = (self.scenes != type(self).scenes, self.images is not None)
        for name, (given, useless) in alone.items():
            if given and useless:
                raise PsaqError(f"--{name}: does nothing for what is measured here; leave it out")
        if self.pictures < 0:
            raise PsaqError(f"--pictures {self.pictures}: must be at least 0")
        fitting = {"annotations": "detection", "masks": "segmentation"}
        for name in named:
            if self.images is None:
                raise PsaqError(f"--{name}: name the folder of the pictures, too, with --images DIR")
            if self.task not in (None, fitting[name]):
                raise PsaqError(f"--{name}: is for {fitting[name]}, not for --task {self.task}")

    def run(self) -> None:
        from psaq.commands.work.evaluate import run

        run(self)
