"""``report.html``: everything a run left behind on one page, in one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from psaq.files import write_text
from psaq.reports import sections
from psaq.reports.chapters import chapters, result_pictures
from psaq.runs import check_files, read_run

REPORT_FILE = "report.html"
TEMPLATE = "report.html.jinja"


def write_report(folder: Path | str) -> Path:
    """Write ``report.html`` beside a run's ``run.json``. Returns its path.

    The page holds its pictures and styles, and asks no network for anything. It shows what the run recorded and nothing
    else, in the order in which it is asked for: what was asked, what came of it, pictures, densities; configuration,
    timings and versions are folded away.

    Raises:
        PsaqError: there is no run in the folder, or one of its files is damaged; no report is written then.
    """
    folder = Path(folder)
    path = folder / REPORT_FILE
    write_text(path, _environment().get_template(TEMPLATE).render(_contents(folder, _record(folder))))
    return path


def _record(folder: Path) -> Mapping[str, Any]:
    record = read_run(folder)
    check_files(folder, record)
    return record


def _contents(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    results = record.get("results") or {}
    rows = results.get("table") or []
    return {
        "title": f"psaq {record['command']}",
        "facts": sections.run_facts(record),
        "table": sections.result_table(rows) if rows else None,
        "summary": str(results.get("summary") or ""),
        "scores": sections.other_results(results),
        "sizes": sections.model_sizes(results.get("sizes") or {}),
        "result_pictures": list(result_pictures(results)),
        "chapters": chapters(folder),
        "details": {
            "Configuration": sections.flat_config(record.get("config") or {}),
            "Timings": {step: sections.duration(time) for step, time in (record.get("timings") or {}).items()},
            "Versions": {name: str(version) for name, version in (record.get("versions") or {}).items()},
        },
    }


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("psaq.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
