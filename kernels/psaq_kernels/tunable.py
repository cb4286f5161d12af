"""What an operation tells the tuner and the ahead-of-time check about its Triton kernels.

To take part, write one subclass of `Tunable` per kernel, in the module that holds the kernel, make an instance of it
there, and name that module in `MODULES` below. Everything else follows from that:

- at run time the launcher calls ``tuning.configuration(MY_KERNEL, problem, device)`` and launches with the `Config` it
  gets (``**config.constants, num_warps=config.num_warps, num_stages=config.num_stages``);
- ``psaq tune`` times the ``survivors`` among the ``candidates`` on every problem that ``problems`` derives from a
  model's shapes;
- ``psaq tune --target sm_90`` and the tests compile every candidate ahead of time through ``compile_request``.

A *problem* is a flat dictionary of the numbers and dtype names a configuration may depend on.
"""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from psaq_kernels.devices import DeviceLimits

MODULES = ("psaq_kernels.density_tunables", "psaq_kernels.linear_triton")  # modules with a tuple TUNABLES

Problem = Mapping[str, int | str]
LENIENCE = 1.5  # how much longer than the shortest a reckoned time may be


@dataclass(frozen=True)
class Config:
    """How a kernel is launched: its compile-time constants, its warps and its pipeline stages."""

    constants: Mapping[str, int | str]
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{constants} warps={self.num_warps} stages={self.num_stages}".strip()


@dataclass(frozen=True)
class Workload:
    """The shapes that one model presents to the operations."""

    name: str
    features: tuple[tuple[int, int, int, int], ...] = ()  # images, windows, patches, channels of each block
    linears: tuple[tuple[int, int, int], ...] = ()  # rows M, outputs N, inputs K of each linear layer


@dataclass(frozen=True)
class CompileRequest:
    """One kernel with everything that decides its machine code."""

    kernel: Any  # a triton.jit function
    signature: Mapping[str, str]  # run-time argument -> Triton type, such as "*bf16" or "i32"
    constants: Mapping[str, int | str | float | bool | None]  # compile-time argument -> value
    num_warps: int
    num_stages: int
    aligned: Sequence[str] = field(default=())  # arguments divisible by 16, as the launcher would find them
    fp_fusion: bool = True  # whether a product and a sum may be rounded once, as the launcher says


@dataclass(frozen=True)
class MachineRates:
    """Measured rates of the device that is being tuned, for the bound a kernel is compared with."""

    bytes_per_second: float  # of a large device-to-device copy, read and write counted
    flops_per_second: Mapping[str, float]  # of a large matmul, by dtype name


class Tunable(ABC):
    """One Triton kernel, as the tuner sees it."""

    name: str  # "similarity_density.forward"
    source_modules: tuple[str, ...] = ()  # modules of the kernel's code, besides the one that defines the subclass

    @cached_property
    def source_hash(self) -> str:
        """A digest of the source text that decides the kernel's code."""
        digest = hashlib.sha256()
        for name in (type(self).__module__, *self.source_modules):
            digest.update(Path(importlib.import_module(name).__file__ or "").read_bytes())
        return digest.hexdigest()[:16]

    @abstractmethod
    def problems(self, workload: Workload) -> list[Problem]:
        """The problems a model presents; none where the operation does not occur in it."""

    @abstractmethod
    def bucket(self, problem: Problem) -> str:
        """The key under which similar problems, dtypes included, share a configuration."""

    @abstractmethod
    def default(self, problem: Problem, limits: DeviceLimits) -> Config:
        """The static heuristic: valid on every device, whatever the problem."""

    @abstractmethod
    def candidates(self, problem: Problem, limits: DeviceLimits) -> list[Config]:
        """The configurations worth timing, all of which fit ``limits``; the default is among them."""

    @abstractmethod
    def reckon(self, config: Config, problem: Problem, limits: DeviceLimits) -> float:
        """The seconds that the model of the machine gives a candidate: only to compare it with the others."""

    def survivors(self, problem: Problem, limits: DeviceLimits) -> list[Config]:
        """The candidates that may win by the model, the default first; it is among them whatever the model says."""
        default, candidates = self.default(problem, limits), self.candidates(problem, limits)
        seconds = [self.reckon(config, problem, limits) for config in candidates]
        longest = LENIENCE * min(seconds)
        worth = [config for config, taken in zip(candidates, seconds, strict=True) if taken <= longest]
        return [default, *(config for config in worth if config != default)]

    @abstractmethod
    def compile_request(self, problem: Problem, config: Config) -> CompileRequest:
        """What compiling ``config`` for ``problem`` ahead of time takes."""

    @abstractmethod
    def prepare(self, problem: Problem, device: torch.device) -> Callable[[Config], object]:
        """Allocate the problem's tensors once; the result launches the kernel on them."""

    @abstractmethod
    def bound(self, problem: Problem, rates: MachineRates) -> float:
        """The least time in seconds that the problem's traffic and arithmetic allow."""


def tunables() -> list[Tunable]:
    """Every registered kernel. Imports Triton."""
    modules = [importlib.import_module(name) for name in MODULES]
    return [tunable for module in modules for tunable in _declared(module)]


def tunable_named(name: str) -> Tunable:
    """The registered kernel of this name. Raises ValueError where there is none."""
    for tunable in tunables():
        if tunable.name == name:
            return tunable
    raise ValueError(f"no kernel is called {name}; there are {', '.join(tunable.name for tunable in tunables())}")


def _declared(module: ModuleType) -> Sequence[Tunable]:
    return module.TUNABLES
