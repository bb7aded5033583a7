"""Tests of the command line as a process: start, help, usage errors, streams."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from ftcli import __version__
from tests.conftest import Ftcli

ARGUMENTS = {
    "init": "{DIR}",
    "inspect": "[MODEL|GLOB|RECIPE|CHECKPOINT]",
    "train": "[RECIPE]",
    "extract": "{MODEL|RECIPE|CHECKPOINT}",
    "evaluate": "{CHECKPOINT}",
    "compare": "{RUN...}...",
    "predict": "{CHECKPOINT} [IMAGE...]...",
    "data download": "{NAME}",
    "cache clear": "[NAME...]...",
}


COMMANDS = ("init", "inspect", "train", "extract", "evaluate", "compare", "predict", "schema", "data", "cache")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_cli_runs_as_module(ftcli: Ftcli) -> None:
    assert run("-m", "ftcli", "--version").stdout == f"ftcli {__version__}\n"
    assert ftcli("--version").out == f"ftcli {__version__}\n"


def test_help_and_recipe_errors_import_no_torch() -> None:
    for arguments in (["--help"], ["train", "--help"], ["train", "nothing.yaml"]):
        code = (
            "import sys; from ftcli.cli import main; sys.argv = ['ftcli', *sys.argv[1:]]\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print(sorted({'torch', 'torchvision', 'timm', 'sklearn', 'numpy', 'matplotlib', 'pydantic'} & "
            "set(sys.modules)))"
        )
        loaded = run("-c", code, *arguments).stdout.splitlines()[-1]
        assert loaded == "[]" if arguments == ["--help"] else loaded in ("[]", "['pydantic']")


def test_cli_raises_gc_threshold(ftcli: Ftcli) -> None:
    before = gc.get_threshold()
    gc.set_threshold(700)
    try:
        assert ftcli("--version").code == 0
        assert gc.get_threshold()[0] == 50_000
    finally:
        gc.set_threshold(*before)


def test_help_lists_every_command(ftcli: Ftcli) -> None:
    out = ftcli("--help").out
    descriptions = dict(line.split(maxsplit=1) for line in out.partition("Commands:\n")[2].splitlines())
    assert tuple(descriptions) == COMMANDS
    assert all(text.endswith(".") and not text.endswith("...") for text in descriptions.values())  # not truncated


@pytest.mark.parametrize("command", ["", *COMMANDS, "data download", "cache clear"])
def test_help_fits_80_columns(ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = ftcli(*command.split(), "--help").out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert not any(line.endswith("-") for line in lines)  # no name is split at its hyphen


def test_help_shows_metavars(ftcli: Ftcli) -> None:
    usage = {name: " ".join(ftcli(*name.split(), "--help").out.split("\n\n")[0].split()) for name in ARGUMENTS}
    assert {name: text.partition("[OPTIONS] ")[2] for name, text in usage.items()} == ARGUMENTS


def test_usage_errors_exit_with_2(ftcli: Ftcli) -> None:
    outcome = ftcli("train", "--nonsense")
    assert outcome.code == 2
    assert "No such option: --nonsense" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train r.yaml --verify", "--verify: unknown option; use --rehash"),
        ("extract r.yaml --workers 2", "--workers: unknown option; use --num-workers"),
        ("extract r.yaml --picture=a.png", "--picture: unknown option; use --plot"),
        ("evaluate a.pt --recall 0.9", "--recall: unknown option; use --min-recall"),
        ("inspect r.yaml --show-augment a.png", "--show-augment: unknown option; use --plot-augment"),
        ("inspect r.yaml --show-features a.jpg b.png", "--show-features: unknown option; use --plot-activations"),
        ("data fetch hotdog --out data", "ftcli data fetch: unknown command; use ftcli data download"),
    ],
)
def test_renamed_options_name_the_new_one(ftcli: Ftcli, arguments: str, sentence: str) -> None:
    outcome = ftcli(*arguments.split())
    assert (outcome.code, outcome.err) == (2, f"error: {sentence}\n")


def test_renamed_option_of_another_command_is_unknown(ftcli: Ftcli) -> None:
    outcome = ftcli("schema", "--verify")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1] == "Error: No such option: --verify"


def test_cli_ignores_closed_pipe() -> None:
    command = f"{sys.executable} -m ftcli inspect 'timm/*' | head -n 1"  # more than a pipe holds
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "model"
    assert done.stderr == ""


def test_cli_runs_with_closed_streams() -> None:
    empty = "error: -: standard input has no paths; write one path per line, as `find photos -name '*.jpg'` does\n"
    for arguments, expected in (
        ("predict a.pt - <&-", (3, "", empty)),
        ("schema >&-", (0, "", "")),
        ("nonsense 2>&-", (2, "", "")),
    ):
        line = f"{sys.executable} -m ftcli {arguments}"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == expected
