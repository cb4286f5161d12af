"""Compiling Triton kernels ahead of time, for GPUs that need not be present, and reading what they use."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from psaq_kernels.devices import TARGETS, DeviceLimits
from psaq_kernels.tunable import CompileRequest, Config, Problem, Tunable, Workload, tunable_named

MOST_REGISTERS, REGISTER_BYTES = 255, 4  # per thread of an NVIDIA GPU
FEW_BYTES = 16


class CompileError(RuntimeError):
    """A kernel does not compile for a target, or its resources cannot be read."""


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses."""

    registers: int  # per thread
    spilled_bytes: int  # per thread, to local memory
    shared_bytes: int  # per block

    def fits(self, limits: DeviceLimits) -> bool:
        """Within the shared memory, and spilling nothing for want of registers.

        A compiler that spills a value or two and leaves registers unused wants more blocks at a time: that of Triton
        3.7 does so on sm_100 and sm_120, where those before and after it spill nothing.
        """
        spare_bytes = 0 if limits.is_amd else REGISTER_BYTES * (MOST_REGISTERS - self.registers)
        by_choice = self.spilled_bytes <= min(FEW_BYTES, spare_bytes)
        return (self.spilled_bytes == 0 or by_choice) and self.shared_bytes <= limits.shared_bytes


def target_limits(target: str) -> DeviceLimits:
    """The limits of a named target. Raises ValueError for a name that is not in `TARGETS`."""
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    return TARGETS[target]


def compile_ahead(request: CompileRequest, target: str) -> Resources:
    """Compile ``request`` for ``target`` ("sm_90", "gfx942", …) and report registers, spills and shared memory.

    Raises:
        ValueError: an unknown target.
        CompileError: Triton's interpreter is on, or the compiler refuses the kernel.
    """
    limits = target_limits(target)
    if not hasattr(request.kernel, "cache_key"):
        raise CompileError("kernels cannot be compiled ahead of time under TRITON_INTERPRET=1; unset it")
    options = {
        "num_warps": request.num_warps,
        "num_stages": request.num_stages,
        "enable_fp_fusion": request.fp_fusion,
    }
    try:
        compiled = triton.compile(_source(request), target=_gpu_target(limits), options=options)
    except Exception as error:
        raise CompileError(f"{request.kernel.__name__} does not compile for {target}: {_reason(error)}") from error
    return resources(compiled, limits.is_amd)


def resources(compiled: triton.compiler.CompiledKernel, is_amd: bool) -> Resources:
    """What a compiled kernel uses, by the compiler's own report."""
    registers, spilled = (_read_amd if is_amd else _read_nvidia)(compiled)
    return Resources(registers, spilled, compiled.metadata.shared)


def _reason(error: BaseException) -> str:
    """The last line of the innermost error: around it, the compiler quotes the code from call to call."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or repr(error)).splitlines()[-1]


def _source(request: CompileRequest) -> ASTSource:
    names = request.kernel.arg_names
    signature = {name: request.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in request.aligned}
    constants = {(names.index(name),): value for name, value in request.constants.items()}
    return ASTSource(request.kernel, signature, constants, attributes)


def _gpu_target(limits: DeviceLimits) -> GPUTarget:
    if limits.is_amd:
        return GPUTarget("hip", limits.capability, limits.warp_size)
    return GPUTarget("cuda", int(limits.capability.removeprefix("sm_")), limits.warp_size)


def _read_nvidia(compiled: triton.compiler.CompiledKernel) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage)


def _read_amd(compiled: triton.compiler.CompiledKernel) -> tuple[int, int]:
    assembly = compiled.asm["amdgcn"]
    registers = _number(r"\.vgpr_count:\s+(\d+)", assembly)
    return registers, _number(r"\.private_segment_fixed_size:\s+(\d+)", assembly)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise CompileError(f"the compiler's report holds nothing like {pattern!r}")
    return int(found.group(1))


@dataclass(frozen=True)
class Finding:
    """What compiling one configuration for a target showed."""

    kernel: str
    config: Config
    limits: DeviceLimits
    resources: Resources | None
    error: str | None = None

    @property
    def is_good(self) -> bool:
        """Compiled, without spills, within the target's shared memory."""
        return self.resources is not None and self.resources.fits(self.limits)


def check_request(kernel: str, config: Config, request: CompileRequest, target: str) -> Finding:
    """Compile one request; a refusal by the compiler is a finding, not an error. Raises ValueError for the target."""
    limits = target_limits(target)
    try:
        return Finding(kernel, config, limits, compile_ahead(request, target))
    except CompileError as error:
        return Finding(kernel, config, limits, None, str(error))


def check_candidate(kernel: str, problem: tuple[tuple[str, int | str], ...], config: Config, target: str) -> Finding:
    """As `check_request`, by a registered kernel's name: what a process can be asked for."""
    found = tunable_named(kernel)
    return check_request(kernel, config, found.compile_request(dict(problem), config), target)


def distinct_candidates(
    kernels: Iterable[Tunable], workloads: Iterable[Workload], target: str
) -> list[tuple[Tunable, Problem, Config]]:
    """Every configuration of every kernel for the workloads' problems; those of the same machine code once."""
    limits = target_limits(target)
    workloads = list(workloads)
    found = {
        _identity(kernel.compile_request(problem, config)): (kernel, problem, config)
        for kernel in kernels
        for workload in workloads
        for problem in kernel.problems(workload)
        for config in kernel.candidates(problem, limits)
    }
    return list(found.values())


def _identity(request: CompileRequest) -> tuple[object, ...]:
    return (
        request.kernel,
        tuple(sorted(request.signature.items())),
        tuple(sorted((name, str(value)) for name, value in request.constants.items())),
        (request.num_warps, request.num_stages, request.fp_fusion),
        tuple(sorted(request.aligned)),
    )
