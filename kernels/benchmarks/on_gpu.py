"""All that only a GPU can show, in one command that installs and downloads nothing:

    python kernels/benchmarks/on_gpu.py --out FOLDER

Steps: what the machine has; the tests of the kernels at full size; tuning for the model; the density and the integer
linear layer beside their peers, and the whole model in integers beside float ones, with the tuned configurations.
Each step leaves a log and its tables in FOLDER, and FOLDER/summary.json says how it ended. A step that fails does not
keep the next from running; the exit code is then 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BENCHMARKS = Path(__file__).parent


def steps(out: Path, model: str, images: tuple[int, ...]) -> dict[str, list[str]]:
    """Step → its command. Those of psaq are called as code: its command line needs a package more."""
    counts = [str(count) for count in images]
    inference = (
        f"BenchmarkInference(model=ModelOptions({model!r}), random_weights=True, images={images}, "
        f"out=Path({str(out / 'inference')!r})).run()"
    )
    return {
        "machine": _code("from psaq.commands.doctor import Doctor; Doctor().run()"),
        # Another torch or Triton may warn of what is no error, and so does pytest where pytest-timeout is absent.
        "tests": _python("-m", "pytest", "tests/gpu", "-W", "default"),
        "tune": _code(f"from psaq.tune import Tune; Tune(model=({model!r},), batch={max(images)}).run()"),
        "density": _python(str(BENCHMARKS / "similarity_density.py"), "--images", *counts, "--out", str(out)),
        "linear": _python(str(BENCHMARKS / "quant_linear.py"), "--images", *counts, "--out", str(out)),
        "inference": _code(
            "from pathlib import Path",
            "from psaq.commands.benchmark_inference import BenchmarkInference",
            "from psaq.commands.options import ModelOptions",
            inference,
        ),
    }


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _code(*lines: str) -> list[str]:
    return _python("-c", "\n".join(lines))


def environment(out: Path) -> dict[str, str]:
    """The three packages from the checkout, and the tuned tables in ``out``."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "plots"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PSAQ_CACHE_DIR": str(out / "cache")}


def run_step(name: str, command: list[str], out: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Run one step with its output in a log, and say how it ended."""
    started = time.perf_counter()
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT).returncode
    seconds = round(time.perf_counter() - started, 1)
    print(
        f"{name:<10} {'done' if code == 0 else f'failed with code {code}'} in {seconds} s: {out / name}.log", flush=True
    )
    return {"step": name, "command": command, "code": code, "seconds": seconds}


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=steps(Path(), "", (1,)), help="some of the steps")
    parser.add_argument("--model", default="deit_base", help="to tune for and to run as a whole")
    parser.add_argument("--images", nargs="+", type=int, default=[1, 8, 32, 128], help="batch sizes")
    return parser.parse_args()


def main() -> None:
    options = parse()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    commands = steps(out, options.model, tuple(options.images))
    ended = [run_step(name, commands[name], out, environment(out)) for name in options.only or commands]
    (out / "summary.json").write_text(json.dumps(ended, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(any(step["code"] for step in ended))


if __name__ == "__main__":
    main()
