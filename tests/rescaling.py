"""A small model, converted, and the passes that rescale it as its trace allows; for tests of each alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from psaq.models.trace import Trace
from psaq.quantization.model.conversion import converted, structure
from psaq.quantization.model.heads import PlainAttention, plain_attention
from psaq.quantization.model.streams import Stream, streams
from psaq.quantization.model.structure import NormReaders
from psaq.quantization.passes.folding import equalize_attention, fold_norms, foldable
from psaq.quantization.passes.rotation import rotate_heads, rotate_stream


class Rescaling:
    """``model`` is a copy of what is given, every point off; each method changes it in place."""

    def __init__(self, model: nn.Module, images: Tensor):
        self.model: nn.Module
        self.trace: Trace
        self.model, self.trace = converted(model, images)
        self._image = images[:1]

    def streams(self) -> list[Stream]:
        return streams(self.model, self.trace, structure(self.model))

    def attentions(self) -> list[PlainAttention]:
        return plain_attention(self.model, self.trace, self._image)

    def norms(self) -> list[NormReaders]:
        known = structure(self.model)
        return foldable(self.model, known.norms, known.ends)

    def rotate_streams(self) -> None:
        draw = torch.Generator().manual_seed(0)
        for stream in self.streams():
            rotate_stream(self.model, stream, draw)

    def rotate_heads(self) -> None:
        rotate_heads(self.model, self.attentions())

    def fold(self, batches: Sequence[Tensor], strength: float, centre: bool = False) -> None:
        fold_norms(self.model, self.norms(), list(batches), strength, centre)

    def equalize(self, batches: Sequence[Tensor], centre: bool = False) -> None:
        equalize_attention(self.model, self.attentions(), list(batches), centre)
