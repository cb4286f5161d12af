"""Residual streams: what writes to them, and what reads them through a norm."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from timm.layers import PatchEmbed, RmsNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import PatchMerging, SwinTransformer, SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Attention, Block, LayerScale, VisionTransformer
from torch import nn

from psaq.quantization.model.neighbours import fills_its_windows

_HIDDEN = ("fc1", "fc1_g", "fc1_x")  # of an MLP, plain or gated: what its input goes into
_TOKENS = ("pos_embed", "cls_token", "dist_token", "reg_token")


@dataclass(frozen=True)
class Writer:
    """A layer whose output, times the LayerScale behind it, is added to the stream."""

    layer: nn.Linear | nn.Conv2d
    scale: LayerScale | None = None


@dataclass(frozen=True)
class Reader:
    """A norm of the stream, and all the layers that its output goes into."""

    norm: nn.LayerNorm | RmsNorm
    layers: tuple[nn.Linear, ...]


@dataclass(frozen=True)
class Stream:
    """All that touches the features that run past the blocks of a ViT, or of one stage of a Swin."""

    channels: int
    tokens: tuple[nn.Parameter, ...]
    """Added to it or set beside it: (…, channels)."""
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]


def streams(model: nn.Module) -> list[Stream]:
    """Those that nothing touches but writers, tokens and readers."""
    found = map(_found, _candidates(model))
    return [stream for stream in found if stream is not None]


def _found(candidate: Callable[[], Stream]) -> Stream | None:
    try:
        return candidate()
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """Something touches the stream that is neither writer nor token nor reader."""


def _candidates(model: nn.Module) -> list[Callable[[], Stream]]:
    if isinstance(model, SwinTransformer):
        return [partial(_swin_stream, model, stage) for stage in range(len(model.layers))]
    return [partial(_vit_stream, model)] if isinstance(model, VisionTransformer) else []


def _vit_stream(model: VisionTransformer) -> Stream:
    embed = model.patch_embed
    _require(isinstance(embed, PatchEmbed) and isinstance(embed.norm, nn.Identity))
    _require(isinstance(model.norm_pre, nn.Identity))
    _require(embed.proj.groups == 1)  # otherwise an output sees a part of the channels only
    tokens = tuple(token for name in _TOKENS if (token := getattr(model, name, None)) is not None)
    writers, readers = _blocks(model.blocks)
    return Stream(model.embed_dim, tokens, (Writer(embed.proj), *writers), (*readers, _vit_head(model)))


def _vit_head(model: VisionTransformer) -> Reader:
    distilled = isinstance(model, VisionTransformerDistilled)  # its heads read the tokens without another norm
    candidates = [model.norm] if distilled else [model.norm, model.fc_norm]
    norms = [norm for norm in candidates if not isinstance(norm, nn.Identity)]
    _require(model.attn_pool is None and model.global_pool in ("token", "avg") and len(norms) == 1)
    heads = (getattr(model, name, None) for name in ("head", "head_dist"))
    return _reader(norms[0], *(head for head in heads if head is not None))


def _swin_stream(model: SwinTransformer, stage: int) -> Stream:
    merging = model.layers[stage].downsample
    _require(isinstance(merging, PatchMerging))  # a norm writes to the first stage
    writers, readers = _blocks(model.layers[stage].blocks)
    last = _swin_head(model) if stage + 1 == len(model.layers) else _merging(model.layers[stage + 1].downsample)
    return Stream(merging.reduction.out_features, (), (Writer(merging.reduction), *writers), (*readers, last))


def _swin_head(model: SwinTransformer) -> Reader:
    _require(model.head.global_pool.pool_type == "avg")
    return _reader(model.norm, model.head.fc)


def _merging(merging: nn.Module) -> Reader:
    _require(isinstance(merging, PatchMerging))
    return _reader(merging.norm, merging.reduction)


def _blocks(blocks: Iterable[nn.Module]) -> tuple[list[Writer], list[Reader]]:
    writers: list[Writer] = []
    readers: list[Reader] = []
    for block in blocks:
        _require(isinstance(block, Block | SwinTransformerBlock))
        # Padding holds zeros behind the norm: nothing may be added to what they are multiplied with.
        _require(not isinstance(block, SwinTransformerBlock) or fills_its_windows(block))
        attn, mlp = block.get_submodule("attn"), block.get_submodule("mlp")
        _require(isinstance(attn, Attention | WindowAttention) and getattr(attn, "gate", None) is None)
        hidden = [layer for name in _HIDDEN if (layer := getattr(mlp, name, None)) is not None]
        readers += [_reader(block.norm1, attn.qkv), _reader(block.norm2, *hidden)]
        writers += [_writer(attn.proj, getattr(block, "ls1", None)), _writer(mlp.fc2, getattr(block, "ls2", None))]
    return writers, readers


def _writer(layer: object, scale: object) -> Writer:
    _require(isinstance(layer, nn.Linear) and (scale is None or isinstance(scale, nn.Identity | LayerScale)))
    return Writer(layer, scale if isinstance(scale, LayerScale) else None)  # type: ignore[arg-type]


def _reader(norm: object, *layers: object) -> Reader:
    _require(isinstance(norm, nn.LayerNorm | RmsNorm) and len(layers) > 0)
    _require(all(isinstance(layer, nn.Linear) for layer in layers))
    return Reader(norm, layers)  # type: ignore[arg-type]


def _require(known: bool) -> None:
    if not known:
        raise _UnknownError
