"""The command line: which commands there are, and what each is for."""

import importlib
import importlib.metadata
import sys

from psaq.program import Command, run_command, while_read
from psaq.suggestions import did_you_mean

COMMANDS = {
    "demo": ("psaq.commands.demo:Demo", "quantise the bundled models end to end, with a table and pictures"),
    "synthesize": ("psaq.commands.synthesize:Synthesize", "make calibration images from a model alone"),
    "quantize": ("psaq.commands.quantize:Quantize", "quantise a model on calibration images"),
    "evolve": (
        "psaq.commands.evolve:Evolve",
        "let images and quantised model teach each other: fewer bits, no data",
    ),
    "sensitivity": (
        "psaq.commands.sensitivity:MeasureSensitivity",
        "measure what quantising each layer alone costs",
    ),
    "evaluate": (
        "psaq.commands.evaluate:Evaluate",
        "measure classes, boxes or pixels, and agreement with the FP model",
    ),
    "table1": ("psaq.commands.table1:Table1", "repeat the paper's Table 1: real images, noise, synthesised images"),
    "export": (
        "psaq.commands.export:Export",
        "write a quantised model as ONNX and check it in onnxruntime and OpenVINO",
    ),
    "plot-density": (
        "psaq.commands.plot_density:PlotDensity",
        "draw the patch-similarity density of every layer (Fig. 3)",
    ),
    "plot-samples": (
        "psaq.commands.plot_samples:PlotSamples",
        "draw synthesised images in true colours (Fig. 2)",
    ),
    "plot-similarity": (
        "psaq.commands.plot_similarity:PlotSimilarity",
        "draw an image beside its patch-similarity maps",
    ),
    "plot-predictions": (
        "psaq.commands.plot_predictions:PlotPredictions",
        "draw boxes or pixels' classes by both models beside each other",
    ),
    "report": ("psaq.commands.report:ReportRun", "write a run's page, report.html, anew"),
    "benchmark inference": (
        "psaq.commands.benchmark_inference:BenchmarkInference",
        "time the integer model beside float ones, whole and by layer",
    ),
    "benchmark synthesis": ("psaq.commands.benchmark_synthesis:BenchmarkSynthesis", "time a step beside its peers"),
    "tune": ("psaq.commands.tune:Tune", "find the kernels' fastest configurations on this GPU"),
    "doctor": ("psaq.commands.doctor:Doctor", "say what this machine has and what psaq will use"),
}
"""Name → (where its dataclass is, what it is for). Imported only when asked for, so that help is quick."""


def main() -> None:
    """Entry point of ``psaq``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        with while_read():
            print(_overview())
        return
    if arguments[0] == "--version":
        print(f"psaq {importlib.metadata.version('psaq')}")
        return
    name, options = _split_name(arguments)
    if name not in COMMANDS:
        print(
            f"psaq: error: there is no command {name!r}{did_you_mean(name, COMMANDS)}\n\n{_overview()}", file=sys.stderr
        )
        raise SystemExit(2)
    run_command(_find(name), options, prog=f"psaq {name}")


def _split_name(arguments: list[str]) -> tuple[str, list[str]]:
    """A command's name is one word or two ("benchmark synthesis"); the rest are its options."""
    two_words = " ".join(arguments[:2])
    words = 2 if two_words in COMMANDS else 1
    return " ".join(arguments[:words]), arguments[words:]


def _find(name: str) -> type[Command]:
    module, _, dataclass_name = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), dataclass_name)


def _overview() -> str:
    lines = [f"  {name:<22}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: psaq COMMAND [OPTIONS]   (psaq COMMAND --help lists its options)", "", *lines])


if __name__ == "__main__":
    main()
