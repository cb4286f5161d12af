"""What ``psaq tune`` does."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from psaq.commands.tune import Tune
from psaq.errors import PsaqError
from psaq.models.features import record_patch_features
from psaq.models.zoo import build_model, data_config, named_source
from psaq.progress import progress_bar
from psaq_kernels import tuner, tuning
from psaq_kernels.aot import Finding, check_candidate, distinct_candidates, target_limits
from psaq_kernels.backends import interpreting
from psaq_kernels.compiling import COMPILE_SECONDS as LONGEST
from psaq_kernels.compiling import Compilers
from psaq_kernels.devices import TARGETS, device_limits
from psaq_kernels.tunable import MachineRates, Problem, Tunable, Workload, tunables
from psaq_kernels.tuner import Caller, Job, Timing
from psaq_kernels.tuning import Entry
from psaq_kernels.workers import Worker, Workers


def run(options: Tune) -> None:
    if options.target not in (None, "all", *TARGETS):
        raise PsaqError(f"--target must be one of {', '.join(TARGETS)} or all, got {options.target!r}")
    chosen = _kernels(options)
    workloads = [workload(name, options.batch) for name in options.model]
    if options.target is None:
        _tune(options, chosen, workloads)
    else:
        check_targets(list(TARGETS) if options.target == "all" else [options.target], chosen, workloads)


def _kernels(options: Tune) -> list[Tunable]:
    try:
        known = tunables()
    except ImportError as error:
        raise PsaqError(f"the kernels cannot be loaded ({error}); install triton") from error
    chosen = [kernel for kernel in known if not options.kernel or kernel.name.startswith(options.kernel)]
    if not chosen:
        raise PsaqError(f"--kernel: none begins so; there are {', '.join(kernel.name for kernel in known)}")
    return chosen


def _tune(options: Tune, kernels: list[Tunable], workloads: list[Workload]) -> None:
    device = _gpu()
    limits = device_limits(device)
    path = tuning.table_path(tuning.SHIPPED if options.export else tuning.cache_folder(), limits.name)
    _check_writable(path)
    rates = tuner.measure_rates(device, tuner.gpu_clock)
    jobs = [Job(kernel, problem, limits) for kernel, problem in distinct_problems(kernels, workloads)]
    known = {} if options.again else {(entry.operation, entry.bucket): entry for entry in _known(path, jobs)}
    missing = [job for job in jobs if (job.kernel.name, job.bucket) not in known]
    print(_plan(jobs, missing))
    outcomes = {(job.kernel.name, job.bucket): outcome for job, outcome in tune_jobs(missing, path)}
    print(table(HEADER, [_row(job, (known | outcomes)[job.kernel.name, job.bucket], rates) for job in jobs]))
    print(f"written to {path}")
    _report_refusals(list(outcomes.values()))


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
    """The GPU; the CPU where Triton's interpreter stands in for one, which is good for a rehearsal."""
    if interpreting(torch.device("cpu")) and not torch.cuda.is_available():
        return torch.device("cpu")
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


HEADER = ("kernel", "shape", "default µs", "best µs", "gain", "of bound", "configuration")


@dataclass(frozen=True)
class Tuned:
    """What tuning a kernel for a bucket came to."""

    entry: Entry
    refusals: tuple[str, ...]
    """By the compiler or the driver, of configurations that were passed over."""


Outcome = Tuned | tuner.TuningError


def _known(path: Path, jobs: Sequence[Job]) -> list[Entry]:
    """What the table holds for the kernels, the device and the Triton at hand."""
    sources = {(job.kernel.source_hash, tuning.triton_version(), job.limits.name) for job in jobs}
    return [entry for entry in tuning.read_table(path) if (entry.source, entry.triton, entry.device) in sources]


