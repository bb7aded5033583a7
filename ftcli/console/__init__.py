"""The only place that prints: results on standard output, progress and words for people on standard error."""

from ftcli.console.predictions import OutputFormat, write_predictions
from ftcli.console.rendering import print_result
from ftcli.console.tables import is_regular_file, open_console
from ftcli.console.terminal import TerminalReporter, print_errors

__all__ = [
    "OutputFormat",
    "TerminalReporter",
    "is_regular_file",
    "open_console",
    "print_errors",
    "print_result",
    "write_predictions",
]
