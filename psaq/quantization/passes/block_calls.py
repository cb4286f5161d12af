"""What a block is called with, for any choice of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from psaq.quantization.model.walk import Arguments, Blocks, Walk

_SAME = 0.1
"""What a tensor of one image may differ by, of its norm, where another is computed beside it: levels that flip."""


@dataclass(frozen=True)
class BlockCalls:
    """A block's arguments, positional and named, of all images: windows or tokens stay with their image, and what all
    images share, such as positions, is as it is for each."""

    leaves: list[Any]
    """Of the arguments; what belongs to images as (images, rows, ...)."""
    by_image: list[bool]
    spec: TreeSpec

    def of(self, images: Int[Tensor, " chosen"]) -> Arguments:
        """Those for some of the images, by their places."""
        leaves = (
            leaf[images.to(leaf.device)].flatten(0, 1) if of_images else leaf
            for leaf, of_images in zip(self.leaves, self.by_image, strict=True)
        )
        return tree_unflatten(list(leaves), self.spec)


@torch.no_grad()
def block_calls(walk: Walk, block: str) -> BlockCalls | None:
    """Those of ``block``, which a pass calls once; None where they cannot be told apart by images, as of tokens that
    come before images, or of a mask that differs from batch to batch."""
    rows = _rows(walk.model, walk.batches[0][:1], block)
    flat = [tree_flatten(call) for call in walk.arguments(block)]
    if rows is None or not any(rows) or any(spec != flat[0][1] for _, spec in flat):
        return None
    sizes = [len(batch) for batch in walk.batches]
    calls = zip(*(leaves for leaves, _ in flat), strict=True)
    leaves = [_joined(of_batches, sizes, count) for of_batches, count in zip(calls, rows, strict=True)]
    if any(leaf is _UNFIT for leaf in leaves):
        return None
    return BlockCalls(leaves, [count > 0 for count in rows], flat[0][1])


def by_image(
    tensors: Sequence[Float[Tensor, "rows ..."]], sizes: Sequence[int]
) -> Float[Tensor, "images rows ..."] | None:
    """Tensors of batches of these sizes in one; None where the rows are no whole number, the same for every image."""
    counts = {len(tensor) / size for tensor, size in zip(tensors, sizes, strict=True)}
    if len(counts) > 1 or not min(counts).is_integer():
        return None
    return torch.cat([tensor.unflatten(0, (size, -1)) for tensor, size in zip(tensors, sizes, strict=True)])


class _Unfit:
    """Stands for an argument that is not the same for all images, nor that of each."""


_UNFIT = _Unfit()


def _joined(calls: Sequence[Any], sizes: Sequence[int], rows: int) -> Any:
    if rows:
        joined = by_image(calls, sizes)
        return _UNFIT if joined is None else joined
    return calls[0] if all(_is_same(*pair) for pair in pairwise(calls)) else _UNFIT


def _rows(model: nn.Module, image: Float[Tensor, "1 channels height width"], block: str) -> list[int] | None:
    """How many rows of each argument belong to an image, 0 of what is shared; as one image and two tell."""
    walk = Walk(model, [image, torch.cat([image, image])], Blocks((), (), 0))
    (of_one, spec), (of_two, other) = map(tree_flatten, walk.arguments(block))
    if spec != other:
        return None
    rows = [_rows_of(*pair) for pair in zip(of_one, of_two, strict=True)]
    return None if None in rows else rows  # type: ignore[return-value]


def _rows_of(one: Any, two: Any) -> int | None:
    if _is_same(one, two):
        return 0
    tensors = isinstance(one, Tensor) and isinstance(two, Tensor) and one.ndim == two.ndim > 0
    if not tensors or two.shape != (2 * len(one), *one.shape[1:]):
        return None
    difference = (two[: len(one)].double() - one.double()).norm()
    return len(one) if difference <= _SAME * one.double().norm() else None


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return one is other or (type(one) is type(other) and not isinstance(one, Tensor) and bool(one == other))
