"""The solar cells of the ELPV dataset, from its Python package."""

from __future__ import annotations

import importlib.util
import shutil
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

from ftcli import runtime
from ftcli.datasets.builder import DatasetBuilder
from ftcli.errors import DataError
from ftcli.results import Progress


def build_solar_cells(builder: DatasetBuilder) -> None:
    """train and test of 1,968 and 656 cells (Deitsch et al., Solar Energy 2019, share them 75 to 25)."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise DataError("download: solar-cells needs the package elpv-dataset; pip install 'ftcli[demo]'")
    try:
        _copy_cells(Path(package.origin).parent / "data", builder)
    except FileNotFoundError as error:
        raise DataError(
            f"download: the package elpv-dataset lacks {error.filename}; pip install --force-reinstall elpv-dataset"
        ) from error


def _copy_cells(source: Path, builder: DatasetBuilder) -> None:
    """Copy the package's cells into folders of split and class. Its table has path, defect probability and type."""
    rows = [line.split() for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, *group in rows:
        groups[tuple(group)].append(path)
    test_paths = _sample_test_paths(groups)
    for done, (path, probability, _) in enumerate(rows, 1):
        split = "test" if path in test_paths else "train"
        target = builder.folder / split / ("defective" if float(probability) > 0.5 else "functional") / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target)
        builder.reporter.update_progress(Progress("download solar-cells", done, len(rows)))


def _sample_test_paths(groups: dict[tuple[str, ...], list[str]]) -> set[str]:
    """A quarter of all paths, and of each group as nearly as whole images allow (the method of largest remainders)."""
    fraction = Fraction(1, 4)
    sizes = {group: int(len(paths) * fraction) for group, paths in groups.items()}
    num_missing = round(sum(map(len, groups.values())) * fraction) - sum(sizes.values())
    by_remainder = sorted(groups, key=lambda group: (sizes[group] - len(groups[group]) * fraction, group))
    for group in by_remainder[:num_missing]:
        sizes[group] += 1
    return {
        path
        for group, paths in groups.items()
        for path in sorted(paths, key=lambda path: runtime.hash_to_unit(0, "solar-cells", Path(path).name))[
            : sizes[group]
        ]
    }
