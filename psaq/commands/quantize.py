"""``psaq quantize``: a model and a few images, or none at all, to a file of integers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.pictures import load_pictures, normalised_for, picture_files
from psaq.images.synthetic import FILE_NAME, load_images
from psaq.quantization.calibration import quantize
from psaq.quantization.checkpoint import save
from psaq.quantization.layer_errors import layer_sqnr
from psaq.quantization.points import Scope
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.folder import synthesize_into

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Quantize:
    """Quantise a trained vision transformer.

    Without a word on calibration images they are synthesised from the model first; an interrupted synthesis goes on
    where it stopped.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    precision: str = "W8A8"
    """Bits of weights and activations, 2 to 8 each."""
    scope: Scope = "all"
    """Which activations: the authors' points, the inputs of every matrix product, or of the linear layers."""
    faithful: bool = False
    """Keep the flaw of the authors' code: activation ranges without zero lose their far end."""
    images: Path | None = None
    """Calibrate on these: a run of ``psaq synthesize``, or a folder of real pictures."""
    gaussian: bool = False
    """Calibrate on noise."""
    num_images: int = 32
    """How many calibration images; of a folder, the first in sorted path order."""
    crop_pct: float | None = None
    """For real pictures: part of the resized side that the centre crop keeps; by default the model's own."""
    seed: int = 0
    """Of noise or synthesis."""
    out: Path | None = None
    """The run's folder; by default runs/quantize-MODEL-PRECISION."""

    def run(self) -> None:
        recipe = Recipe.paper(*parse_precision(self.precision), self.scope, self.faithful)
        folder = self.out or Path("runs") / f"quantize-{self.model.model}-{self.precision}"
        model = self.model.load()
        run = RunFolder(folder, "quantize", self._config(), self.seed)
        with run.timed("images"):
            images = self._calibration_images(model, folder)
        with run.timed("quantisation"):
            qmodel = quantize(model, images, recipe, progress=True)
        save(qmodel, folder / MODEL_FILE)
        sizes = {"float32": fp32_bytes(model), "quantised": (folder / MODEL_FILE).stat().st_size}
        run.finish({"sizes": sizes, "layer_sqnr": layer_sqnr(qmodel, images)})
        write_report(folder)
        print(f"{folder / MODEL_FILE}: {recipe}, {_megabytes(sizes)}")

    def _config(self) -> Mapping[str, object]:
        return {name: value for name, value in vars(self).items() if name != "out"}

    def _calibration_images(self, model: nn.Module, folder: Path) -> CalibrationImages:
        if self.images is not None and self.gaussian:
            raise PsaqError("--images and --gaussian: both name the calibration images; give one of them")
        if self.gaussian:
            return gaussian_images(model, self.num_images, self.seed)
        if self.images is None:
            return synthesize_into(folder, model, SynthesisConfig(num_images=self.num_images, seed=self.seed))
        if self.images.is_file() or (self.images / FILE_NAME).exists():
            return normalised_for(model, load_images(self.images))[: self.num_images]
        return load_pictures(picture_files([self.images])[: self.num_images], model, crop_pct=self.crop_pct)


def fp32_bytes(model: nn.Module) -> int:
    """What the model's tensors take in float32."""
    return 4 * sum(tensor.numel() for tensor in model.state_dict().values())


def _megabytes(sizes: Mapping[str, int]) -> str:
    part = sizes["float32"] / sizes["quantised"]
    return f"{sizes['quantised'] / 1e6:.2f} MB, 1/{part:.1f} of float32's {sizes['float32'] / 1e6:.2f} MB"
