"""Train a bundled model on procedural scenes: ``python -m psaq.models.micro.train --model micro_vit``."""

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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from psaq.errors import PsaqError
from psaq.files import save_tensors, write_json
from psaq.images.scenes import CLASS_NAMES
from psaq.models.micro import micro_architecture, micro_record, micro_weights
from psaq.models.micro.patch_classes import PatchClassifier
from psaq.models.micro.training_scenes import TrainingScenes, held_out_accuracy, normalised
from psaq.models.zoo import build_model, named_source
from psaq.progress import progress_bar

HELD_OUT_SEED = 1_000_003
"""The seed of the scenes that the recorded accuracy is measured on."""


@dataclass(frozen=True)
class TrainMicro:
    """Train a bundled model from scratch. The same seed and thread count give the same weights."""

    model: str
    """Which one: micro_vit or micro_swin."""
    steps: int = 10_000
    """Optimiser steps."""
    scenes: int = 40_000
    """Scenes rendered for training; every time one is seen again it is turned or mirrored at random."""
    batch_size: int = 32
    """Scenes per step."""
    learning_rate: float = 1e-3
    """The peak, reached after the warm-up; a cosine takes it to zero."""
    warmup_steps: int = 200
    """Steps in which the learning rate rises."""
    weight_decay: float = 0.05
    """Decoupled weight decay (AdamW), on matrices only."""
    ema_decay: float = 0.998
    """Of the exponential moving average of the weights, which is what is kept."""
    bfloat16: bool = True
    """Mixed precision in the forward pass."""
    seed: int = 0
    """Of the initial weights and the training scenes."""
    held_out: int = 4000
    """Scenes the result is measured on, of a seed that training never uses."""
    out: Path | None = None
    """Folder for the weights and the record; the package's own where none is named."""

    def run(self) -> None:
        """Train, measure, and write the weights and the record."""
        _check(self)
        started = time.perf_counter()
        trained, losses = train(self)
        seconds = time.perf_counter() - started
        accuracy = held_out_accuracy(trained, self.held_out, HELD_OUT_SEED)
        _write(self, trained, {"top1": accuracy, "losses": losses, "training_seconds": round(seconds)})
        print(f"{self.model}: {accuracy:.2f} % of {self.held_out} held-out scenes, {seconds:.0f} s")


def train(options: TrainMicro) -> tuple[nn.Module, list[float]]:
    """The averaged model after ``options.steps``, and the mean training loss of every tenth of the way."""
    torch.manual_seed(options.seed)
    model: Any = _prepared(build_model(named_source(options.model)))
    patch_classifier = PatchClassifier(model.num_features, len(CLASS_NAMES))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
    optimizer = _optimizer(nn.ModuleList([model, patch_classifier]), options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, options))
    scenes = TrainingScenes.render(options.scenes, options.seed)
    losses: list[float] = []
    with progress_bar(range(options.steps), description=f"train {options.model}", unit="step") as bar:
        for _ in bar:
            losses.append(_step(model, patch_classifier, optimizer, scenes, options))
            schedule.step()
            average.update_parameters(model)
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    return average.module.eval(), _tenths(losses)


def _step(
    model: Any,
    patch_classifier: PatchClassifier,
    optimizer: torch.optim.Optimizer,
    scenes: TrainingScenes,
    options: TrainMicro,
) -> float:
    """One update; returns the classification loss."""
    batch = scenes.sample(options.batch_size)
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
        features = model.forward_features(normalised(batch.images, model))
        logits, patch_logits = model.forward_head(features), patch_classifier(features)
    loss = F.cross_entropy(logits.float(), batch.labels)
    optimizer.zero_grad()
    (loss + patch_classifier.loss(patch_logits.float(), batch.coverage, batch.labels)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _prepared(model: nn.Module) -> nn.Module:
    """The model as it trains fast when it is this small, on a CPU.

    Weights scale with their fan-in: timm's fixed 0.02 suits layers ten times as wide. Attention is spelt out:
    the backward pass of the fused kernel takes twice as long.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return model.train()


def _optimizer(trained: nn.Module, options: TrainMicro) -> torch.optim.Optimizer:
    decayed = [p for p in trained.parameters() if p.ndim > 1]
    plain = [p for p in trained.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.98))


def _schedule(step: int, options: TrainMicro) -> float:
    """Linear warm-up, then half a cosine."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def _tenths(losses: list[float]) -> list[float]:
    tenth = math.ceil(len(losses) / 10)
    parts = [losses[start : start + tenth] for start in range(0, len(losses), tenth)]
    return [round(sum(part) / len(part), 4) for part in parts]


def _write(options: TrainMicro, model: nn.Module, results: dict[str, Any]) -> None:
    weights, record = micro_weights(options.model), micro_record(options.model)
    if options.out is not None:
        weights, record = options.out / weights.name, options.out / record.name
    save_tensors(weights, model.state_dict(), "weights", {"model": options.model})
    settings = {name: value for name, value in asdict(options).items() if name != "out"}
    write_json(
        record,
        {
            "training": {**settings, "threads": torch.get_num_threads()},
            "held_out": {"scenes": options.held_out, "seed": HELD_OUT_SEED},
            "results": results,
            "parameters": sum(p.numel() for p in model.parameters()),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        },
    )


def _check(options: TrainMicro) -> None:
    micro_architecture(options.model)
    for name in ("steps", "scenes", "batch_size", "held_out"):
        if getattr(options, name) < 1:
            raise PsaqError(f"--{name.replace('_', '-')}: {getattr(options, name)} is not a positive number")
    if options.seed == HELD_OUT_SEED:
        raise PsaqError(f"--seed: {HELD_OUT_SEED} is the seed of the held-out scenes; take another one")


if __name__ == "__main__":
    from psaq.cli import run_command

    run_command(TrainMicro)
