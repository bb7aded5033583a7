"""What layers give for images, kept and probed: `extract`."""

from ftcli.analysis.extraction.course import Wish, extract

__all__ = ["Wish", "extract"]
