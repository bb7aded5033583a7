"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

JSON = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
