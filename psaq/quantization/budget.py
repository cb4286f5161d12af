"""Bits per layer for a file of a given size, picked by what each layer costs alone."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, batches_for, gaussian_images
from psaq.models.wrappers import unwrapped
from psaq.quantization.checkpoint import save
from psaq.quantization.model.layers import QuantLayer
from psaq.quantization.model.points import WEIGHT, layer_of, weight_points
from psaq.quantization.pipeline import calibrate_at_once, prepared
from psaq.quantization.quantizers.bits import MAX_BITS
from psaq.quantization.quantizers.weights import bits_at, group_of, weight_quantizer
from psaq.quantization.recipes import Override, Recipe
from psaq.quantization.sensitivity import costs_alone, switched_off
from psaq_kernels.packing import NIBBLE_BITS, group_count, packed_length

_WIDTHS = (NIBBLE_BITS, MAX_BITS)  # any other takes the room of the next
_STATES = 200_000  # sizes that the search tells apart
_PER_TENSOR = 200  # bytes of header that one more tensor takes, at most
_PER_GROUP = 16  # and that to name a weight's group takes
_REASONS = 1000  # bytes that say what calibration in order left out, at most


@dataclass(frozen=True)
class Choice:
    """One way to store a layer's weight: its bits, its bytes in the file, the noise that it adds to the logits."""

    bits: int
    size: int
    noise: float


Budget = Callable[[int], int]
"""The size of the file with every weight at 8 bits → the size allowed."""


def parse_budget(text: str) -> Budget:
    """ "3.5MB", "900kB" (powers of ten) or "60%" of the size with every weight at 8 bits.

    Raises:
        PsaqError: anything else, or nothing.
    """
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(kB|MB|GB|%)\s*", text, flags=re.IGNORECASE)
    if parts is None or float(parts[1]) == 0:
        raise PsaqError(f'budget {text!r}: write it as "3.5MB", "900kB" or "60%", the part of the size at 8 bits')
    number, unit = float(parts[1]), parts[2].lower()
    if unit == "%":
        return lambda at_8_bits: int(at_8_bits * number / 100)
    return lambda _: int(number * {"kb": 1e3, "mb": 1e6, "gb": 1e9}[unit])


