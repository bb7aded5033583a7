"""The README is true: each of its commands runs, in order, in one folder; its recipe and its tables hold."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ftcli import errors
from ftcli.planning import plan_recipe
from ftcli.recipe.dataset_names import DATASET_NAMES
from ftcli.recipe.loading import read_recipe
from tests.conftest import CONFIGS, Ftcli

ROOT = CONFIGS.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def list_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in list_blocks("sh") for line in block.splitlines()]


@pytest.mark.slow
def test_readme_commands_run(few_cells: Path, ftcli: Ftcli) -> None:
    # The recipes as shipped, but for sizes that make them quick: the commands stay to the letter.
    for recipe in (few_cells / "configs").glob("*.yaml"):
        text = re.sub(r"image_size: \d+", "image_size: 32\n  num_workers: 0", recipe.read_text())
        recipe.write_text(re.sub(r"epochs: \d+", "epochs: 1", text))
    data = few_cells / "data"
    data.rename(few_cells / "cells")  # a newcomer has none until the first training makes them
    for command in COMMANDS:
        words = shlex.split(command)
        if words[:2] == ["ftcli", "train"] and not data.exists():
            (few_cells / "cells").rename(data)
        match words[0]:
            case "ftcli":
                arguments, target = (words[1:-2], words[-1]) if ">" in words else (words[1:], None)
                outcome = ftcli(*arguments)
                assert outcome.code == 0, f"{command}\n{outcome.err}"
                if target:
                    (few_cells / target).write_text(outcome.out)
            case "make":
                subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
            case _:
                assert command == "source .venv/bin/activate"  # venv's own
    (script,) = list_blocks("python")
    told = subprocess.run([sys.executable, "-c", script], cwd=few_cells, check=True, capture_output=True, text=True)
    assert len(told.stdout.splitlines()) == len(list((few_cells / "data/solar-cells/test").rglob("*.png")))


def test_readme_recipe_plans(tmp_path: Path) -> None:
    (block,) = list_blocks("yaml")
    (tmp_path / "flowers.yaml").write_text(block)
    assert [stage.stage.name for stage in plan_recipe(read_recipe(tmp_path / "flowers.yaml")).stages] == ["head", "all"]


def test_readme_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    assert all(f"configs/{path.name}" in README for path in CONFIGS.glob("*.yaml"))


def test_readme_lists_exit_codes() -> None:
    table = README.split("| exit code | when |")[1].split("\n\n")[0]
    told = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in cell.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FtcliError)]
    assert told == {0, *(kind.exit_code for kind in kinds)}


def test_readme_lists_datasets() -> None:
    told = README.split("makes the folder of ")[1].split(", with its official")[0]
    assert re.split(r",\s|\sor\s", told) == list(DATASET_NAMES)
