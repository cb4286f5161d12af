"""The story of a run at a glance: ``report.html``, one file that needs no network."""

from psaq.reports.report import write_report

__all__ = ["write_report"]
