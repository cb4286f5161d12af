"""Where patch features come from: what attention makes of its values in every block, before the output projection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from psaq.choices import Heads
from psaq.errors import PsaqError
from psaq.models.borrowing import borrowed, only_here
from psaq.models.calling import run
from psaq.models.data import data_config
from psaq.models.opened import opened
from psaq.models.operations import KINDS, Function, layer_operands
from psaq.models.place import tensor_of
from psaq.models.trace import IMAGE, Call, Trace, trace

Features = Float[Tensor, "images windows patches channels"]

_MOST_EXTRA_TOKENS = 8
"""Class, distillation and register tokens that stand before the patches of a model that does not say how many."""
_FEWEST_PATCHES = 4
_SMALLEST_PART = 8
"""Grids are halved no more often than this."""


@dataclass(frozen=True)
class FeatureSite:
    """Where the patch features of one attention pass.

    Attributes:
        attention: the module that holds it.
        layer: the layer that reads it first, its output projection.
        heads: into how many parts the channels fall.
        leading, trailing: tokens that are no patches, before and behind these.
        channels_first: whether the layer takes (images, channels, height, width).
        place: where another module multiplies with the layer's weight, so that no hook of the layer's sees it: how many
            layers the model calls before.
    """

    attention: str
    layer: str
    heads: int
    leading: int = 0
    trailing: int = 0
    channels_first: bool = False
    place: int | None = None


def feature_sites(model: nn.Module, images: Tensor | None = None) -> list[FeatureSite]:
    """All of them, in the order in which they run; of a quantised or deployed model those of its original.

    Args:
        images: what the model takes, where it does not say of what size they are.

    Raises:
        PsaqError: the model has no self-attention.
    """
    known = getattr(getattr(model, "psaq_body", model), "psaq_sites", None)
    if known is not None:
        return list(known)
    own = opened(model)
    return find_sites(own, trace(own, example_image(model) if images is None else images[:1]))


def example_image(model: nn.Module) -> Float[Tensor, "1 channels height width"]:
    """A black image as the model takes it. Raises PsaqError where nothing says of what size."""
    config, like = data_config(model), tensor_of(model)
    return torch.zeros(1, config.channels, *config.image_size, device=like.device, dtype=like.dtype)


def find_sites(model: nn.Module, seen: Trace) -> list[FeatureSite]:
    """Read the sites from a trace of ``model``. Attention that has no patch grid (a decoder's, between queries and
    patches) is left out, unless the model has no other. Raises PsaqError where there is none at all."""
    found = [site for call in _results(seen) if (site := _Site(model, seen, call)).layer is not None]
    if not found:
        raise PsaqError(
            f"{type(model).__name__}: has no self-attention; psaq needs a vision transformer, whose layers compare "
            "patches with one another"
        )
    grids, windows = _grids(seen), {site.tokens for site in found if site.windows > 1}
    on_grid = [described for site in found if (described := site.described(grids, windows)) is not None]
    return on_grid or [site.without_grid() for site in found]


class PatchFeatureRecorder:
    """Collects the patch features of a model's latest forward pass, one tensor per block.

    With ``class_token="drop"`` the tokens that are no patches (class, distillation, register, detection) are left out,
    where a model has them. ``"reference"`` drops the first token of every model, as the authors' code does: for Swin,
    which has no class token, that loses a patch of each window.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Heads,
        class_token: Literal["drop", "reference"] = "drop",
        images: Tensor | None = None,
        seen: Callable[[Tensor], Tensor] = lambda attended: attended,
    ):
        self.model = opened(model)
        """What is to be run: the model itself, or a copy whose attention can be seen."""
        self.features: list[Features] = []
        self.sites = feature_sites(self.model, images)
        self._images = 0
        self._lent = _LentLayers({s.place: partial(self._record, site=s) for s in self.sites if s.place is not None})
        self._heads = heads
        self._class_token = class_token
        self._seen = seen

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Record while the block is open; the hooks go when it closes, also on an error."""
        handles: list[torch.utils.hooks.RemovableHandle] = []
        with borrowed(self.model):
            try:
                handles.extend(self._attach())
                with self._lent if self._lent.readers else nullcontext():
                    yield
            finally:
                for handle in handles:
                    handle.remove()

    def _attach(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        body = getattr(self.model, "psaq_body", self.model)
        yield self.model.register_forward_pre_hook(only_here(self._start), with_kwargs=True)
        for site in self.sites:
            layer = body.get_submodule(site.layer)
            # Where the layer is asked itself, as in a quantised model, the function mode above sees no call of it.
            record = only_here(lambda _, inputs, site=site: self._record(inputs[0], site))
            yield layer.register_forward_pre_hook(record)

    def _start(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._images = len(next(iter((*args, *kwargs.values()))))
        self.features = []
        self._lent.count = 0

    def _record(self, attended: Tensor, site: FeatureSite) -> None:
        attended = self._seen(attended)
        tokens = rearrange(attended, "b c ... -> b (...) c" if site.channels_first else "b ... c -> b (...) c")
        last = tokens.shape[1] - site.trailing
        patches = tokens[:, site.leading : last] if self._class_token == "drop" else tokens[:, 1:]
        patches = patches.float() if patches.dtype == torch.float64 else patches  # similarities need no more digits
        self.features.append(_split_heads(patches, self._images, site.heads, self._heads))


class _LentLayers(TorchFunctionMode):
    """Shows what layers take whose weight another module multiplies with; ``count`` is to be 0 where a run begins.

    In a quantised model those layers are asked, so that their hooks see it.
    """

    def __init__(self, readers: dict[int, Callable[[Tensor], None]]):
        super().__init__()
        self.readers = readers
        self.count = 0

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if KINDS.get(function) == "layer":
            if self.count in self.readers:
                self.readers[self.count](layer_operands(function, args, kwargs)[0])
            self.count += 1
        return function(*args, **kwargs)


@contextmanager
def record_patch_features(
    model: nn.Module,
    heads: Heads = "mean",
    class_token: Literal["drop", "reference"] = "drop",
    images: Tensor | None = None,
    seen: Callable[[Tensor], Tensor] = lambda attended: attended,
) -> Iterator[PatchFeatureRecorder]:
    """Record patch features while the block is open; the hooks go when it closes, also on an error.

    Args:
        images: as for `feature_sites`.
        seen: what is recorded of what attention gave, of the same shape.

    Raises:
        PsaqError: the model has no self-attention.
    """
    recorder = PatchFeatureRecorder(model, heads, class_token, images, seen)
    with recorder.attached():
        yield recorder


def patch_features(
    model: nn.Module, images: Float[Tensor, "images channels height width"], heads: Heads = "mean"
) -> list[Features]:
    """The patch features u of every block: its self-attention's output (Li et al. 2022, eq. 1).

    Returns:
        One tensor per block, (images, windows, patches, channels): one window where all patches attend to each other,
        otherwise windows pooled per image. ``heads="separate"`` counts each head as a window of its own.

    Raises:
        PsaqError: the model has no self-attention.
    """
    with record_patch_features(model, heads, images=images) as recorder:
        run(recorder.model, images)
    return recorder.features


def _split_heads(patches: Float[Tensor, "rows patches dim"], images: int, heads: int, how: Heads) -> Features:
    if how == "separate":
        return rearrange(patches, "(i w) p (h c) -> i (h w) p c", i=images, h=heads)
    return reduce(patches, "(i w) p (h c) -> i w p c", "mean", i=images, h=heads)


# From a trace ---------------------------------------------------------------------------------------------------------


def _results(seen: Trace) -> list[Call]:
    """What attention makes of its values: products of two activations that are no scores. Where a model has none, the
    softmaxes that weigh its features, or its products with parameters (linear attention)."""
    moving = {call.index: sum(not seen.is_static(s) for s in call.sources[:2]) for call in seen.of_kind("product")}
    products = [call for call in seen.of_kind("product") if moving[call.index] == 2]
    if products:
        return [call for call in products if not _are_scores(seen, call)]
    softmaxes = [call for call in seen.calls if call.name == "softmax" and not seen.is_static(call.index)]
    weighing = [call for call in softmaxes if any(reader.name == "mul" for reader in _before_layers(seen, call))]
    return weighing or [call for call in seen.of_kind("product") if moving[call.index] == 1]


def _are_scores(seen: Trace, product: Call) -> bool:
    """Whether a product goes into a softmax or another product first; layers that mix heads may stand between."""
    following = _before_layers(seen, product)
    if any(call.kind == "product" or call.name == "softmax" for call in following):
        return True
    mixing = [call for call in following if call.kind == "layer" and call.module.startswith(f"{product.module}.")]
    return any(reader.name == "softmax" for call in mixing for reader in _before_layers(seen, call))


def _before_layers(seen: Trace, call: Call) -> list[Call]:
    """What happens to a result until layers read it, these included, in order."""
    found: dict[int, Call] = {}
    waiting = [call]
    while waiting:
        for reader in seen.readers(waiting.pop().index):
            if reader.index not in found:
                found[reader.index] = reader
                if reader.kind not in ("layer", "product"):
                    waiting.append(reader)
    return [found[index] for index in sorted(found)]


def _grids(seen: Trace) -> list[int]:
    """How many patches a model may have: of its first layers' outputs, and of these halved again and again."""
    counts = set()
    for call in seen.readers(IMAGE) or []:
        first = (
            call if call.kind == "layer" else next((r for r in _before_layers(seen, call) if r.kind == "layer"), None)
        )
        if first is None:
            continue
        rows, columns = first.shape[-2:] if len(first.shape) == 4 else (1, first.shape[-2])
        halvings = range(_SMALLEST_PART)
        counts |= {-(-rows // 2**times) * -(-columns // 2**times) for times in halvings}
    return sorted((count for count in counts if count >= _FEWEST_PATCHES), reverse=True)


class _Site:
    """An attention's result and the layer that reads it."""

    def __init__(self, model: nn.Module, seen: Trace, result: Call):
        self.model, self.seen, self.result = model, seen, result
        reader = next((call for call in _before_layers(seen, result) if call.kind == "layer"), None)
        self.reader = reader
        self.layer, self.place = self._seen(reader)

    @property
    def windows(self) -> int:
        """Of one image."""
        return self._rows() // self.seen.images

    @property
    def tokens(self) -> int:
        """Of one window."""
        total = 1
        for side in self._shape():
            total *= side
        return total // self._rows() // self._channels()

    def described(self, grids: list[int], windows: set[int]) -> FeatureSite | None:
        """The site, where its tokens are patches and few others.

        Args:
            grids: how many patches the model may have.
            windows: how many tokens stand in those windows of the model of which an image has several.
        """
        tokens = self.tokens
        if tokens < _FEWEST_PATCHES:
            return None  # a query of its own, or windows in which a patch has no other to be compared with
        if self.windows > 1:
            return self._site(0, 0) if self._fill(grids) else None
        told = self._told(tokens)
        if told is not None and (tokens - sum(told) in grids or tokens not in grids):
            return self._site(*told)
        extra = next((tokens - grid for grid in grids if 0 <= tokens - grid <= _MOST_EXTRA_TOKENS), None)
        if extra is None and tokens in windows and self._fill(grids):
            extra = 0  # the last of the model's stages, padded to a window
        return None if extra is None else self._site(extra, 0)

    def _fill(self, grids: list[int]) -> bool:
        """Whether the windows hold a grid, padded at most to the double."""
        return any(grid <= self.windows * self.tokens <= 2 * grid for grid in grids)

    def without_grid(self) -> FeatureSite:
        return self._site(0, 0)

    def _site(self, leading: int, trailing: int) -> FeatureSite:
        assert self.layer is not None
        heads = self._head_count()
        return FeatureSite(self.result.module, self.layer, heads, leading, trailing, self._first(), self.place)

    def _seen(self, reader: Call | None) -> tuple[str | None, int | None]:
        """The layer's module, and its place among all calls of layers where another module makes the call."""
        weight = None if reader is None else reader.sources[1]
        if reader is None or weight is None:
            return None, None
        if isinstance(weight, int) or weight == f"{reader.module}.weight":
            return reader.module, None
        place = sum(call.kind == "layer" for call in self.seen.calls[: reader.index])
        return weight.removesuffix(".weight"), place

    def _told(self, tokens: int) -> tuple[int, int] | None:
        """Tokens before and behind the patches, as the model or a part of it says."""
        assert self.layer is not None
        path = self.layer
        while path:
            path = path.rpartition(".")[0]
            module = self.model.get_submodule(path)
            leading = getattr(module, "num_prefix_tokens", None)
            trailing = getattr(getattr(module, "config", None), "num_detection_tokens", 0)
            if trailing and tokens > trailing + 1:
                return 1, trailing
            if isinstance(leading, int) and tokens > leading:
                return leading, 0
        return None

    def _shape(self) -> tuple[int, ...]:
        assert self.reader is not None
        source = self.reader.sources[0]
        assert isinstance(source, int)
        return self.seen.calls[source].shape

    def _first(self) -> bool:
        assert self.layer is not None
        return not isinstance(self.model.get_submodule(self.layer), nn.Linear) and len(self._shape()) > 3

    def _rows(self) -> int:
        return self._shape()[0]

    def _channels(self) -> int:
        return self._shape()[1 if self._first() else -1]

    def _head_count(self) -> int:
        *outer, first, second = (1, *self.result.shape)
        for width, tokens in ((second, first), (first, second)):
            heads = self._channels() // width
            if heads * width == self._channels() and heads in outer and tokens == self.tokens:
                return heads
        return 1
