"""Train a bundled segmenter or detector on scenes: ``python -m psaq.training.train_dense --model micro_detector``.

It starts from the bundled Swin's trained weights. Each step renders scenes that no other has seen.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchvision.ops import masks_to_boxes

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.files import save_tensors, write_json
from psaq.images.scene_truths import SceneBoxes, ScenePixels, scene_masks
from psaq.images.scenes import render_scenes
from psaq.models.micro import MICRO_DENSE, micro_record, micro_weights
from psaq.models.micro.dense import micro_dense
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.progress import progress_bar
from psaq.training.scenes import normalised
from psaq.training.train import HELD_OUT_SEED, cosine_schedule, tenths

Loss = Callable[[Any, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainDense:
    """Train a bundled model of pixels or boxes; the same seed and thread count give the same weights."""

    model: str
    """Which one: micro_segmenter or micro_detector."""
    steps: int = 1500
    """Optimiser steps."""
    batch_size: int = 16
    """Scenes per step."""
    learning_rate: float = 1e-3
    """The peak of AdamW's; a cosine takes it to zero. A fifth of it for what is trained already."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """Decoupled."""
    seed: int = 0
    """Of the initial weights and the training scenes."""
    threads: int = 1
    """Of the processor."""
    held_out: int = 1000
    """Scenes the result is measured on, of a seed that training never uses."""
    out: Path | None = None
    """Folder for the weights and the record; the package's own where none is named."""

    def run(self) -> None:
        """Train, measure, and write the weights and the record."""
        if self.model not in MICRO_DENSE:
            raise PsaqError(f"--model {self.model!r}: must be {' or '.join(MICRO_DENSE)}")
        for name in ("steps", "batch_size", "held_out", "threads"):
            if getattr(self, name) < 1:
                raise PsaqError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not a positive number")
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        model, losses = train(self)
        seconds = round(time.perf_counter() - started)
        # As the file will hold them: half the bytes, and no score that differs.
        stored = {name: tensor.half() for name, tensor in model.state_dict().items()}
        model.load_state_dict(stored)
        truths: Any = ScenePixels if self.model == "micro_segmenter" else SceneBoxes
        report = evaluate(model, truths(self.held_out, HELD_OUT_SEED, model), progress=True)
        self._write(stored, {**report.as_dict(), "losses": losses, "training_seconds": seconds})
        print(f"{self.model}: {report}, {seconds} s")

    def _write(self, tensors: dict[str, Tensor], results: dict[str, Any]) -> None:
        weights, record = micro_weights(self.model), micro_record(self.model)
        if self.out is not None:
            weights, record = self.out / weights.name, self.out / record.name
        save_tensors(weights, tensors, "weights", {"model": self.model})
        versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
        write_json(
            record,
            {
                "training": {name: value for name, value in asdict(self).items() if name != "out"},
                "held_out": {"scenes": self.held_out, "seed": HELD_OUT_SEED},
                "results": results,
                "parameters": sum(tensor.numel() for tensor in tensors.values()),
                "versions": {**versions, "torchvision": torchvision.__version__},
            },
        )


def train(options: TrainDense) -> tuple[nn.Module, list[float]]:
    """The model after the last step, and the mean loss of every tenth of the way."""
    torch.manual_seed(options.seed)
    model: Any = micro_dense(options.model)
    trained, others = _start(model)
    rates = [options.learning_rate / 5, options.learning_rate]
    groups = [{"params": group, "lr": rate} for group, rate in zip((trained, others), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: cosine_schedule(step, options.warmup_steps, options.steps))
    loss_of: Loss = _pixels_loss if options.model == "micro_segmenter" else _boxes_loss
    losses: list[float] = []
    model.train()
    with progress_bar(range(options.steps), description=f"train {options.model}", unit="step") as bar:
        for step in bar:
            first = step * options.batch_size
            scenes = render_scenes(list(range(first, first + options.batch_size)), options.seed)
            loss = loss_of(model, scenes.images, scene_masks(scenes))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return model.eval(), tenths(losses)


def _start(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Give the pyramid the bundled Swin's weights; these, and the others."""
    swin = (model.pyramid if hasattr(model, "pyramid") else model.backbone).swin
    names = swin.state_dict()
    trained_before = load_model("micro_swin").state_dict()
    swin.load_state_dict({name: tensor for name, tensor in trained_before.items() if name in names})
    trained = list(swin.parameters())
    taken = set(map(id, trained))
    return trained, [parameter for parameter in model.parameters() if id(parameter) not in taken]


def _pixels_loss(model: Any, images: Tensor, masks: Tensor) -> Tensor:
    logits = F.interpolate(model(normalised(images, model))["logits"], masks.shape[1:], mode="bilinear")
    return F.cross_entropy(logits, masks)


def _boxes_loss(model: Any, images: Tensor, masks: Tensor) -> Tensor:
    targets = [
        {"boxes": masks_to_boxes(mask[None] > 0) + torch.tensor([0, 0, 1, 1]), "labels": mask.max()[None]}
        for mask in masks
    ]
    return sum(model(list(images), targets).values(), start=torch.zeros(()))


if __name__ == "__main__":
    run_command(TrainDense, prog="python -m psaq.training.train_dense")
