"""The only place that prints: results on standard output, progress and words for people on standard error."""

from ftcli.console.predictions import Form, write_predictions
from ftcli.console.rendering import print_result
from ftcli.console.tables import is_file, open_console
from ftcli.console.terminal import Terminal, print_faults

__all__ = ["Form", "Terminal", "is_file", "open_console", "print_faults", "print_result", "write_predictions"]
