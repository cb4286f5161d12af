"""The command line. Each command is a frozen dataclass: its fields are the options, ``run`` does the work."""

import dataclasses
import importlib
import importlib.metadata
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

COMMANDS = {
    "demo": ("psaq.commands.demo:Demo", "quantise the bundled models end to end, with a table and pictures"),
    "synthesize": ("psaq.commands.synthesize:Synthesize", "make calibration images from a model alone"),
    "quantize": ("psaq.commands.quantize:Quantize", "quantise a model on calibration images"),
    "sensitivity": (
        "psaq.commands.sensitivity:MeasureSensitivity",
        "measure what quantising each layer alone costs",
    ),
    "evaluate": (
        "psaq.commands.evaluate:Evaluate",
        "measure classes, boxes or pixels, and agreement with the FP model",
    ),
    "table1": ("psaq.commands.table1:Table1", "repeat the paper's Table 1: real images, noise, synthesised images"),
    "export": ("psaq.commands.export:Export", "write a quantised model as ONNX and check it in onnxruntime"),
    "plot-density": (
        "psaq.plot_density:PlotDensity",
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
    "tune": ("psaq.tune:Tune", "find the kernels' fastest configurations on this GPU"),
    "doctor": ("psaq.commands.doctor:Doctor", "say what this machine has and what psaq will use"),
}
"""Name → (where its dataclass is, what it is for). Imported only when asked for, so that help is quick."""


class Command(Protocol):
    """What a command's dataclass offers beside its options. One with ``scales_out = True`` runs under torchrun."""

    def run(self) -> None: ...


C = TypeVar("C", bound=Command)


def main() -> None:
    """Entry point of ``psaq``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return
    if arguments[0] == "--version":
        print(f"psaq {importlib.metadata.version('psaq')}")
        return
    name, options = _split_name(arguments)
    if name not in COMMANDS:
        from psaq.suggestions import did_you_mean

        print(
            f"psaq: error: there is no command {name!r}{did_you_mean(name, COMMANDS)}\n\n{_overview()}", file=sys.stderr
        )
        raise SystemExit(2)
    run_command(_find(name), options, prog=f"psaq {name}")


def run_command(command: type[C], arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Parse ``arguments`` (default: the process's own) into ``command`` and run it.

    A command with presets (``presets() -> dict[str, instance]``) takes its defaults from ``--preset NAME``.

    Exits with code 2 and one message where the input is wrong; with 130 on Ctrl-C and 143 on SIGTERM, and the
    command that goes on.
    """
    import tyro

    from psaq.errors import PsaqError

    arguments = sys.argv[1:] if arguments is None else arguments
    preset = _preset(command, arguments)
    defaults = {} if preset is None else {"default": preset}
    parsed: Any = tyro.cli(command, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes,), **defaults)
    name = prog or command.__name__.lower()
    try:
        with _told_to_stop():
            _run(parsed, name)
    except PsaqError as error:
        print(f"psaq: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        print(f"psaq: error: {_out_of_memory(error, parsed)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stopped:
        told = isinstance(stopped, _Terminated)
        goes_on = shlex.join([*name.split(), *arguments])
        print(f"psaq: {'stopped' if told else 'interrupted'}; to go on: {goes_on}", file=sys.stderr)
        raise SystemExit(143 if told else 130) from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _out_of_memory(error: RuntimeError, command: Any) -> str:
    """What happened, and the command's own options that need less: none is changed unasked, for the batch is a part
    of what a run's result depends on."""
    there = _option_names(command)
    fewer = [f"--{name.replace('_', '-')}" for name in ("batch_size", "num_images") if name in there]
    ways = [f"a smaller {' or '.join(fewer)}"] if fewer else []
    ways += ["--device cpu"] if "device" in there else []
    what = f"the GPU's memory is full ({str(error).partition('. GPU ')[0]})"
    return f"{what}; give {', or '.join(ways)}" if ways else f"{what}; make room on it"


def _option_names(command: Any) -> set[str]:
    """The names of a command's options, those of its groups included."""
    names = set()
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        names |= _option_names(value) if dataclasses.is_dataclass(value) else {field.name}
    return names


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which like Ctrl-C lets everything be put in order first."""


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Raise `_Terminated` where the process is asked to end; only the main thread is told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(command: Any, name: str) -> None:
    """Run a command; as one of several ranks where torchrun started it."""
    from psaq.distributed import SharedError, is_first, is_launched, launched
    from psaq.errors import PsaqError

    if not is_launched():
        command.run()
        return
    if not getattr(command, "scales_out", False):
        raise PsaqError(f"{name} runs as one process: start it without torchrun")
    with launched():
        try:
            command.run()
        except SharedError:
            if is_first():
                raise
            # The launcher ends the others as soon as one fails, and the first one still has to say why.
            raise SystemExit(0) from None


def _preset(command: type[Command], arguments: list[str]) -> Any:
    """The instance that ``--preset NAME`` names, for its fields to be the defaults of this call."""
    presets: dict[str, Command] = getattr(command, "presets", dict)()
    for index, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == "--preset":
            name = value or next(iter(arguments[index + 1 :]), "")
            return presets.get(name)
    return None


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
