"""The report of a run: one page that works offline, and its main figures as PNGs."""

from pipelines.report.page import write_report

__all__ = ["write_report"]
