"""``psaq report``: a run's page, written anew from its folder."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ReportRun:
    """Write `report.html` of a run anew: one file with its results, figures and configuration."""

    run_folder: tyro.conf.Positional[Path]
    """The folder that holds the run's run.json."""

    def run(self) -> None:
        from psaq.reports import write_report

        print(write_report(self.run_folder))
