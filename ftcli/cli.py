"""The command line: the app, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from ftcli import __version__
from ftcli.commands.cache import cache
from ftcli.commands.compare import compare
from ftcli.commands.data import data
from ftcli.commands.evaluate import evaluate
from ftcli.commands.extract import extract
from ftcli.commands.init import init
from ftcli.commands.inspect import inspect
from ftcli.commands.predict import predict
from ftcli.commands.schema import schema
from ftcli.commands.train import train
from ftcli.console import print_errors
from ftcli.errors import FtcliError, RunTerminatedError

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for command in (init, inspect, train, extract, evaluate, compare, predict, schema):
    app.command(no_args_is_help=False)(command)
app.add_typer(data, name="data")
app.add_typer(cache, name="cache")

_GC_THRESHOLD = 50_000
"""Objects after which Python looks for those that are no longer reached. It would after 700, again and again while
torch is loaded, whose objects all stay: a quarter of the time until a command begins."""


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"ftcli {__version__}")
        raise typer.Exit


@app.callback()
def app_callback(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fine-tune image classifiers from YAML recipes."""


def main() -> None:
    """Run the command line. Exits with 0, the error's own code, or 130 or 143 when interrupted or terminated."""
    # OpenMP reads this once, when torch is loaded. Its threads otherwise spin while they wait for one another, which on
    # a machine that has anything else to do (our own loaders, for one) makes a step several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(_GC_THRESHOLD)
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # File names may hold bytes that are no UTF-8; they are shown escaped instead of ending the program.
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
        # Typer makes an exit with 130 of a KeyboardInterrupt, without a word.
        print_errors(["stopped at once; what was saved last is whole"])
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        filename = error.filename if error.filename is not None else "input or output"
        print_errors([f"{filename}: {error.strerror}; check the path, its permissions and the space on its disk"])
        sys.exit(1)


def _replace_closed_streams() -> None:
    """Let the streams that whoever started us has closed be empty and silent, in the order of their numbers: a file
    that is opened takes the lowest that is free, and would get what is written to standard output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the process ends


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends as an error does, so that nothing half made is left behind."""
    raise RunTerminatedError("terminated; nothing is half written")