def _plan(jobs: Sequence[Job], missing: Sequence[Job]) -> str:
    candidates = sum(len(job.kernel.candidates(job.problem, job.limits)) for job in missing)
    kept = sum(len(job.configs) for job in missing)
    return (
        f"{len(jobs)} shapes, of which the table holds {len(jobs) - len(missing)}; "
        f"for the others {candidates} configurations, of which {kept} may win"
    )


def tune_jobs(jobs: Sequence[Job], path: Path) -> Iterator[tuple[Job, Outcome]]:
    """Compile side by side and time one after the other; each job's winner goes into the table at once."""
    total = 2 * sum(len(job.configs) for job in jobs)
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(description="tuning", total=total, unit="step"))
        caller, compilers = _caller(), _compilers()
        stack.callback(caller.end)
        if compilers is not None:
            stack.enter_context(compilers)
        begun = [[] if compilers is None else tuner.start_compiling(job, compilers) for job in jobs]
        for job, compilations in zip(jobs, begun, strict=True):
            bar.set_postfix_str(f"{job.kernel.name} {job.bucket}")
            refusals = [""] * len(job.configs)
            for rank, compilation in enumerate(compilations):
                refusals[rank] = tuner.refusal(compilation, job.limits)
                bar.update()
            yield job, _tune_job(job, caller, refusals, path, bar)


def _caller() -> Caller:
    return Worker()


def _compilers() -> Compilers | None:
    """None where kernels are not compiled but interpreted."""
    return Compilers() if torch.cuda.is_available() else None


def _tune_job(job: Job, caller: Caller, refusals: Sequence[str], path: Path, bar: Any) -> Outcome:
    timings: list[Timing] = []
    try:
        for timing in tuner.time_job(job, caller, refusals):
            timings.append(timing)
            bar.update(len(timings) <= len(job.configs))
    except tuner.TuningError as error:
        return error
    entry = job.entry(timings)
    tuning.merge_into_table(path, [entry])
    return Tuned(entry, tuple(f"{timing.config}: {timing.refusal}" for timing in timings if timing.refusal))


def _report_refusals(outcomes: Sequence[Outcome]) -> None:
    """Raises PsaqError where a kernel does not run at all."""
    for outcome in outcomes:
        if isinstance(outcome, Tuned) and outcome.refusals:
            print(f"passed over, {outcome.entry.operation} {outcome.entry.bucket}:", *outcome.refusals, sep="\n  ")
    failed = [str(outcome) for outcome in outcomes if isinstance(outcome, tuner.TuningError)]
    if failed:
        raise PsaqError("; ".join(failed))


def _row(job: Job, outcome: Outcome | Entry, rates: MachineRates) -> tuple[str, ...]:
    if isinstance(outcome, tuner.TuningError):
        return (job.kernel.name, job.bucket, "", "", "", "", "the default does not run")
    entry = outcome.entry if isinstance(outcome, Tuned) else outcome
    refused = len(outcome.refusals) if isinstance(outcome, Tuned) else 0
    gain, of_bound = entry.default_us / entry.best_us, 1e6 * job.kernel.bound(job.problem, rates) / entry.best_us
    times = (f"{entry.default_us:.1f}", f"{entry.best_us:.1f}", f"{gain:.2f}×", f"{of_bound:.0%}")
    return (job.kernel.name, job.bucket, *times, f"{entry.config}{f' ({refused} refused)' if refused else ''}")


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
    """On all cores; a compiler that crashes or hangs has refused."""
    candidates = distinct_candidates(kernels, workloads, target)
    with Workers() as workers:
        pending = [
            workers.submit(check_candidate, kernel.name, tuple(problem.items()), config, target, seconds=LONGEST)
            for kernel, problem, config in candidates
        ]
        both = zip(candidates, pending, strict=True)
        bar = progress_bar(both, description=target, total=len(pending), unit="configuration")
        for (kernel, _, config), future in bar:
            refused = future.exception()
            limits = target_limits(target)
            yield Finding(kernel.name, config, limits, None, str(refused)) if refused else future.result()


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
