"""``psaq tune``: the kernels' fastest configurations on this GPU, or a check of all of them for another one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from psaq.cli import run_command
from psaq.errors import PsaqError
from psaq.models.features import record_patch_features
from psaq.models.zoo import TABLE1_MODELS, build_model, data_config, named_source
from psaq.progress import progress_bar
from psaq_kernels import tuner, tuning
from psaq_kernels.aot import Finding, check_request, distinct_requests, target_limits
from psaq_kernels.devices import TARGETS, device_limits
from psaq_kernels.tunable import MachineRates, Problem, Tunable, Workload, tunables


@dataclass(frozen=True)
class Tune:
    """Find the fastest configuration of every GPU kernel for the shapes of the models, and remember it.

    Each configuration is timed on the GPU at hand; the winners go into a table in the user's cache directory, where
    every later run finds them. With --target, nothing is timed: every configuration is compiled ahead of time for that
    GPU, which need not be here, and its registers, spills and shared memory are printed.
    """

    model: tuple[str, ...] = tuple(TABLE1_MODELS)
    """Whose shapes to tune for: Table 1 names, bundled models or timm tags."""
    batch: int = 32
    """Images in a batch."""
    kernel: tuple[str, ...] = ()
    """Only kernels whose name begins with one of these."""
    target: str | None = None
    """Only compile, for this GPU: sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, gfx942, or all."""
    export: bool = False
    """Write the table where the package ships its own, instead of into the cache directory."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise PsaqError(f"--batch must be at least 1, got {self.batch}")
        if self.target not in (None, "all", *TARGETS):
            raise PsaqError(f"--target must be one of {', '.join(TARGETS)} or all, got {self.target!r}")

    def run(self) -> None:
        chosen = self._kernels()
        workloads = [workload(name, self.batch) for name in self.model]
        if self.target is None:
            self._tune(chosen, workloads)
        else:
            check_targets(list(TARGETS) if self.target == "all" else [self.target], chosen, workloads)

    def _kernels(self) -> list[Tunable]:
        try:
            known = tunables()
        except ImportError as error:
            raise PsaqError(f"the kernels cannot be loaded ({error}); install triton") from error
        chosen = [kernel for kernel in known if not self.kernel or kernel.name.startswith(self.kernel)]
        if not chosen:
            raise PsaqError(f"--kernel: none begins so; there are {', '.join(kernel.name for kernel in known)}")
        return chosen

    def _tune(self, kernels: list[Tunable], workloads: list[Workload]) -> None:
        device = _gpu()
        path = tuning.table_path(tuning.SHIPPED if self.export else tuning.cache_folder(), device_limits(device).name)
        _check_writable(path)
        rates = tuner.measure_rates(device, tuner.gpu_clock)
        problems = distinct_problems(kernels, workloads)
        rows = [tune_problem(kernel, problem, device, rates, path) for kernel, problem in problems]
        print(table(("kernel", "shape", "default µs", "best µs", "gain", "of bound", "configuration"), rows))
        print(f"written to {path}")


def workload(name: str, batch: int) -> Workload:
    """The shapes that a model presents to the kernels at a batch size. Nothing is downloaded or computed.

    Raises:
        PsaqError: the model is unknown or no vision transformer.
    """
    with torch.device("meta"):
        model = build_model(named_source(name)).eval()
    linears: list[tuple[int, int, int]] = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda layer, inputs: linears.append(_linear_shape(layer, inputs[0])))
    with record_patch_features(model) as recorder, torch.no_grad():
        model(torch.empty(batch, 3, *data_config(model).image_size, device="meta"))
    features = tuple(tuple(feature.shape) for feature in recorder.features)
    return Workload(name, features, tuple(dict.fromkeys(linears)))  # type: ignore[arg-type]


def _linear_shape(layer: nn.Module, inputs: torch.Tensor) -> tuple[int, int, int]:
    assert isinstance(layer, nn.Linear)
    return inputs.numel() // layer.in_features, layer.out_features, layer.in_features