def fit_budget(
    model: nn.Module,
    images: CalibrationImages,
    recipe: Recipe,
    budget: Budget,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Recipe:
    """The recipe with bits per weight, layer by layer, that add the least noise to the logits in a file of this size.

    A weight of 4 bits or fewer takes half a byte in the file and any other a whole one, so that each layer gets 4 or
    8 bits. The noise of each is measured alone, and noises add up. Layers that an override of the recipe names keep
    its bits.

    Args:
        budget: what `parse_budget` returns.

    Raises:
        PsaqError: no choice of bits is small enough; the message says how small the file can be.
    """
    model = unwrapped(model)
    batches = list(batches_for(model, images, batch_size))
    qmodel, calibrated_on = prepared(model, batches, recipe, batch_size)
    sizes, room = _sizes_and_room(qmodel, calibrated_on, recipe, budget)
    switched_off(qmodel)
    choices = _measured(qmodel, batches, sizes, recipe, progress)
    return _with_bits(qmodel, recipe, pick_bits(choices, room))


def check_budget(model: nn.Module, recipe: Recipe, budget: Budget) -> None:
    """Raises PsaqError where no choice of bits is small enough; any image will do to see that."""
    plain = replace(recipe, collages=0, flat_copies=0)
    qmodel, batches = prepared(model, gaussian_images(model, 1), plain, batch_size=1)
    _sizes_and_room(qmodel, batches, plain, budget)


def pick_bits(choices: Mapping[str, Sequence[Choice]], room: int) -> dict[str, int]:
    """One choice per layer, together at most ``room`` bytes, with the least sum of noise.

    Exact where the sizes share a large factor, as those of layers do; otherwise sizes are rounded up a little.
    """
    smallest = {layer: min(choice.size for choice in options) for layer, options in choices.items()}
    spare = room - sum(smallest.values())
    extra = {layer: [option.size - smallest[layer] for option in options] for layer, options in choices.items()}
    if spare >= sum(max(sizes) for sizes in extra.values()):
        return {layer: min(options, key=lambda option: option.noise).bits for layer, options in choices.items()}
    unit = max(math.gcd(*(size for sizes in extra.values() for size in sizes)), spare // _STATES, 1)
    least = np.zeros(spare // unit + 1)
    picks: dict[str, np.ndarray] = {}
    for layer, options in choices.items():
        noises = [_shifted(least, -(-size // unit)) + o.noise for size, o in zip(extra[layer], options, strict=True)]
        picks[layer] = np.argmin(noises, axis=0).astype(np.uint8)
        least = np.min(noises, axis=0)
    return dict(_traced_back(choices, extra, picks, unit))


def _sizes_and_room(
    qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, budget: Budget
) -> tuple[dict[str, dict[int, int]], int]:
    """How each free layer's weight may be stored, and the bytes that all of them may take together."""
    free = {name: layer_of(name) for name in weight_points(qmodel) if not _is_named(layer_of(name), recipe)}
    at_8_bits = _file_size(qmodel, batches, recipe, free)
    sizes = {layer: _sizes(qmodel.get_submodule(layer), recipe) for layer in free.values()}
    room = budget(at_8_bits) - at_8_bits + sum(max(options) for options in sizes.values())
    _check_room(room, sizes, budget(at_8_bits))
    return sizes, room


def _traced_back(
    choices: Mapping[str, Sequence[Choice]],
    extra: Mapping[str, list[int]],
    picks: dict[str, np.ndarray],
    unit: int,
) -> Iterator[tuple[str, int]]:
    left = len(next(iter(picks.values()))) - 1 if picks else 0
    for layer in reversed(picks):
        index = int(picks[layer][left])
        left -= -(-extra[layer][index] // unit)
        yield layer, choices[layer][index].bits


def _shifted(least: np.ndarray, units: int) -> np.ndarray:
    """The least noise where so many units are spent on one more layer."""
    return np.concatenate([np.full(min(units, len(least)), np.inf), least])[: len(least)]


def _measured(
    qmodel: nn.Module, batches: list[Tensor], sizes: Mapping[str, Mapping[int, int]], recipe: Recipe, progress: bool
) -> dict[str, list[Choice]]:
    """Every way to store each layer's weight, with the noise that it adds when all others are in float."""
    entries = {(layer, size, bits): f"{layer} at {bits} bits" for layer in sizes for size, bits in sizes[layer].items()}
    switches = {
        entry: {f"{layer}.{WEIGHT}": _weight_quantizer(qmodel, layer, bits, recipe)}
        for (layer, _, bits), entry in entries.items()
    }
    costs = costs_alone(qmodel, batches, switches, progress)
    choices: dict[str, list[Choice]] = {}
    for (layer, size, bits), entry in entries.items():
        choices.setdefault(layer, []).append(Choice(bits, size, 10 ** (-costs[entry][0] / 10)))
    return choices


def _weight_quantizer(qmodel: nn.Module, name: str, bits: int, recipe: Recipe) -> nn.Module:
    layer = qmodel.get_submodule(name)
    assert isinstance(layer, QuantLayer)
    return weight_quantizer(layer.rows(layer.weight), bits, recipe, group_of(layer, bits, recipe))


def _sizes(layer: nn.Module, recipe: Recipe) -> dict[int, int]:
    """Bytes in the file, its scales' included → the most bits per weight that they hold."""
    return {_size(layer, bits, group_of(layer, bits, recipe)): bits for bits in _WIDTHS}


def _size(layer: Any, bits: int, group: int | None) -> int:
    rows, columns = len(layer.weight), layer.weight[0].numel()
    integers = rows * (packed_length(columns) if bits <= NIBBLE_BITS else columns)
    return integers + (4 * rows if group is None else 2 * rows * group_count(columns, group) + _PER_GROUP)


def _file_size(qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, free: Mapping[str, str]) -> int:
    """An upper bound of the file's size with every free weight at 8 bits, whatever bits replace them later."""
    every = tuple((layer, MAX_BITS, bits_at(qmodel, point, recipe)[1]) for point, layer in free.items())
    widest = replace(recipe, overrides=(*recipe.overrides, *every))
    calibrate_at_once(qmodel, batches, widest, progress=False)
    qmodel.psaq_recipe = widest  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        save(qmodel, Path(folder) / "widest.safetensors")
        size = (Path(folder) / "widest.safetensors").stat().st_size
    return size + _REASONS * recipe.in_order + (_added_biases(qmodel) if recipe.bias_compensation else 0)


def _added_biases(qmodel: nn.Module) -> int:
    layers = [layer for layer in qmodel.modules() if isinstance(layer, QuantLayer)]
    return sum(4 * len(layer.weight) + _PER_TENSOR for layer in layers if layer.bias is None)


def _check_room(room: int, sizes: Mapping[str, Mapping[int, int]], budget: int) -> None:
    missing = sum(min(options) for options in sizes.values()) - room
    if missing > 0:
        smallest = math.ceil((budget + missing) / 1e4) / 100
        raise PsaqError(
            f"budget {budget / 1e6:.3g} MB: the file cannot be that small; with every weight that may be at "
            f"{NIBBLE_BITS} bits it takes {smallest:.2f} MB. Give at least that"
        )


def _with_bits(qmodel: nn.Module, recipe: Recipe, bits: Mapping[str, int]) -> Recipe:
    """The most frequent bits become the recipe's own, the others overrides."""
    if not bits:
        return recipe
    usual = replace(recipe, weights=Counter(bits.values()).most_common(1)[0][0])
    own = {layer: bits_at(qmodel, f"{layer}.{WEIGHT}", usual) for layer in bits}
    others: list[Override] = [
        (layer, bits[layer], own[layer][1]) for layer in sorted(bits) if bits[layer] != own[layer][0]
    ]
    return replace(usual, overrides=(*recipe.overrides, *others))


def _is_named(layer: str, recipe: Recipe) -> bool:
    return any(fnmatchcase(layer, pattern) for pattern, _, _ in recipe.overrides)
