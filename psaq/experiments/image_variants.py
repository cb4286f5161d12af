"""Syntheses that differ from the product's in their objective, tried in the image ablation and nowhere else."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from psaq.images.synthetic import SyntheticImages
from psaq.models.features import Features
from psaq.synthesis.loop import Synthesis
from psaq.synthesis.randomness import generator
from psaq.synthesis.state import BatchState

REAL_ENTROPY = -2.5
"""Nats, summed over DeiT-Tiny's 12 blocks: what photographs have. Only an experiment may know it."""


@dataclass
class _Half:
    """A recorder of which only the first or the last half of the blocks is seen."""

    recorder: Any
    last: bool

    @property
    def model(self) -> nn.Module:
        return self.recorder.model

    @property
    def features(self) -> Sequence[Features]:
        features = self.recorder.features
        return features[len(features) // 2 :] if self.last else features[: len(features) // 2]


class LastHalf(Synthesis):
    """Only the entropy of the last half of the blocks counts."""

    def _losses(self, recorder: Any, batch: BatchState, index: int) -> Mapping[str, Tensor]:
        half: Any = _Half(recorder, last=True)
        return super()._losses(half, batch, index)


class FirstHalf(Synthesis):
    """Only the entropy of the first half of the blocks counts."""

    def _losses(self, recorder: Any, batch: BatchState, index: int) -> Mapping[str, Tensor]:
        half: Any = _Half(recorder, last=False)
        return super()._losses(half, batch, index)


class NoEntropy(Synthesis):
    """Class loss and smoothness alone."""

    def _losses(self, recorder: Any, batch: BatchState, index: int) -> Mapping[str, Tensor]:
        losses = super()._losses(recorder, batch, index)
        return {**losses, "loss": losses["loss"] + losses["entropy"]}


class CappedEntropy(Synthesis):
    """Entropy is raised to a photograph's and no further."""

    def _losses(self, recorder: Any, batch: BatchState, index: int) -> Mapping[str, Tensor]:
        losses = super()._losses(recorder, batch, index)
        return {**losses, "loss": losses["loss"] + (losses["entropy"] - REAL_ENTROPY).relu()}


class SoftLabels(Synthesis):
    """A tenth of each label is spread over all classes."""

    def start(self, index: int, size: int) -> BatchState:
        batch = super().start(index, size)
        assert self.classes is not None
        batch.labels = 0.9 * F.one_hot(batch.labels, self.classes).float() + 0.1 / self.classes
        return batch

    def result(self, batches: Sequence[tuple[Tensor, ...]]) -> SyntheticImages:
        return super().result([(pixels, soft.argmax(1), *rest) for pixels, soft, *rest in batches])


class HalfThePatches(Synthesis):
    """Each step sees a random half of the patches, another one each time: it takes about half as long."""

    def finish_batch(self, index: int, bar: Any) -> list[Tensor]:
        with self._dropping():
            return super().finish_batch(index, bar)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        model: Any = self.model  # a timm VisionTransformer: norm_pre is what stands before its blocks
        draw, leading = generator(self.config.seed, 0, "patches"), model.num_prefix_tokens

        def drop(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            (tokens,) = inputs
            patches = torch.randperm(tokens.shape[1] - leading, generator=draw)
            kept = patches[: len(patches) // 2] + leading
            return (torch.cat([tokens[:, :leading], tokens[:, kept]], dim=1),)

        handle = model.norm_pre.register_forward_pre_hook(drop)
        try:
            yield
        finally:
            handle.remove()


OBJECTIVES: dict[str, type[Synthesis]] = {
    "entropy of the last half of the blocks": LastHalf,
    "entropy of the first half of the blocks": FirstHalf,
    "no entropy": NoEntropy,
    "entropy up to a photograph's": CappedEntropy,
    "soft labels": SoftLabels,
    "half the patches at a time": HalfThePatches,
}
"""What is changed → the synthesis that does it."""
