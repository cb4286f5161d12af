"""The command line. Each command is a frozen dataclass: its fields are the options, ``run`` does the work."""

import importlib
import importlib.metadata
import sys
from typing import Any, Protocol, TypeVar

COMMANDS = {
    "demo": ("psaq.demo:Demo", "quantise both bundled models end to end, with a table and pictures"),
    "synthesize": ("psaq.commands.synthesize:Synthesize", "make calibration images from a model alone"),
    "quantize": ("psaq.commands.quantize:Quantize", "quantise a model on calibration images"),
    "evaluate": ("psaq.commands.evaluate:Evaluate", "measure accuracy and agreement with the FP model"),
    "plot-density": (
        "psaq.plot_density:PlotDensity",
        "draw the patch-similarity density of every layer (Fig. 3)",
    ),
    "benchmark": ("psaq.commands.benchmark:Benchmark", "time synthesis side by side with its peers"),
    "tune": ("psaq.tune:Tune", "tune the kernels on this GPU, or check them for a target"),
    "doctor": ("psaq.commands.doctor:Doctor", "say what this machine has and what psaq will use"),
}
"""Name → (where its dataclass is, what it is for). Imported only when asked for, so that help is quick."""


class Command(Protocol):
    """What a command's dataclass offers beside its options."""

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
    name, *options = arguments
    if name not in COMMANDS:
        print(f"psaq: error: there is no command {name!r}\n\n{_overview()}", file=sys.stderr)
        raise SystemExit(2)
    run_command(_find(name), options, prog=f"psaq {name}")


def run_command(command: type[C], arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Parse ``arguments`` (default: the process's own) into ``command`` and run it.

    Exits with code 2 and one message where the input is wrong, and with 130 on Ctrl-C.
    """
    import tyro

    from psaq.errors import PsaqError

    parsed: Any = tyro.cli(command, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes,))
    try:
        parsed.run()
    except PsaqError as error:
        print(f"psaq: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("psaq: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _find(name: str) -> type[Command]:
    module, _, dataclass_name = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), dataclass_name)


def _overview() -> str:
    lines = [f"  {name:<14}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: psaq COMMAND [OPTIONS]   (psaq COMMAND --help lists its options)", "", *lines])


if __name__ == "__main__":
    main()
