"""Rotating features so that no channel stands out; nothing of it is left at run time.

A few channels of a transformer are far larger than the others, and one range has to hold them all. An orthogonal
matrix Q spreads them evenly: what writes to the residual stream writes x Q, what reads from it has weights W Q
(QuaRot: Ashkboos et al. 2024). Between them stand LayerNorms, which take away the mean of the channels. Q leaves that
mean as it is, so that they do not notice.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.model.layers import add_to_bias
from psaq.quantization.model.neighbours import plain_attention
from psaq.quantization.model.streams import Reader, Writer, streams

Rotation = Float[Tensor, "channels channels"]


@torch.no_grad()
def rotate_streams(model: nn.Module) -> None:
    """Rotate the residual stream of a ViT, or of each stage of a Swin but the first; the logits stay.

    Scale and offset of its norms move into the layers behind them. A stream that is touched by anything unknown to
    `streams` stays as it is.
    """
    draw = torch.Generator().manual_seed(0)
    for stream in streams(model):
        rotation = mean_keeping_rotation(stream.channels, draw)
        for token in stream.tokens:
            token.copy_(token.double() @ rotation.to(token.device))
        for writer in stream.writers:
            _rotate_output(writer, rotation)
        for reader in stream.readers:
            _rotate_input(reader, rotation)


@torch.no_grad()
def rotate_heads(model: nn.Module) -> None:
    """Rotate query and key of each head alike, which their product does not see, and value, which the output
    projection undoes. Attention with norms between is left alone. Patch features averaged over heads change."""
    draw = torch.Generator().manual_seed(0)
    for attention in plain_attention(model):
        qkv, proj = attention.get_submodule("qkv"), attention.get_submodule("proj")
        heads = int(attention.num_heads)
        assert isinstance(qkv, nn.Linear)
        assert isinstance(proj, nn.Linear)
        scores, value = (_per_head(heads, proj.in_features // heads, draw).to(qkv.weight.device) for _ in range(2))
        rotations = torch.stack([scores, scores, value])
        rows = qkv.weight.double().unflatten(0, rotations.shape[:3])
        qkv.weight.copy_(torch.einsum("phcr,phci->phri", rotations, rows).flatten(0, 2))
        if qkv.bias is not None:
            offsets = qkv.bias.double().view(rotations.shape[:3])
            qkv.bias.copy_(torch.einsum("phcr,phc->phr", rotations, offsets).flatten())
        columns = proj.weight.double().unflatten(1, value.shape[:2])
        proj.weight.copy_(torch.einsum("ohc,hcr->ohr", columns, value).flatten(1))


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


def _rotate_output(writer: Writer, rotation: Rotation) -> None:
    layer, scale = writer.layer, torch.ones(len(rotation)).to(writer.layer.weight)
    if writer.scale is not None:
        scale = writer.scale.gamma.clone()
        writer.scale.gamma.fill_(1)
    turned = (scale.double()[:, None] * rotation.to(scale.device)).T
    layer.weight.copy_((turned @ layer.weight.flatten(1).double()).view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(turned @ layer.bias.double())


def _rotate_input(reader: Reader, rotation: Rotation) -> None:
    norm = reader.norm
    for layer in reader.layers:
        if getattr(norm, "bias", None) is not None:
            add_to_bias(layer, layer.weight.double() @ norm.bias.double())
        columns = layer.weight.double() if norm.weight is None else layer.weight.double() * norm.weight.double()
        # A norm over several positions side by side has each of them rotated.
        columns = columns.unflatten(1, (-1, len(rotation))) @ rotation.to(columns.device)
        layer.weight.copy_(columns.flatten(1))
    if norm.weight is not None:
        norm.weight.fill_(1)
    if getattr(norm, "bias", None) is not None:
        norm.bias.zero_()
