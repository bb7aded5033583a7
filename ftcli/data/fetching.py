"""Known data sets, made into folders that a recipe can use."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from ftcli import runtime, storage
from ftcli.data.sources import read_folder
from ftcli.errors import DataError, RunError, suggest
from ftcli.results import Fetched, Progress, Reporter

_SOLAR_CELLS = """\
Solar cells in electroluminescence images: 2,624 grey images of 300 x 300 pixels, one photovoltaic cell each.

Source: the ELPV dataset, https://github.com/zae-bayern/elpv-dataset, as in the Python package elpv-dataset.
Cite: S. Deitsch, V. Christlein, S. Berger, C. Buerhop-Lutz, A. Maier, F. Gallwitz, C. Riess:
Automatic classification of defective photovoltaic module cells in electroluminescence images.
Solar Energy 185 (2019), 455-468, https://doi.org/10.1016/j.solener.2019.02.067
Licence: Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0),
https://creativecommons.org/licenses/by-nc-sa/4.0/. Name the authors, do not use the images commercially, and pass
on what you make of them under the same licence.

The images are unchanged. What was added is their order in folders: a cell is defective where its defect probability,
as the dataset's experts gave it, is above 0.5, else functional; a quarter of each group of equal probability and
cell type (monocrystalline or polycrystalline) is in test, drawn by file name, and the rest in train.
"""


def fetch(name: str, root: Path, reporter: Reporter) -> Fetched:
    """Make a known data set at `root`, whole or not at all, and count its images by split and class.

    The same name always gives the same folders. Raises DataError for an unknown name, a root that exists and is not
    empty, or a Python package that is missing or incomplete; RunError where it cannot be written.
    """
    if name not in _MAKERS:
        raise DataError(f"fetch: {name!r} is no known data set; {suggest(name, KNOWN)}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise DataError(f"{root}: is there already and not empty; remove it, or give another folder")
    unfinished = root.with_name(f".{root.name}.{os.getpid()}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _MAKERS[name](unfinished, reporter)
        splits = {
            split: {label: len(paths) for label, paths in classes.items()}
            for split, classes in read_folder(unfinished, f"fetch: {name}").items()
        }
        storage.publish_folder(unfinished, root)
    except OSError as error:
        raise RunError(f"{root}: cannot be made ({error.strerror}); make room, or give another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Fetched(name, root, sum(sum(classes.values()) for classes in splits.values()), splits)


def _make_solar_cells(folder: Path, reporter: Reporter) -> None:
    """train and test of 1,968 and 656 cells (Deitsch et al., Solar Energy 2019, share them 75 to 25)."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise DataError("fetch: solar-cells needs the package elpv-dataset; pip install 'ftcli[demo]'")
    try:
        _sort_cells(Path(package.origin).parent / "data", folder, reporter)
    except FileNotFoundError as error:
        raise DataError(
            f"fetch: the package elpv-dataset lacks {error.filename}; pip install --force-reinstall elpv-dataset"
        ) from error
    (folder / "SOURCE.txt").write_text(_SOLAR_CELLS, encoding="utf-8")


def _sort_cells(source: Path, folder: Path, reporter: Reporter) -> None:
    """Copy the package's cells into folders of split and class. Its table has path, defect probability and type."""
    rows = [line.split() for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, *group in rows:
        groups[tuple(group)].append(path)
    tested = _draw_test(groups)
    for done, (path, probability, _) in enumerate(rows, 1):
        split = "test" if path in tested else "train"
        target = folder / split / ("defective" if float(probability) > 0.5 else "functional") / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target)
        reporter.advance(Progress("fetch solar-cells", done, len(rows)))


def _draw_test(groups: dict[tuple[str, ...], list[str]]) -> set[str]:
    """A quarter of all paths, and of each group as nearly as whole images allow (the method of largest remainders)."""
    share = Fraction(1, 4)
    sizes = {group: int(len(paths) * share) for group, paths in groups.items()}
    missing = round(sum(map(len, groups.values())) * share) - sum(sizes.values())
    by_remainder = sorted(groups, key=lambda group: (sizes[group] - len(groups[group]) * share, group))
    for group in by_remainder[:missing]:
        sizes[group] += 1
    return {
        path
        for group, paths in groups.items()
        for path in sorted(paths, key=lambda path: runtime.derive_share(0, "solar-cells", Path(path).name))[
            : sizes[group]
        ]
    }


_MAKERS: dict[str, Callable[[Path, Reporter], None]] = {"solar-cells": _make_solar_cells}

KNOWN = tuple(_MAKERS)
"""The names that `fetch` knows."""
