"""The README and the pages of docs/: every command runs, every recipe is valid, every link exists."""

from __future__ import annotations

import re
import shlex
import shutil
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
PAGES = (
    "README.md",
    "docs/recipes.md",
    "docs/data.md",
    "docs/freezing-and-stages.md",
    "docs/feature-caching.md",
    "docs/evaluation.md",
    "docs/probes.md",
    "docs/python-api.md",
    "docs/troubleshooting.md",
)
"""In the order of reading: the runs that the README trains are used by the pages after it."""

TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def list_code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_commands_run(solar_cells_dir: Path, ftcli: Ftcli) -> None:
    # The shipped recipes at a small size and with short stages; the commands are run as written.
    for recipe in (solar_cells_dir / "configs").glob("*.yaml"):
        text = re.sub(r"image_size: \d+", "image_size: 32\n  num_workers: 0", recipe.read_text())
        recipe.write_text(re.sub(r"epochs: \d+", "epochs: 1", text))
    (solar_cells_dir / "data").rename(solar_cells_dir / "few")
    for page in PAGES:
        for command in (line for block in list_code_blocks(page, "sh") for line in block.splitlines()):
            run_command(command, solar_cells_dir, ftcli)
    script = "\n".join(list_code_blocks("docs/python-api.md", "python"))
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=solar_cells_dir, check=True, capture_output=True, text=True
    )
    assert len(output.stdout.splitlines()) == len(list((solar_cells_dir / "data/solar-cells/test").rglob("*.png")))


def run_command(command: str, folder: Path, ftcli: Ftcli) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "ftcli":
        arguments, target = (words[1:-2], words[-1]) if ">" in words else (words[1:], None)
        outcome = ftcli(*arguments)
        assert outcome.code == 0, f"{command}\n{outcome.err}"
        if target:
            (folder / target).write_text(outcome.out)
        if words[1:] == ["data", "download", "solar-cells"]:  # the commands after it use every 30th image
            shutil.rmtree(folder / "data")
            (folder / "few").rename(folder / "data")
    else:
        assert command == "source .venv/bin/activate"


def test_every_page_is_listed() -> None:
    generated = {"benchmarks.md", "models.md", "recipe.md", "recipe-tests.md", "views.md"}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - generated == {Path(page).name for page in PAGES[1:]}


def test_readme_is_a_front_page() -> None:
    assert TEXTS["README.md"].count("\n") <= 200
    assert all(page in TEXTS["README.md"] for page in PAGES[1:])
    assert all(f"configs/{path.name}" in TEXTS["README.md"] for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", TEXTS[page]):
        if target.startswith("http"):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_example_recipe_plans(tmp_path: Path) -> None:
    (block,) = list_code_blocks("docs/recipes.md", "yaml")
    (tmp_path / "flowers.yaml").write_text(block)
    assert [stage.stage.name for stage in plan_recipe(read_recipe(tmp_path / "flowers.yaml")).stages] == ["head", "all"]


def test_exit_codes_are_complete() -> None:
    table = TEXTS["docs/troubleshooting.md"].split("| exit code | when |")[1].split("\n\n")[0]
    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in cell.split(",")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FtcliError)]
    assert listed == {0, *(kind.exit_code for kind in kinds)}


def test_dataset_names_are_complete() -> None:
    listed = TEXTS["docs/data.md"].split("if it is missing: ")[1].split(". Official")[0]
    assert re.split(r",\s|\sor\s", listed) == list(DATASET_NAMES)
