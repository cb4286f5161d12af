"""All that only a GPU can show, the most valuable first, in the minutes that one is there:

    python kernels/benchmarks/on_gpu.py --out FOLDER --minutes 9
    python kernels/benchmarks/on_gpu.py --continue FOLDER --minutes 9     # what was not reached
    python kernels/benchmarks/on_gpu.py --out FOLDER --rehearse           # every stage at toy sizes on a CPU

It installs and downloads nothing. A stage that hangs, crashes or fails is ended and named in FOLDER/summary.json, and
the next one runs; what it found until then is kept. FOLDER gets at most eight files: the summary, one CSV for each of
similarity_density, quant_linear, inference and synthesis, the tuned table, a picture, and the logs in an archive, from
which --continue goes on.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import findings  # type: ignore[import-not-found]
import outcome  # type: ignore[import-not-found]
from outcome import Work
from staging import AT_BUDGET, DONE, Ended, Stage, run  # type: ignore[import-not-found]

BENCHMARKS = Path(__file__).parent
ROOT = BENCHMARKS.parents[1]
TEST_PROCESSES = 12  # that share the GPU, each busy with compiling most of the time
TUNED_BATCHES = (32, 128, 1, 8)


def stages(work: Work, rehearse: bool) -> list[Stage]:
    """The stages, the most valuable first; a weight is about the seconds that a stage gets of nine minutes."""
    default, tuned, real = {"configuration": "default"}, {"configuration": "tuned"}, {"rehearse": rehearse}

    def cases(name: str, weight: float, where: str, **options: Any) -> Stage:
        command = [sys.executable, str(BENCHMARKS / "findings.py"), where, str(work.path(name))]
        return Stage(name, weight, [*command, json.dumps(real | options)], work.path(name), environment(work, rehearse))

    def code(name: str, weight: float, command: list[str], **variables: str) -> Stage:
        found = {"PSAQ_FINDINGS": str(work.path(name)), **variables}
        return Stage(name, weight, command, work.path(name), environment(work, rehearse) | found)

    speed = "psaq.experiments.speed"
    return [
        cases("check", 60, "check_cases:cases"),
        cases("linear", 50, "linear_cases:cases", **default),
        cases("density", 40, "density_cases:cases", **default),
        cases("inference", 90, f"{speed}:inference_cases", **default),
        cases("synthesis", 50, f"{speed}:synthesis_cases", **default),
        code("tests", 60, _tests(rehearse)),
        code("tune", 90, _tune(rehearse)),
        cases("linear-tuned", 25, "linear_cases:cases", **tuned),
        cases("density-tuned", 10, "density_cases:cases", **tuned),
        cases("inference-tuned", 30, f"{speed}:inference_cases", **tuned),
        cases("synthesis-tuned", 15, f"{speed}:synthesis_cases", **tuned),
        cases("where", 15, "machine_cases:cases"),
        cases("profile", 20, f"{speed}:profile_cases"),
    ]


def _tests(rehearse: bool) -> list[str]:
    """Another torch or Triton may warn of what is no error, and so does pytest where pytest-timeout is absent."""
    where, processes = ("tests/gpu/test_density.py", 1) if rehearse else ("tests/gpu", TEST_PROCESSES)
    side_by_side = ["-n", str(processes)] if importlib.util.find_spec("xdist") else []
    return [sys.executable, "-m", "pytest", where, "-W", "default", "-p", "pytest_findings", *side_by_side]


def _tune(rehearse: bool) -> list[str]:
    """Called as code: psaq's command line needs a package more."""
    real = f"for batch in {TUNED_BATCHES}: Tune(model=('deit_base',), batch=batch).run()"
    toy = "Tune(model=('micro_vit',), batch=1, kernel=('similarity_density.center',)).run()"
    main = f"if __name__ == '__main__':\n    {toy if rehearse else real}"  # its processes import this, too
    return [sys.executable, "-c", f"from psaq.tune import Tune\n{main}"]


def environment(work: Work, rehearse: bool) -> dict[str, str]:
    """The packages from the checkout, and the tuned tables in the working folder; Triton's interpreter to rehearse."""
    roots = [ROOT, ROOT / "kernels", ROOT / "plots", BENCHMARKS, os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(str(path) for path in roots if str(path))
    variables = {"PYTHONPATH": paths, "PSAQ_CACHE_DIR": str(work.cache)}
    return variables | ({"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"} if rehearse else {})


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the results go; by default the folder that is continued")
    parser.add_argument("--continue", dest="earlier", type=Path, help="the results of an earlier call, to go on from")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in _named()], help="some of the stages")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    options = parser.parse_args()
    if not (options.out or options.earlier):
        parser.error("say where the results go: --out FOLDER, or --continue FOLDER")
    return options


def _named() -> list[Stage]:
    with tempfile.TemporaryDirectory() as folder:
        return stages(Work(Path(folder)), rehearse=True)


def main() -> None:
    options = parse()
    out = (options.out or options.earlier).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        before = _earlier(options.earlier, work) if options.earlier else []
        chosen = [stage for stage in stages(work, options.rehearse) if not options.only or stage.name in options.only]
        over = {ended.stage for ended in before if ended.verdict == DONE and not ended.refused}
        todo = [stage for stage in chosen if stage.name not in over]
        others = [ended for ended in before if ended.stage not in {stage.name for stage in todo}]
        ended = run(todo, 60 * options.minutes, work.logs, ROOT, lambda ended: outcome.write(out, work, others + ended))
        outcome.picture(out, work)
    raise SystemExit(any(stage.verdict not in (DONE, AT_BUDGET) for stage in ended))


def _earlier(folder: Path, work: Work) -> list[Ended]:
    """How the stages of an earlier call ended. What came to nothing is tried again."""
    work.unpack(folder / outcome.ARCHIVE)
    for path in work.found.glob("*.jsonl"):
        findings.forget_refused(path)
    return outcome.ended_before(folder)


if __name__ == "__main__":
    main()
