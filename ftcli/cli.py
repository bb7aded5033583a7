"""The Typer app and its entry point, which turns errors into messages and exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ftcli.commands.cache import cache
from ftcli.commands.compare import compare
from ftcli.commands.data import data
from ftcli.commands.evaluate import evaluate
from ftcli.commands.extract import extract
from ftcli.commands.init import init
from ftcli.commands.inspect import inspect
from ftcli.commands.options import Command
from ftcli.commands.predict import predict
from ftcli.commands.schema import schema
from ftcli.commands.train import train
from ftcli.console import print_errors
from ftcli.errors import FtcliError, RunTerminatedError
from ftcli.version import __version__

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for command in (init, inspect, train, extract, evaluate, compare, predict, schema):
    app.command(cls=Command, no_args_is_help=False)(command)
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")

_GC_THRESHOLD = 50_000
"""Allocations between garbage collections. With Python's default of 700, collections while torch is imported, which
free nothing, take a quarter of the start-up time."""


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"ftcli {__version__}")
        raise typer.Exit


@app.callback()
def app_callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune image classifiers from YAML recipes."""


def main() -> None:
    """Run the command line. Exit with 0, the exit code of the error, or 130 or 143 if interrupted or terminated."""
    # OpenMP reads this when torch is imported. Its threads otherwise spin while they wait, which makes training steps
    # several times slower on a machine with other work, such as our data loading.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(_GC_THRESHOLD)
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # File names may contain bytes that are not UTF-8; they are printed escaped.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # both are TextIOWrapper
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        app(standalone_mode=True)
    except FtcliError as error:
        print_errors(error.messages, error.table)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as exit_request:
        if isinstance(exit_request, SystemExit) and exit_request.code != 130:
            raise
        # Typer turns a KeyboardInterrupt into exit code 130 without a message.
        print_errors(["interrupted; the last saved files are complete"])
        sys.exit(130)
    except BrokenPipeError:
        # The reader of standard output has exited, as with `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        filename = error.filename if error.filename is not None else "input or output"
        print_errors([f"{filename}: {error.strerror}; check the path, its permissions and the free disk space"])
        sys.exit(1)


def _replace_closed_streams() -> None:
    """Open standard streams that were closed by the caller on /dev/null. Otherwise the next opened file would take
    their file descriptor, and output would be written into it. The order is that of the descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open until exit


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    """Raise an error, so that SIGTERM runs the same clean-up as other errors."""
    raise RunTerminatedError("terminated; the last saved files are complete")
