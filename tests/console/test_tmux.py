"""Tests of the console in a real terminal: widths, colors, scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.conftest import UNICODE_CLASS_NAMES
from tests.console.conftest import RunInTmux

COLORED = re.compile(r"\x1b\[[0-9;]*(?:3[0-7]|9[0-7]|38)[0-9;]*m")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("columns", [60, 200])
def test_table_with_unicode_classes_is_aligned(terminal: RunInTmux, unicode_run: Path, columns: int) -> None:
    lines = terminal(columns, "evaluate", "runs/photos/best_loss.pt", folder=unicode_run).lines
    assert lines[0] == "runs/photos/best_loss.pt on test:"
    top = next(i for i, line in enumerate(lines) if line.startswith("class "))
    rows = lines[top + 1 : top + 1 + len(UNICODE_CLASS_NAMES)]
    assert [row.split("  ")[0] for row in rows] == sorted(UNICODE_CLASS_NAMES)
    assert {cell_len(line) for line in lines[top : top + 1 + len(UNICODE_CLASS_NAMES)]} == {cell_len(lines[top])}
    assert all(cell_len(line) <= columns for line in lines)
    assert lines[-1] == "ENDED WITH 0"


def test_wide_terminal_does_not_wrap(terminal: RunInTmux, unicode_run: Path) -> None:
    lines = terminal(200, "evaluate", "runs/photos/best_loss.pt", folder=unicode_run).lines
    errors = lines[lines.index("errors with the highest confidence:") + 2 :]
    errors = errors[: errors.index("")]
    assert errors
    assert all(re.match(r"test/.+/图 1\d 'x' 🙂\.jpg  ", line) for line in errors)


def test_narrow_terminal_shows_full_paths(terminal: RunInTmux, unicode_run: Path) -> None:
    lines = terminal(60, "evaluate", "runs/photos/best_loss.pt", folder=unicode_run).lines
    table = lines[lines.index("errors with the highest confidence:") + 1 :]
    table = table[: table.index("")]
    width = cell_len(table[0].split("true class")[0])
    cells = "".join(_truncate(line, width) for line in table[1:])
    assert len(re.findall("图1\\d'x'🙂.jpg", cells.replace(" ", ""))) >= 8


def _truncate(line: str, cells: int) -> str:
    while cell_len(line) > cells:
        line = line[:-1]
    return line


def test_sentences_wrap_but_urls_do_not(terminal: RunInTmux, tmp_path: Path) -> None:
    shown = terminal(60, "inspect", "resnet50", "--depth", "1", folder=tmp_path)
    assert shown.lines[0] == "resnet50: 25,557,032 parameters, 25,557,032 trainable, 4.09"
    assert shown.lines[1] == "G multiply-adds per image"
    assert "https://download.pytorch.org/models/resnet50-11ad3fa6.pth" in "".join(shown.lines)
    assert all(cell_len(line) <= 60 for line in shown.lines)


def test_progress_bar_disappears_when_done(terminal: RunInTmux, unicode_run: Path, tmp_path: Path) -> None:
    arguments = ["train", "r.yaml", "--set", "stages.head.epochs=9", "--out"]
    # Without cached features an epoch lasts long enough for its bar to be seen.
    slow = ["--set", "stages.head.cache=off"]
    during = terminal(60, *arguments, str(tmp_path / "a"), *slow, folder=unicode_run, until="━")
    assert "head" in next(line for line in during.lines if "━" in line)
    after = terminal(60, *arguments, str(tmp_path / "b"), folder=unicode_run)
    assert "━" not in after.text
    assert sum(line.startswith("head ") for line in after.lines) >= 10
    assert after.lines[-1] == "ENDED WITH 0"


@pytest.mark.parametrize("then", ["", "| cat"])
def test_predict_to_terminal_shows_no_bar(terminal: RunInTmux, unicode_run: Path, then: str) -> None:
    shown = terminal(200, "predict", "runs/photos/best_loss.pt", "data/test", folder=unicode_run, then=then)
    assert len(shown.lines) == 1 + 20 + 2  # a header before, and a message and the exit code after
    # Output that goes through cat may arrive after the message.
    assert sum(line.startswith("data/test/") for line in shown.lines) == 20


def test_predict_to_file_shows_bar(terminal: RunInTmux, unicode_run: Path, tmp_path: Path) -> None:
    checkpoint = str(unicode_run / "runs/photos/best_loss.pt")
    arguments = ["predict", checkpoint, str(unicode_run / "data"), "--batch-size", "1"]
    assert "predicting" in terminal(80, *arguments, folder=tmp_path, then="> out.txt", until="━").text


def test_no_color_disables_colors(terminal: RunInTmux, tmp_path: Path) -> None:
    with_colors = terminal(60, "train", "nothing.yaml", folder=tmp_path)
    assert COLORED.search(with_colors.text_with_codes)
    without_colors = terminal(60, "train", "nothing.yaml", folder=tmp_path, NO_COLOR="1")
    assert without_colors.text == with_colors.text
    assert not COLORED.search(without_colors.text_with_codes)
    assert " ".join(without_colors.lines[:2]) == ("error: nothing.yaml: does not exist; give the path of a YAML recipe")
