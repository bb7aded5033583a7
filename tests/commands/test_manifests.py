"""Tests of manifests in the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.conftest import Ftcli


@pytest.fixture
def manifest(work_dir: Path, photo_folder: Path) -> Path:
    """The photographs in cells.csv, in groups of up to four, without splits."""
    lines = ["path;label;group"]
    for path in sorted(photo_folder.rglob("*.jpg")):
        name = {"china": "寺 🏯", "flower": 'une "fleur"'}[path.parent.name].replace('"', '""')
        lines.append(f'{path};"{name}";{path.parent.name}-{int(path.stem) // 4}')
    (work_dir / "cells.csv").write_text("\n".join(lines))
    return work_dir / "cells.csv"


def train_head(ftcli: Ftcli, *arguments: str) -> Path:
    outcome = ftcli("train", "r.yaml", "--stage", "head", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return Path(outcome.json["run"])


def read_splits(run: Path) -> dict[str, str]:
    result = json.loads((run / "run.json").read_text())
    return {path: split for split, paths in result["data"]["splits"].items() for path in paths}


def test_manifest_splits_are_stable_when_it_grows(ftcli: Ftcli, manifest: Path) -> None:
    root = "--set=data.root=cells.csv"
    run = train_head(ftcli, root)
    before = read_splits(run)
    result = ftcli("evaluate", run / "best_loss.pt", "--json").json
    assert result["classes"] == ['une "fleur"', "寺 🏯"]
    assert result["images"] == sum(split == "test" for split in before.values())
    # A third more images, all of existing groups.
    extra = manifest.parent / "extra"
    extra.mkdir()
    rows = []
    for number, line in enumerate(manifest.read_text().splitlines()[1::3]):
        path, label, group = line.split(";")
        (extra / f"{number}.jpg").write_bytes(Path(path).read_bytes())
        rows.append(f"extra/{number}.jpg;{label};{group}")
    manifest.write_text("\n".join([manifest.read_text(), *rows]))
    again = ftcli("evaluate", run / "best_loss.pt", "--json").json
    after = read_splits(train_head(ftcli, root))
    assert {path: after[path] for path in before} == before
    assert again["images"] == sum(split == "test" for split in after.values()) > result["images"]
    group_of = {line.split(";")[0]: line.split(";")[2] for line in manifest.read_text().splitlines()[1:]}
    assert len({(group_of[path], split) for path, split in after.items()}) == len(set(group_of.values()))


def test_evaluate_accepts_other_manifest(ftcli: Ftcli, work_dir_with_run: Path, photo_folder: Path) -> None:
    run = work_dir_with_run / "runs/photos/best_loss.pt"
    own_result = ftcli("evaluate", run, "--json").json
    test = sorted((photo_folder / "test").rglob("*.jpg"))
    lines = ["path\tlabel", *(f"{path}\t{path.parent.name}" for path in test)]
    (work_dir_with_run / "all.tsv").write_text("\n".join(lines))
    result = ftcli("evaluate", run, "--data", "all.tsv", "--json").json
    assert (result["split"], result["loss"], result["confusion"]) == (
        "all",
        own_result["loss"],
        own_result["confusion"],
    )
    columns = {
        "path": [str(path) for path in test],
        "label": [path.parent.name for path in test],
        "split": ["test"] * 11 + ["val"],
    }
    parquet.write_table(pyarrow.table(columns), work_dir_with_run / "m.parquet")
    assert ftcli("evaluate", run, "--data", "m.parquet", "--json").json["images"] == 11
    assert ftcli("evaluate", run, "--data", "m.parquet", "--split", "val", "--json").json["images"] == 1
    outcome = ftcli("evaluate", run, "--data", "m.parquet", "--split", "train")
    assert outcome.code == 3
    assert outcome.errors == ["--data: m.parquet has no split 'train'; give one of its splits: 'test', 'val'"]
    (work_dir_with_run / "all.tsv").write_text("\n".join(lines).replace("\tchina", "\tjapan"))
    outcome = ftcli("evaluate", run, "--data", "all.tsv")
    assert outcome.code == 4
    assert outcome.errors[0].startswith("--data: all.tsv has the class 'japan', unknown to the checkpoint; ")


def test_inspect_recipe_with_manifests(ftcli: Ftcli, manifest: Path) -> None:
    outcome = ftcli("train", "r.yaml", "--set", "data.root=[cells.csv, gone.csv]")
    assert outcome.code == 3
    assert outcome.errors == [
        "--set data.root=[cells.csv, gone.csv]: data.root: gone.csv does not exist; give a manifest with the columns "
        "path and label, or a folder"
    ]
    recipe = manifest.parent / "r.yaml"
    text = recipe.read_text()
    root = text.split("root: ")[1].split("\n")[0]
    recipe.write_text(text.replace(root, "cells.csv"))
    assert ftcli("inspect", "r.yaml", "--json").json["head"]["out_features"] == 2
    recipe.write_text(text.replace(root, "[cells.csv, gone.csv]"))
    outcome = ftcli("inspect", "r.yaml")
    assert outcome.errors == [
        "r.yaml:3:9: data.root: gone.csv does not exist, so the classes are unknown; create the manifest, or set "
        "data.classes"
    ]
    recipe.write_text(recipe.read_text().replace("freeze: backbone", "freeze: [stage9]"))
    outcome = ftcli("train", "r.yaml")
    assert outcome.code == 2
    assert outcome.errors[1:] == ["r.yaml:3:9: data.root: gone.csv does not exist; give the manifest of the images"]


def test_train_reports_manifest_errors(ftcli: Ftcli, manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("label", "labels"))
    outcome = ftcli("train", "r.yaml", "--set=data.root=cells.csv")
    assert outcome.code == 3
    assert outcome.errors == [
        "--set data.root=cells.csv: data.root: cells.csv: has no column 'label'; did you mean 'labels'?"
    ]
    assert not (manifest.parent / "runs").exists()
