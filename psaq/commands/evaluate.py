"""``psaq evaluate``: what a quantised model costs beside its full-precision original."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.commands.options import ModelOptions
from psaq.commands.quantize import MODEL_FILE
from psaq.distributed import is_first, together
from psaq.errors import PsaqError
from psaq.evaluation import Report, collect_logits, compare
from psaq.images.folder import counted
from psaq.images.imagenet import imagenet
from psaq.images.scenes import SceneDataset
from psaq.models.micro import MICRO_MODELS
from psaq.models.zoo import classes_or_none
from psaq.quantization.checkpoint import load
from psaq.runs import RunFolder

HELD_OUT_SEED = 1_000_033
"""Of scenes that training never saw: it draws from other seeds."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on labelled images: top-1, top-5, and where a quantised model is given, its agreement with
    the full-precision one and the noise in its logits."""

    model: ModelOptions = field(default_factory=ModelOptions)
    quantized: Path | None = None
    """A run of ``psaq quantize``, or its file; without it the full-precision model is measured alone."""
    images: Path | None = None
    """A folder with one subfolder per class: ImageNet's wnids, all or some, or the model's classes in order; or a
    Hugging Face ImageNet data set."""
    scenes: int = 1000
    """Without a folder, the bundled models are measured on so many held-out rendered scenes."""
    crop_pct: float | None = None
    """Part of the resized image's side that the centre crop keeps; by default the model's own."""
    batch_size: int = 50
    """Images per batch."""
    workers: int = 0
    """Processes that read images beside this one."""
    out: Path | None = None
    """Also write the configuration and the results into this run folder."""

    scales_out = True

    def run(self) -> None:
        with together():
            model = self.model.load()
            dataset = self._dataset(model)
            run = None if self.out is None else RunFolder(self.out, "evaluate", {**asdict(self), "out": None})
            quantized = None if self.quantized is None else self._load(self.quantized, model)
        logits, labels = self._logits(model, dataset, "FP")
        has_classes = classes_or_none(model) is not None
        reports = {"fp": compare(logits, labels, has_classes=has_classes)}
        if quantized is not None:
            answers, _ = self._logits(quantized, dataset, "Quantised")
            reports["quantized"] = compare(answers, labels, logits, has_classes)
        passed_over = getattr(dataset, "passed_over", None)
        if is_first():
            self._print(reports)
            if passed_over:
                print(f"{self.images}: {counted(passed_over)}")
        if run is not None:
            results: dict[str, Any] = {name: report.as_dict() for name, report in reports.items()}
            run.finish(results | ({"passed over": dict(passed_over)} if passed_over else {}))

    def _dataset(self, model: nn.Module) -> Dataset[tuple[Tensor, int]]:
        if self.images is not None:
            return imagenet(self.images, model, self.crop_pct)
        if self.model.model in MICRO_MODELS:
            return SceneDataset(self.scenes, HELD_OUT_SEED, model)
        raise PsaqError(f"model {self.model.model!r}: name a folder of labelled images with --images DIR")

    def _load(self, path: Path, model: nn.Module) -> nn.Module:
        file = path / MODEL_FILE if path.is_dir() else path
        return load(file, model).to(next(model.parameters()).device)

    def _logits(self, model: nn.Module, dataset: Dataset[tuple[Tensor, int]], what: str) -> tuple[Tensor, Tensor]:
        return collect_logits(
            model,
            dataset,
            batch_size=self.batch_size,
            workers=self.workers,
            progress=True,
            description=what,
        )

    def _print(self, reports: dict[str, Report]) -> None:
        print(f"{self.model.model}: {reports['fp']}")
        if "quantized" in reports:
            print(f"{self.quantized}: {reports['quantized']}")
