"""The command line as a process: its start, its streams, its exit."""

from __future__ import annotations

import gc
import subprocess
import sys

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
    names = ("init", "inspect", "train", "extract", "evaluate", "compare", "predict", "schema", "data", "cache")
    assert all(name in out for name in names)


def test_help_shows_metavars(ftcli: Ftcli) -> None:
    usage = {name: " ".join(ftcli(*name.split(), "--help").out.split("\n\n")[0].split()) for name in ARGUMENTS}
    assert {name: text.partition("[OPTIONS] ")[2] for name, text in usage.items()} == ARGUMENTS


def test_usage_errors_exit_with_2(ftcli: Ftcli) -> None:
    outcome = ftcli("train", "--nonsense")
    assert outcome.code == 2
    assert "No such option: --nonsense" in outcome.err


def test_cli_ignores_closed_pipe() -> None:
    command = f"{sys.executable} -m ftcli inspect 'timm/*' | head -n 1"  # more than a pipe holds
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "model"
    assert done.stderr == ""


def test_cli_runs_with_closed_streams() -> None:
    empty = "error: -: standard input names no image; write one path a line, as `find photos -name '*.jpg'` does\n"
    for words, expected in (
        ("predict a.pt - <&-", (3, "", empty)),
        ("schema >&-", (0, "", "")),
        ("nonsense 2>&-", (2, "", "")),
    ):
        line = f"{sys.executable} -m ftcli {words}"
        ended = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout, ended.stderr) == expected
