"""``psaq benchmark synthesis``: a synthesis step beside the model's own forward and backward, side by side."""

import csv
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from psaq.commands.benchmark_synthesis import BenchmarkSynthesis
from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError
from psaq.files import write_whole
from psaq.images.batches import gaussian_images
from psaq.losses import REFERENCE_GRID_POINTS
from psaq.models.features import Features, PatchFeatureRecorder
from psaq.models.zoo import num_classes
from psaq.progress import progress_bar
from psaq.runs import device_name, versions
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.loop import Synthesis, frozen
from psaq_kernels import density_entropy
from psaq_kernels.eager import eager_similarity_density

MODEL = "model forward + backward"
STEP = "synthesis step"
EAGER = "synthesis step, eager loss"


def run(options: BenchmarkSynthesis) -> None:
    rows = [row for count in options.images for row in _rows(options, count)]
    print(f"{options.model.model} on {device_name()}, torch {versions()['torch']}")
    print(f"{'images':>6}  {'what':<28}{'ms':>10}{'× model':>9}{'peak MB':>10}{'× model':>9}")
    for row in rows:
        print(
            f"{row['images']:>6}  {row['what']:<28}{row['ms']:>10.1f}{row['time_ratio']:>9.2f}"
            f"{row['peak_mb']:>10.0f}{row['memory_ratio']:>9.2f}"
        )
    if options.out:
        _write_csv(options.out, rows, options.model.model)


def _rows(options: BenchmarkSynthesis, count: int) -> list[dict]:
    names = [MODEL, STEP] + ([EAGER] if options.eager else [])
    memory = {name: peak_memory(options.model, name, count) if options.memory else math.nan for name in names}
    seconds = _seconds(options, names, count)
    return [
        {
            "images": count,
            "what": name,
            "ms": seconds[name] * 1e3,
            "time_ratio": seconds[name] / seconds[MODEL],
            "peak_mb": memory[name] / 2**20,
            "memory_ratio": memory[name] / memory[MODEL] if memory[MODEL] else math.nan,
        }
        for name in names
    ]


def _seconds(options: BenchmarkSynthesis, names: Sequence[str], count: int) -> dict[str, float]:
    model = options.model.load()
    variants = {name: _variant(name, model, count) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    with progress_bar(description=f"{count} images", total=(options.repeats + 1) * len(names), unit="run") as bar:
        for repeat in range(options.repeats + 1):
            for name, run in variants.items():
                seconds = _timed(run)
                if repeat:  # the first round warms up
                    taken[name].append(seconds)
                bar.update()
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_memory(options: ModelOptions, name: str, count: int) -> float:
    """Bytes that a variant's first run adds to the peak, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_in_this_process, (options, name, count))


def _peak_in_this_process(options: ModelOptions, name: str, count: int) -> float:
    model = options.load()
    device = next(model.parameters()).device
    _variant(name, model, 1)()  # libraries and kernels load now, not in the measured run
    run = _variant(name, model, count)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = _reset_peak()
    run()
    return _status("VmHWM") - before


def _reset_peak() -> int:
    """Forget the process's peak so far (loading the libraries is part of it). Returns what it holds now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise PsaqError(f"peak memory cannot be measured on this system ({error}); take --no-memory") from error
    return _status("VmRSS")


def _status(name: str) -> int:
    """A figure of this process in bytes, as Linux keeps it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise PsaqError(f"peak memory cannot be measured on this system (no {name}); take --no-memory")


def _variant(name: str, model: nn.Module, count: int) -> Callable[[], object]:
    if name == MODEL:
        return _model_alone(model, count)
    return _eager_step(model, count) if name == EAGER else _synthesis_step(model, count)


def _model_alone(model: nn.Module, count: int) -> Callable[[], object]:
    device = next(model.parameters()).device
    images = gaussian_images(model, count).to(device).requires_grad_()
    labels = torch.zeros(count, dtype=torch.long, device=device)

    def run() -> object:
        with frozen(model):
            loss = nn.functional.cross_entropy(model(images), labels)
            return torch.autograd.grad(loss, images)

    return run


def _synthesis_step(model: nn.Module, count: int) -> Callable[[], object]:
    config = SynthesisConfig(num_images=count, batch_size=count, steps=1000, film_frames=0, precision="float32")
    synthesis = Synthesis(model, config)
    batch = synthesis.start(0, count)

    recorder = PatchFeatureRecorder(model, config.heads)

    def run() -> object:
        with frozen(model), recorder.attached():
            synthesis.advance(recorder, batch, 0)
        return batch.history

    return run


def _eager_step(model: nn.Module, count: int) -> Callable[[], object]:
    device = next(model.parameters()).device
    images = gaussian_images(model, count).to(device).requires_grad_()
    labels = torch.randint(num_classes(model), (count,), device=device)
    optimiser = torch.optim.Adam([images], lr=0.2, betas=(0.5, 0.9))

    recorder = PatchFeatureRecorder(model, "mean")

    def run() -> object:
        with frozen(model), recorder.attached():
            loss = nn.functional.cross_entropy(model(images), labels)
            for layer in recorder.features:
                loss = loss - eager_entropy(layer)
            (images.grad,) = torch.autograd.grad(loss, images)
        optimiser.step()
        return loss

    return run


def eager_entropy(layer: Features, bandwidth: float = 0.01) -> Tensor:
    """The entropy of one layer at 10 points, as the paper's equations read; mean over images."""
    with torch.no_grad():
        unit = nn.functional.normalize(layer, dim=-1)
        lowest, highest = torch.aminmax(unit @ unit.mT)
    grid = torch.linspace(float(lowest), float(highest), REFERENCE_GRID_POINTS, device=layer.device)
    return density_entropy(eager_similarity_density(layer, grid, bandwidth), grid).mean()


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _write_csv(path: Path, rows: list[dict], model: str) -> None:
    common = {"model": model, "device": device_name(), **versions()}

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, **common} for row in rows)

    write_whole(path, write)
