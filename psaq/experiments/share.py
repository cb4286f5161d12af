"""How much of a model's work is quantised, seen from outside: by the tensors that reach the framework's products."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from psaq.models.calling import run


@dataclass
class Share:
    """Multiplications of a run, and how many of them have both factors on few levels."""

    multiplications: int = 0
    quantised: int = 0
    others: list[str] = field(default_factory=list)
    """What the products that are not quantised multiply."""

    @property
    def percent(self) -> float:
        return 100 * self.quantised / max(1, self.multiplications)


@torch.no_grad()
def quantised_share(qmodel: nn.Module, images: Tensor, weight_bits: int, activation_bits: int) -> Share:
    """Run a quantised model and look at the factors of every matrix product, convolution and fused attention.

    A product counts as quantised where its activations have at most 2^activation_bits values, and a weight at most
    2^weight_bits in each output channel. Fused attention never does: its probabilities are not seen.
    """
    share = Share()
    with _Watch(share, 2**weight_bits, 2**activation_bits):
        run(qmodel, images)
    return share


class _Watch(TorchDispatchMode):
    def __init__(self, share: Share, weight_levels: int, activation_levels: int):
        super().__init__()
        self.share = share
        self.weight_levels, self.activation_levels = weight_levels, activation_levels

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        name = function.name().split("::")[1].split(".")[0]
        if name in _PRODUCTS:
            for count, few in _PRODUCTS[name](self, args, output):
                self._add(name, count, few, args)
        return output

    def _add(self, name: str, count: int, few: bool, args: tuple[Any, ...]) -> None:
        self.share.multiplications += count
        self.share.quantised += count * few
        if not few:
            shapes = " × ".join(str(tuple(tensor.shape)) for tensor in args if isinstance(tensor, Tensor))
            self.share.others.append(f"{name} {shapes}")

    def few_activations(self, x: Tensor) -> bool:
        return len(x.unique()) <= self.activation_levels

    def few_weights(self, rows: Tensor) -> bool:
        return all(len(row.unique()) <= self.weight_levels for row in rows)


_Counted = Iterator[tuple[int, bool]]


def _linear(watch: _Watch, x: Tensor, columns: Tensor) -> _Counted:
    few = watch.few_activations(x) and (watch.few_weights(columns.T) or watch.few_activations(columns))
    yield x.numel() * columns.shape[1], few


def _pairs(watch: _Watch, left: Tensor, right: Tensor) -> _Counted:
    yield left.numel() * right.shape[-1], watch.few_activations(left) and watch.few_activations(right)


def _convolution(watch: _Watch, args: tuple[Any, ...], output: Tensor) -> _Counted:
    x, weight, transposed, groups = args[0], args[1], args[6], args[8]
    rows = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1) if transposed else weight
    count = (x.numel() if transposed else output.numel()) * weight[0].numel()
    yield count, watch.few_activations(x) and watch.few_weights(rows.flatten(1))


def _attention(_: _Watch, args: tuple[Any, ...], output: Tensor) -> _Counted:
    query, key, value = args[:3]
    scores = query.numel() * key.shape[-2]
    yield scores + scores // query.shape[-1] * value.shape[-1], False


_PRODUCTS: dict[str, Callable[[_Watch, tuple[Any, ...], Any], _Counted]] = {
    "mm": lambda watch, args, _: _linear(watch, args[0], args[1]),
    "addmm": lambda watch, args, _: _linear(watch, args[1], args[2]),
    "bmm": lambda watch, args, _: _pairs(watch, args[0], args[1]),
    "baddbmm": lambda watch, args, _: _pairs(watch, args[1], args[2]),
    "convolution": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_flash_attention": _attention,
}
