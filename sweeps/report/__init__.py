"""From run folders to a report. Data flows records -> tables -> listings and figures -> page."""

from sweeps.report.command import main, write_report

__all__ = ["main", "write_report"]
