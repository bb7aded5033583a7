"""Console output: results on standard output, messages and progress on standard error."""

from ftcli.console.predictions import OutputFormat, write_predictions
from ftcli.console.rendering import print_result
from ftcli.console.terminal import TerminalReporter, print_errors

__all__ = ["OutputFormat", "TerminalReporter", "print_errors", "print_result", "write_predictions"]