# On the GPU at hand ---------------------------------------------------------------------------------------------------


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise PsaqError("there is no GPU here to tune on; --target compiles for one that is elsewhere")
    return torch.device("cuda", torch.cuda.current_device())


def _check_writable(path: Path) -> None:
    """Fail before the work and not after it."""
    try:
        tuning.merge_into_table(path, [])
    except OSError as error:
        raise PsaqError(
            f"{path}: the table cannot be written ({error}); set $PSAQ_CACHE_DIR to a folder of yours"
        ) from error


def distinct_problems(kernels: list[Tunable], workloads: list[Workload]) -> list[tuple[Tunable, Problem]]:
    """One problem for each kernel and bucket: the first that falls into it."""
    found: dict[tuple[str, str], tuple[Tunable, Problem]] = {}
    for kernel in kernels:
        for shapes in workloads:
            for problem in kernel.problems(shapes):
                found.setdefault((kernel.name, kernel.bucket(problem)), (kernel, problem))
    return list(found.values())


def tune_problem(
    kernel: Tunable, problem: Problem, device: torch.device, rates: MachineRates, path: Path
) -> tuple[str, ...]:
    """Time a kernel's configurations on one problem, write the best into the table, and return its row to print.

    Raises:
        PsaqError: the kernel does not run here at all.
    """
    limits, bucket = device_limits(device), kernel.bucket(problem)
    candidates = tuner.time_candidates(kernel, problem, device, tuner.gpu_clock)
    total = len(kernel.candidates(problem, limits))
    try:
        timings = list(progress_bar(candidates, description=f"{kernel.name} {bucket}", total=total))
    except tuner.TuningError as error:
        raise PsaqError(str(error)) from error
    entry = tuner.best_entry(kernel, problem, timings, limits)
    tuning.merge_into_table(path, [entry])
    gain, of_bound = entry.default_us / entry.best_us, 1e6 * kernel.bound(problem, rates) / entry.best_us
    times = (f"{entry.default_us:.1f}", f"{entry.best_us:.1f}", f"{gain:.2f}×", f"{of_bound:.0%}")
    return (kernel.name, bucket, *times, str(entry.config))


# For GPUs elsewhere ---------------------------------------------------------------------------------------------------


def check_targets(targets: list[str], kernels: list[Tunable], workloads: list[Workload]) -> None:
    """Compile every configuration for the targets and print what each uses.

    Raises:
        PsaqError: one does not compile, spills registers, or needs more shared memory than its target has.
    """
    print(f"Triton {tuning.triton_version()}")
    bad = 0
    for target in targets:
        findings = list(_findings(target, kernels, workloads))
        header = ("kernel", "configuration", "registers", "spilled", "shared", "")
        print(f"{target}: {target_limits(target).shared_bytes} bytes of shared memory per block")
        print(table(header, [_finding_row(finding) for finding in findings]))
        bad += sum(not finding.is_good for finding in findings)
    if bad:
        raise PsaqError(f"{bad} configurations do not fit their target: see the rows marked above")


def _findings(target: str, kernels: list[Tunable], workloads: list[Workload]) -> Iterator[Finding]:
    requests = distinct_requests(kernels, workloads, target)
    for kernel, config, request in progress_bar(requests, description=target, unit="configuration"):
        yield check_request(kernel.name, config, request, target)


def _finding_row(finding: Finding) -> tuple[str, ...]:
    used = finding.resources
    if used is None:
        return (finding.kernel, str(finding.config), "", "", "", f"does not compile: {finding.error}")
    numbers = (str(used.registers), str(used.spilled_bytes), str(used.shared_bytes))
    return (finding.kernel, str(finding.config), *numbers, "" if finding.is_good else "does not fit")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns of text, as wide as they need to be."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    run_command(Tune)
