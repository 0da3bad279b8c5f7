"""Figures and one self-contained HTML page for a run folder."""

from memtools.report.page import write_report

__all__ = ["write_report"]
