"""Modules whose numbers must not lose digits when the model around them is cast to half precision."""

from collections.abc import Callable

from torch import Tensor, nn


class KeepsTypes(nn.Module):
    """A module whose tensors follow a model to another device, but never change their type or a bit of their value."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def moved(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(moved, recurse)
