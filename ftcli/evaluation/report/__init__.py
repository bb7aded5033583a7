"""An evaluation as a page that people read: `write_report`."""

from ftcli.evaluation.report.page import ReportContext, check_report_path, write_report

__all__ = ["ReportContext", "check_report_path", "write_report"]
