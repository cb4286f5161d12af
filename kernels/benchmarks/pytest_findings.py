"""A pytest plugin: the most telling tests first, each outcome written as it comes, none run twice."""

import os
from pathlib import Path
from typing import Any

import findings  # type: ignore[import-not-found]

TELLING = (
    "test_a_deployed_model_stays_close_and_compiles",
    "test_a_captured_model_answers_as_the_model_does",
    "test_results_repeat_to_the_bit",
    "test_all_layers_of_a_model_are_each_by_itself",
    "test_a_cuda_graph_replays_both_passes",
    "test_density_entropy_and_gradient_are_those_of_the_direct_sum",
    "test_memory_grows_with_the_features_and_not_with_the_pairs",
    "test_gelu_in_the_kernel",
    "test_layer_norm_levels_are_the_nearest",
    "test_both_backends_give_the_same_bits",
)
"""Names of tests in the order in which they are worth their time; those not named come after."""


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Recorder(Path(os.environ["PSAQ_FINDINGS"]), hasattr(config, "workerinput")))


class Recorder:
    """Writes for the process that the user started; those that only run tests for it are silent."""

    def __init__(self, path: Path, is_helper: bool):
        self.path = path
        self.is_helper = is_helper
        self.known = {row["what"] for row in findings.read(path)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        left = [item for item in items if item.nodeid not in self.known]
        items[:] = sorted(left, key=lambda item: _rank(item.originalname))

    def pytest_runtest_logreport(self, report: Any) -> None:
        over = report.when == "call" or report.outcome != "passed"
        if over and not self.is_helper:
            findings.write(self.path, {"what": report.nodeid}, _found(report))


def _rank(name: str) -> int:
    return TELLING.index(name) if name in TELLING else len(TELLING)


def _found(report: Any) -> findings.Row:
    outcome = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.outcome != "failed":
        return outcome
    crash = getattr(report.longrepr, "reprcrash", None)
    return outcome | {findings.REFUSED: str(crash.message if crash else report.longrepr).splitlines()[0][:300]}
