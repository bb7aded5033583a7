"""What layers give for images, kept and probed: `extract`."""

from ftcli.extraction.args import ExtractArgs
from ftcli.extraction.extract import extract
from ftcli.extraction.sources import SourceArgs

__all__ = ["ExtractArgs", "SourceArgs", "extract"]
