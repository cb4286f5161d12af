"""What ``psaq benchmark synthesis`` does."""

import csv
import math
from pathlib import Path

from psaq.benchmarks.synthesis import EAGER, MODEL, STEP, peak_memory, variant
from psaq.benchmarks.timing import medians
from psaq.commands.benchmark_synthesis import BenchmarkSynthesis
from psaq.commands.options import choose_device
from psaq.files import write_whole
from psaq.runs import device_name, versions


def run(options: BenchmarkSynthesis) -> None:
    rows = [row for count in options.images for row in _rows(options, count)]
    device = device_name(choose_device(options.model.device))
    print(f"{options.model.model} on {device}, torch {versions()['torch']}")
    print(f"{'images':>6}  {'what':<28}{'ms':>10}{'× model':>9}{'peak MB':>10}{'× model':>9}")
    for row in rows:
        print(
            f"{row['images']:>6}  {row['what']:<28}{row['ms']:>10.1f}{row['time_ratio']:>9.2f}"
            f"{row['peak_mb']:>10.0f}{row['memory_ratio']:>9.2f}"
        )
    if options.out:
        _write_csv(options.out, rows, {"model": options.model.model, "device": device, **versions()})


def _rows(options: BenchmarkSynthesis, count: int) -> list[dict]:
    names = [MODEL, STEP] + ([EAGER] if options.eager else [])
    load = options.model.load
    memory = {name: peak_memory(load, name, count) if options.memory else math.nan for name in names}
    model = load()
    seconds = medians({name: variant(name, model, count) for name in names}, options.repeats, f"{count} images")
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


def _write_csv(path: Path, rows: list[dict], common: dict[str, str]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, **common} for row in rows)

    write_whole(path, write)
