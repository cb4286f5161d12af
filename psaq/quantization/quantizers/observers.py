"""What watches a point during calibration."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError

_SAMPLE = 2**17  # values


class MinMaxObserver(nn.Module):
    """The identity; remembers the smallest and the largest value that passed."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if x.numel() == 0:  # a detector has found nothing that its second stage could look at
            return x
        low, high = torch.aminmax(x.float())
        self.low, self.high = torch.minimum(self.low.to(low), low), torch.maximum(self.high.to(high), high)
        return x

    def range(self, name: str) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The observed (low, high). Raises PsaqError, naming the point, unless both are finite."""
        if self.low > self.high:
            raise PsaqError(
                f"{name}: no activation reached this point during calibration; pass more images, and to a "
                "detector of two stages such that it finds something in, or leave the layer in float"
            )
        if not (self.high - self.low).isfinite():
            raise PsaqError(
                f"{name}: activations were NaN or infinite during calibration; check the images and the weights"
            )
        return self.low, self.high


class SamplingObserver(MinMaxObserver):
    """A min-max observer that also keeps rows of what passed, drawn at random but the same ones every time."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Tensor] = []
        self._seen: list[int] = []

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "... channels"]) -> Float[Tensor, "... channels"]:
        if x.numel() == 0:
            return x
        rows = x.flatten(0, -2) if x.ndim > 1 else x[None]
        keep = max(1, _SAMPLE // rows.shape[-1])
        self._seen.append(len(rows))
        if len(rows) > keep:
            draw = torch.Generator().manual_seed(len(self.rows))
            rows = rows[torch.randperm(len(rows), generator=draw)[:keep].to(rows.device)]
        self.rows.append(rows.detach().clone())
        return super().forward(x)

    @property
    def sample(self) -> Float[Tensor, "rows channels"]:
        """The rows kept: of each call at most 131,072 values. Where calls differ in their last axis, that is no
        axis of channels, and every value is a row."""
        return torch.cat([self._by_channel(rows) for rows in self.rows])

    @property
    def shares(self) -> Float[Tensor, " rows"]:
        """How many rows that passed each row of the sample stands for: of a call with few all are kept."""
        return torch.cat(
            [
                rows.new_full((len(self._by_channel(rows)),), seen / len(rows))
                for rows, seen in zip(self.rows, self._seen, strict=True)
            ]
        )

    def _by_channel(self, rows: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
        return rows if len({other.shape[-1] for other in self.rows}) == 1 else rows.reshape(-1, 1)
