"""What the processor at hand computes rightly: oneDNN's sums of products of 8-bit integers, tried at their extremes."""

import functools

import torch
from torch import Tensor

BYTE = 128  # the largest magnitude of an int8
SEVEN_BITS = 64  # two products of such a weight with a byte fit into 16 bits, which older processors sum in

_INPUTS = 256
_SHAPES = ((1, 1), (1, 64), (3, 24), (70, 64))  # rows and outputs: oneDNN has a kernel of its own for some
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")


@torch.compiler.assume_constant_result
def largest_exact_weight() -> int:
    """The largest magnitude of a weight whose products with bytes oneDNN sums without an error on this processor.

    128 with 8-bit dot-product instructions. Older x86 processors add products in pairs that saturate at 16 bits, which
    leaves 64; 0 where there are no such products at all. Tried once per process, with sums at their extremes.
    """
    return _largest_exact_weight()


@functools.cache
def _largest_exact_weight() -> int:
    if not _has_products():
        return 0
    return next((magnitude for magnitude in (BYTE, SEVEN_BITS) if _sums_are_exact(magnitude)), 0)


def dot_products() -> list[str]:
    """The processor's instructions for sums of 8-bit products, as torch names them."""
    capabilities = _capabilities()
    return [name for name in _DOT_PRODUCTS if capabilities.get(name)]


def has_bfloat16_vectors() -> bool:
    """Whether it multiplies bfloat16 in vectors, and not in AMX's tiles: torch's fused attention is made for these."""
    capabilities = _capabilities()
    return bool(capabilities.get("avx512_bf16")) and not capabilities.get("amx_bf16")


def _capabilities() -> dict[str, object]:
    return getattr(torch.cpu, "get_capabilities", dict)()


def _has_products() -> bool:
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return vectors and torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def _sums_are_exact(magnitude: int) -> bool:
    return all(
        _sum_is_exact(torch.full((outputs, _INPUTS), weight, dtype=torch.int8), rows)
        for rows, outputs in _SHAPES
        for weight in (-magnitude, magnitude - 1)
    )


def _sum_is_exact(weight: Tensor, rows: int) -> bool:
    outputs = len(weight)
    x, ones = torch.full((rows, _INPUTS), 255, dtype=torch.uint8), torch.ones(outputs)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(outputs, dtype=torch.int32)
    found = torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return bool((found == 255 * _INPUTS * int(weight[0, 0])).all())
