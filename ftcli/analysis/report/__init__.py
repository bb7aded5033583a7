"""An evaluation as a page that people read: `write_report`."""

from ftcli.analysis.report.page import Background, check_report, write_report

__all__ = ["Background", "check_report", "write_report"]
