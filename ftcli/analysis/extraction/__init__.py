"""What layers give for images, kept and probed: `extract`."""

from ftcli.analysis.extraction.course import extract
from ftcli.analysis.extraction.sources import Target
from ftcli.analysis.extraction.wishes import Wish

__all__ = ["Target", "Wish", "extract"]
