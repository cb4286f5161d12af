"""Where the kernels' time goes: their rates as parts of the machine's own, registers, spills and shared memory."""

import functools
from collections.abc import Iterator

import torch
from findings import Case, Row  # type: ignore[import-not-found]
from settings import BLOCKS, DEIT_B, Settings, times  # type: ignore[import-not-found]

from psaq_kernels import tuner, tuning
from psaq_kernels.aot import compile_ahead
from psaq_kernels.backends import interpreting
from psaq_kernels.devices import TARGETS, device_limits
from psaq_kernels.tunable import MachineRates, Problem, Tunable, Workload, tunables


def cases(rehearse: bool) -> Iterator[Case]:
    settings = Settings(rehearse)
    rates = functools.cache(functools.partial(tuner.measure_rates, settings.device, tuner.gpu_clock))
    yield {"what": "machine"}, lambda: _machine(rates())
    for kernel in _kernels(settings):
        for problem in kernel.problems(_workload(settings)):
            case = {"what": kernel.name, "shape": kernel.bucket(problem)}
            yield case, lambda kernel=kernel, problem=problem: _share(kernel, problem, rates(), settings.device)


def _kernels(settings: Settings) -> list[Tunable]:
    """The interpreter takes seconds for the others."""
    quick = ("similarity_density.center", "quant_linear")
    return [kernel for kernel in tunables() if not settings.rehearse or kernel.name in quick]


def _workload(settings: Settings) -> Workload:
    blocks = settings.blocks["toy ViT"] if settings.rehearse else BLOCKS["DeiT-B"]
    layers = settings.linears("DeiT-B") if settings.rehearse else DEIT_B
    images = settings.images
    return Workload(
        "DeiT-B",
        tuple((images, *sizes) for sizes in blocks),
        tuple((images * rows, outputs, inputs) for rows, inputs, outputs in layers.values()),
    )


def _machine(rates: MachineRates) -> Row:
    products = {f"{name}_tera_ops": round(rate * 1e-12, 2) for name, rate in rates.flops_per_second.items()}
    return {"copy_gb_per_second": round(rates.bytes_per_second * 1e-9, 1), **products}


def _share(kernel: Tunable, problem: Problem, rates: MachineRates, device: torch.device) -> Row:
    """The kernel's time with the configuration that would be launched, and the least that the machine allows it."""
    config = tuning.configuration(kernel, problem, device)
    launch = kernel.prepare(problem, device)
    found: Row = times(lambda: launch(config), device)
    of_bound = 1e6 * kernel.bound(problem, rates) / found["median_us"]
    capability = device_limits(device).capability
    request = kernel.compile_request(problem, config)
    used: Row = {}
    if capability in TARGETS and not interpreting(device):
        resources = compile_ahead(request, capability)
        used = {"registers": resources.registers, "spilled_bytes": resources.spilled_bytes}
        used |= {"shared_bytes": resources.shared_bytes}
    return found | {"of_bound": round(of_bound, 4), "config": str(config), **used}
