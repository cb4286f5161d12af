"""Rotating features so that no channel stands out; nothing of it is left at run time.

A few channels of a transformer are far larger than the others, and one range has to hold them all. An orthogonal
matrix Q spreads them evenly: what writes to the residual stream writes x Q, what reads from it has weights W Q
(QuaRot: Ashkboos et al. 2024). Between them stand LayerNorms, which take away the mean of the channels. Q leaves that
mean as it is, so that they do not notice.
"""

import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.model.heads import PlainAttention, Projection
from psaq.quantization.model.layers import add_to_bias
from psaq.quantization.model.streams import Reader, Stream, Writer

Rotation = Float[Tensor, "channels channels"]


@torch.no_grad()
def rotate_stream(model: nn.Module, stream: Stream, draw: torch.Generator) -> None:
    """Rotate a residual stream; the answer stays. Scale and offset of its norms move into the layers behind them."""
    rotation = mean_keeping_rotation(stream.channels, draw)
    for name in stream.tokens:
        token = model.get_parameter(name)
        token.copy_(token.double() @ rotation.to(token.device))
    for writer in stream.writers:
        _rotate_output(model, writer, rotation)
    for reader in stream.readers:
        _rotate_input(model, reader, rotation)


@torch.no_grad()
def rotate_heads(model: nn.Module, attentions: list[PlainAttention]) -> None:
    """Rotate query and key of each head alike, which their product does not see, and value, which the output
    projection undoes. Patch features averaged over heads change."""
    draw = torch.Generator().manual_seed(0)
    for attention in attentions:
        heads, channels = attention.value.channels.shape
        scores, value = (_per_head(heads, channels, draw) for _ in range(2))
        for projection, rotation in ((attention.query, scores), (attention.key, scores), (attention.value, value)):
            _rotate_rows(model, projection, rotation)
        layer = model.get_submodule(attention.output.layer)
        weight, chosen = layer.get_parameter("weight"), attention.output.channels.flatten()
        columns = weight.double()[:, chosen].unflatten(1, attention.output.channels.shape)
        weight[:, chosen] = torch.einsum("ohc,hcr->ohr", columns, value.to(weight.device)).flatten(1).to(weight)


def mean_keeping_rotation(channels: int, draw: torch.Generator) -> Rotation:
    """Orthogonal, at random but that its rows and columns sum to 1: x Q has the mean of x. Float64."""
    cosines = _cosines(channels)
    inner = torch.eye(channels, dtype=torch.float64)
    inner[1:, 1:] = random_rotation(channels - 1, draw)
    return cosines.T @ inner @ cosines


def random_rotation(channels: int, draw: torch.Generator) -> Rotation:
    """Orthogonal, all directions being equally likely. Float64."""
    orthogonal, triangular = torch.linalg.qr(torch.randn(channels, channels, generator=draw, dtype=torch.float64))
    return orthogonal * triangular.diagonal().sign()


def _cosines(channels: int) -> Rotation:
    """An orthonormal basis whose first row is constant (the discrete cosine transform)."""
    index = torch.arange(channels, dtype=torch.float64)
    rows = torch.cos(math.pi * (index + 0.5) * index[:, None] / channels) * math.sqrt(2 / channels)
    rows[0] = 1 / math.sqrt(channels)
    return rows


def _per_head(heads: int, channels: int, draw: torch.Generator) -> Float[Tensor, "heads channels channels"]:
    return torch.stack([random_rotation(channels, draw) for _ in range(heads)])


def _rotate_rows(model: nn.Module, projection: Projection, rotation: Float[Tensor, "heads channels channels"]) -> None:
    chosen, layer = projection.channels.flatten(), cast(Any, model.get_submodule(projection.layer))
    weight = layer.get_parameter("weight")
    rotation = rotation.to(weight.device)
    rows = weight.double()[chosen].unflatten(0, projection.channels.shape)
    weight[chosen] = torch.einsum("hcr,hci->hri", rotation, rows).flatten(0, 1).to(weight)
    if layer.bias is not None:
        offsets = layer.bias.double()[chosen].view(projection.channels.shape)
        layer.bias[chosen] = torch.einsum("hcr,hc->hr", rotation, offsets).flatten().to(layer.bias)


def _rotate_output(model: nn.Module, writer: Writer, rotation: Rotation) -> None:
    layer: Any = model.get_submodule(writer.layer)
    weight = layer.get_parameter("weight")
    scale = torch.ones(len(rotation)).to(weight)
    if writer.scale is not None:
        gamma = model.get_parameter(writer.scale)
        scale = gamma.clone()
        gamma.fill_(1)
    turned = (scale.double()[:, None] * rotation.to(scale.device)).T
    weight.copy_((turned @ weight.flatten(1).double()).view_as(weight))
    if layer.bias is not None:
        layer.bias.copy_(turned @ layer.bias.double())


def _rotate_input(model: nn.Module, reader: Reader, rotation: Rotation) -> None:
    norm = model.get_submodule(reader.norm)
    scale, offset = getattr(norm, "weight", None), getattr(norm, "bias", None)
    for name in reader.layers:
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight")
        if offset is not None:
            add_to_bias(layer, weight.double() @ offset.double())
        columns = weight.double() if scale is None else weight.double() * scale.double()
        # A norm over several positions side by side has each of them rotated.
        columns = columns.unflatten(1, (-1, len(rotation))) @ rotation.to(columns.device)
        weight.copy_(columns.flatten(1))
    if scale is not None:
        scale.fill_(1)
    if offset is not None:
        offset.zero_()
