"""Train a bundled model on procedural scenes: ``python -m psaq.training.train --model micro_vit``."""

import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from psaq.errors import PsaqError
from psaq.files import save_tensors, write_json
from psaq.images.scenes import CLASS_NAMES
from psaq.models.micro import micro_architecture, micro_record, micro_weights
from psaq.models.zoo import build_model, named_source
from psaq.program import run_command
from psaq.progress import progress_bar
from psaq.training.first_weights import prepared
from psaq.training.patch_classes import PatchClassifier
from psaq.training.scenes import Batch, TrainingScenes, held_out_accuracy, normalised

HELD_OUT_SEED = 1_000_003
"""The seed of the scenes that the recorded accuracy is measured on."""


# The ViT has to learn what a Swin is built to know, that neighbours belong together.
_STEPS = {"micro_vit": 7000, "micro_swin": 2500}


@dataclass(frozen=True)
class TrainMicro:
    """Train a bundled model from scratch; the same seed and thread count give the same weights."""

    model: str
    """Which one: micro_vit or micro_swin."""
    steps: int | None = None
    """Optimiser steps; as many as the bundled weights took where no number is given."""
    scenes: int = 16_000
    """Scenes rendered for training; every time one is seen again it is mirrored and recoloured at random."""
    batch_size: int = 32
    """Scenes per step."""
    learning_rate: float = 2e-3
    """The peak of AdamW's, reached after the warm-up; a cosine takes it to zero."""
    matrix_learning_rate: float = 0.02
    """The peak of Muon's."""
    warmup_steps: int = 200
    """Steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """Decoupled, of both optimisers."""
    ema_decay: float = 0.998
    """Of the exponential moving average of the weights, which is what is kept."""
    bfloat16: bool = True
    """Mixed precision in the forward pass."""
    seed: int = 0
    """Of the initial weights and the training scenes."""
    threads: int = 1
    """Of the processor."""
    held_out: int = 4000
    """Scenes the result is measured on, of a seed that training never uses."""
    out: Path | None = None
    """Folder for the weights and the record; the package's own where none is named."""

    def run(self) -> None:
        """Train, measure, and write the weights and the record."""
        _check(self)
        torch.set_num_threads(self.threads)
        started = time.perf_counter()
        trained, losses = train(self)
        seconds = time.perf_counter() - started
        accuracy = held_out_accuracy(trained, self.held_out, HELD_OUT_SEED)
        _write(self, trained, {"top1": accuracy, "losses": losses, "training_seconds": round(seconds)})
        print(f"{self.model}: {accuracy:.2f} % of {self.held_out} held-out scenes, {seconds:.0f} s")

    @property
    def total_steps(self) -> int:
        """``steps``, or as many as the bundled weights took."""
        return _STEPS[self.model] if self.steps is None else self.steps


def train(options: TrainMicro) -> tuple[nn.Module, list[float]]:
    """The averaged model after the last step, and the mean training loss of every tenth of the way."""
    torch.manual_seed(options.seed)
    scenes = TrainingScenes.render(options.scenes, options.seed)
    model: Any = prepared(build_model(named_source(options.model)), scenes)
    patch_classifier = PatchClassifier(model.num_features, len(CLASS_NAMES))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
    optimizers = _optimizers(model, patch_classifier, options)
    schedules = [
        LambdaLR(optimizer, lambda step: cosine_schedule(step, options.warmup_steps, options.total_steps))
        for optimizer in optimizers
    ]
    losses: list[float] = []
    with progress_bar(range(options.total_steps), description=f"train {options.model}", unit="step") as bar:
        for _ in bar:
            losses.append(_gradients(model, patch_classifier, scenes.sample(options.batch_size), options))
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            average.update_parameters(model)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return average.module.eval(), tenths(losses)


def _gradients(model: Any, patch_classifier: PatchClassifier, batch: Batch, options: TrainMicro) -> float:
    """Leave the gradients of both losses in the parameters; returns the classification loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
        features = model.forward_features(normalised(batch.images, model))
        logits, patch_logits = model.forward_head(features), patch_classifier(features)
    loss = F.cross_entropy(logits.float(), batch.labels)
    model.zero_grad()
    patch_classifier.zero_grad()
    (loss + patch_classifier.loss(patch_logits.float(), batch.coverage, batch.labels)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss.item()


def _optimizers(
    model: nn.Module, patch_classifier: PatchClassifier, options: TrainMicro
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else.

    Muon (Jordan et al., 2024) makes every update orthogonal.
    """
    hidden = [p for block in _blocks(model) for p in block.parameters() if p.ndim == 2]
    taken = set(map(id, hidden))
    others = [p for p in [*model.parameters(), *patch_classifier.parameters()] if id(p) not in taken]
    return [
        torch.optim.Muon(hidden, lr=options.matrix_learning_rate, weight_decay=options.weight_decay),
        torch.optim.AdamW(others, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.98)),
    ]


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "attn") and hasattr(module, "mlp")]


def cosine_schedule(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then half a cosine to zero: what a learning rate is multiplied by."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def tenths(losses: list[float]) -> list[float]:
    """The mean loss of every tenth of the way."""
    tenth = math.ceil(len(losses) / 10)
    parts = [losses[start : start + tenth] for start in range(0, len(losses), tenth)]
    return [round(sum(part) / len(part), 4) for part in parts]


def _write(options: TrainMicro, model: nn.Module, results: dict[str, Any]) -> None:
    weights, record = micro_weights(options.model), micro_record(options.model)
    if options.out is not None:
        weights, record = options.out / weights.name, options.out / record.name
    save_tensors(weights, model.state_dict(), "weights", {"model": options.model})
    settings = {**asdict(options), "steps": options.total_steps}
    del settings["out"]
    write_json(
        record,
        {
            "training": settings,
            "held_out": {"scenes": options.held_out, "seed": HELD_OUT_SEED},
            "results": results,
            "parameters": sum(p.numel() for p in model.parameters()),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        },
    )


def _check(options: TrainMicro) -> None:
    micro_architecture(options.model)
    for name in ("total_steps", "scenes", "batch_size", "held_out", "threads"):
        if getattr(options, name) < 1:
            option = name.removeprefix("total_").replace("_", "-")
            raise PsaqError(f"--{option}: {getattr(options, name)} is not a positive number")
    if options.seed == HELD_OUT_SEED:
        raise PsaqError(f"--seed: {HELD_OUT_SEED} is the seed of the held-out scenes; take another one")


if __name__ == "__main__":
    run_command(TrainMicro, prog="python -m psaq.training.train")
