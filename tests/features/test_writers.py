"""Tests of feature files, read with the libraries of their formats, and of the feature buffer."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open

from ftcli.errors import RecipeError, RunError
from ftcli.features import extractor as extractor_module
from ftcli.features.extractor import FeatureBuffer
from ftcli.features.writers import FeatureMetadata, check_header_size, find_output_errors, write_features

SHAPES = {"layer2": (3, 2, 2), "input of fc": (5,)}
CLASSES = ("bird's nest", "狗 🐶", "\udcff")
PATHS = [f"train/{number} 图 'x'\udcfe.jpg" if number % 2 else f"test/{number}.jpg" for number in range(11)]
LABELS = [number % 3 for number in range(11)]
SPLITS = ["train"] * 8 + ["test"] * 3
METADATA = FeatureMetadata(
    source="r.yaml",
    model="resnet18",
    weights="none",
    weights_sha256=None,
    layers=tuple(SHAPES),
    pool="none",
    classes=CLASSES,
    preprocessing={"image_size": 32},
    dtype="float32",
)


@dataclass(frozen=True)
class FakeFeatureBatch:
    """The attributes of a FeatureBatch that a FeatureBuffer reads."""

    features: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    paths: tuple[str, ...]


@dataclass(frozen=True)
class LoadedFeatures:
    """The content of a feature file."""

    features: dict[str, Any]
    labels: list[int]
    paths: list[str]
    splits: list[str]
    classes: list[str]
    about: dict[str, Any]


def make_features() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    return {name: torch.randn(11, *shape).numpy() for name, shape in SHAPES.items()}


@pytest.fixture
def make_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FeatureBuffer]]:
    """A factory of buffers of 11 images, added in batches of 8 and 3 and read 3 at a time."""
    monkeypatch.setattr(extractor_module, "_READ_BYTES", 4 * 12 * 3)
    buffers: list[FeatureBuffer] = []

    def create(
        layers: tuple[str, ...] = tuple(SHAPES), target: Path | None = tmp_path / "x", **options: bool
    ) -> FeatureBuffer:
        buffer = FeatureBuffer(target, layers, [SHAPES[name] for name in layers], **options).__enter__()
        buffers.append(buffer)
        values = make_features()
        for indices, split in ((slice(0, 8), "train"), (slice(8, 11), "test")):
            tensors = tuple(torch.from_numpy(values[name][indices]) for name in layers)
            buffer.add(FakeFeatureBatch(tensors, torch.tensor(LABELS[indices]), tuple(PATHS[indices])), split)  # type: ignore[arg-type]
        return buffer

    yield create
    for buffer in buffers:
        buffer.__exit__(None, None, None)


def read(path: Path) -> LoadedFeatures:
    match path.suffix:
        case ".npz":
            with np.load(path, allow_pickle=False) as npz:
                arrays = {name: npz[name] for name in npz.files if name.startswith("features")}
                texts = {name: npz[name].tolist() for name in ("labels", "paths", "splits", "classes")}
                assert npz["labels"].dtype == np.int64
                return LoadedFeatures(arrays, about=json.loads(str(npz["about"])), **texts)
        case ".safetensors":
            with safe_open(path, "np") as tensors:
                arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
                metadata = {name: json.loads(text) for name, text in tensors.metadata().items()}
            labels = arrays.pop("labels").tolist()
            return LoadedFeatures(
                arrays, labels, **{name: metadata[name] for name in ("paths", "splits", "classes", "about")}
            )
        case ".parquet":
            table = parquet.read_table(path)
            metadata = {name.decode(): json.loads(text) for name, text in table.schema.metadata.items()}
            assert table["label"].to_pylist() == [escape(CLASSES[label]) for label in LABELS]
            names = [name for name in table.column_names if name.startswith("features")]
            arrays = {name: np.stack(table[name].to_numpy()) for name in names}
            labels, paths, splits = (table[name].to_pylist() for name in ("label_index", "path", "split"))
            return LoadedFeatures(arrays, labels, paths, splits, metadata["classes"], metadata["about"])
    metadata = json.loads(path.with_suffix(".json").read_text())
    array = np.load(path, allow_pickle=False)
    return LoadedFeatures(
        {"features": array}, **{name: metadata[name] for name in ("labels", "paths", "splits", "classes", "about")}
    )


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def escape(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    ("suffix", "has_two_layers"),
    [
        ("npy", False),
        *((suffix, has_two_layers) for suffix in ("npz", "safetensors", "parquet") for has_two_layers in (False, True)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_write_features_round_trips_every_format(
    make_buffer: Callable[..., FeatureBuffer], tmp_path: Path, suffix: str, dtype: Any, has_two_layers: bool
) -> None:
    layers = tuple(SHAPES) if has_two_layers else ("layer2",)
    target = tmp_path / f"features 多.{suffix}"
    write_features(target, make_buffer(layers), replace(METADATA, layers=layers, dtype=dtype))
    loaded = read(target)
    assert list(loaded.features) == (
        ["features/layer2", "features/input of fc"] if has_two_layers else ["features"]
    ) or (suffix == "safetensors" and len(loaded.features) == len(layers))
    for name in layers:
        stored = loaded.features[f"features/{name}" if has_two_layers else "features"]
        assert stored.dtype == dtype
        assert np.array_equal(stored.reshape(11, *SHAPES[name]), make_features()[name].astype(dtype))
        assert stored.shape == (11, *SHAPES[name]) or suffix == "parquet"
    to_stored_text = escape if suffix == "parquet" else str
    assert (loaded.labels, loaded.splits) == (LABELS, SPLITS)
    assert loaded.paths == [to_stored_text(path) for path in PATHS]
    assert loaded.classes == list(CLASSES)
    assert loaded.about["preprocessing"] == {"image_size": 32}
    assert loaded.about["shapes"] == [list(SHAPES[name]) for name in layers]
    sidecar = ["features 多.json"] if suffix == "npy" else []
    assert list_names(tmp_path) == [*sidecar, target.name]


def test_write_features_parquet_has_row_groups_and_columns(
    make_buffer: Callable[..., FeatureBuffer], tmp_path: Path
) -> None:
    target = tmp_path / "features.parquet"
    write_features(target, make_buffer(), METADATA)
    with parquet.ParquetFile(target) as file:
        assert file.num_row_groups == 4
    assert parquet.read_table(target, columns=["features/input of fc"]).num_rows == 11


def test_write_features_is_deterministic(make_buffer: Callable[..., FeatureBuffer], tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_features(tmp_path / name, make_buffer(), METADATA)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_feature_buffer_leaves_no_file_and_maps_features(
    make_buffer: Callable[..., FeatureBuffer], tmp_path: Path
) -> None:
    buffer = make_buffer(target=tmp_path / "features.npz")
    assert list_names(tmp_path) == []
    assert np.array_equal(buffer.features(0), make_features()["layer2"])
    assert isinstance(buffer.features(1), np.memmap)
    assert buffer.labels.tolist() == LABELS


def test_feature_buffer_reports_float16_overflow(make_buffer: Callable[..., FeatureBuffer]) -> None:
    layer2, head_input = torch.zeros(2, 3, 2, 2), torch.zeros(2, 5)
    head_input[1, 2] = -70000
    batch = FakeFeatureBatch((layer2, head_input), torch.zeros(2, dtype=torch.int64), ("b.jpg", "a.jpg"))
    make_buffer().add(batch, "train")  # type: ignore[arg-type]
    with pytest.raises(RunError) as caught:
        make_buffer(as_float16=True).add(batch, "train")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "input of fc: the output for a.jpg reaches 70000, beyond the maximum of float16 (65504); use --dtype float32"
    )


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Limit the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "parquet", "npy"])
def test_write_features_leaves_old_file_when_disk_is_full(
    make_buffer: Callable[..., FeatureBuffer], tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"features.{suffix}"
    buffer = make_buffer(("layer2",))
    target.write_text("old")
    with limit_file_size(300), pytest.raises(RunError) as caught:
        write_features(target, buffer, replace(METADATA, layers=("layer2",)))
    assert str(caught.value) == f"{target}: cannot be written (File too large); check the folder and its permissions"
    assert list_names(tmp_path) == [target.name]
    assert target.read_text() == "old"


def test_write_features_removes_sidecar_when_disk_is_full(tmp_path: Path) -> None:
    with FeatureBuffer(None, ("fc",), [(1000,)]) as buffer:
        batch = FakeFeatureBatch((torch.zeros(1, 1000),), torch.tensor([0]), ("a.jpg",))
        buffer.add(batch, "train")  # type: ignore[arg-type]
        with limit_file_size(2000), pytest.raises(RunError):  # the .json is smaller, the .npy is not
            write_features(tmp_path / "features.npy", buffer, replace(METADATA, layers=("fc",)))
        assert list_names(tmp_path) == []
        write_features(tmp_path / "features.npy", buffer, replace(METADATA, layers=("fc",)))
    assert (tmp_path / "features.json").stat().st_size < 2000


def test_feature_buffer_reports_full_disk(make_buffer: Callable[..., FeatureBuffer], tmp_path: Path) -> None:
    with limit_file_size(300), pytest.raises(RunError) as caught:
        make_buffer(target=tmp_path / "features.npz")
    expected = f"{tmp_path}/features.npz: cannot be written (File too large); check the folder and its permissions"
    assert str(caught.value) == expected
    assert list_names(tmp_path) == []


def test_find_output_errors_reports_bad_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_output_errors(Path("a.npz"), ["all"]) == []
    assert find_output_errors(Path("a.nps"), []) == [
        "--out: a.nps has an unknown suffix '.nps'; did you mean '.npz' or '.npy'?"
    ]
    Path("a.json").write_text("{}")
    assert find_output_errors(Path("a.npy"), ["all"]) == [
        "--out: a.npy holds one array, not several layers; give a .npz file",
        "--out: a.json, the file for the labels of a.npy, exists; remove it, or give another name",
    ]
    Path("a.npy").write_text("")
    assert find_output_errors(Path("a.npy"), ["x"]) == []
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert find_output_errors(Path("a.parquet"), []) == [
        "--out: a.parquet needs the package pyarrow; run pip install '.[parquet]' in the ftcli repository"
    ]


def test_check_header_size_refuses_too_many_paths() -> None:
    paths = ["x" * 1000] * 100_000
    check_header_size(Path("a.npz"), paths, ["train"] * 100_000)
    check_header_size(Path("a.safetensors"), paths[:50_000], ["train"] * 50_000)
    with pytest.raises(RecipeError) as caught:
        check_header_size(Path("a.safetensors"), paths, ["train"] * 100_000)
    assert str(caught.value) == (
        "--out: a.safetensors would need a header of 102 MB for the paths of 100,000 images, and safetensors reads at "
        "most 100 MB; give a .parquet or .npz file"
    )
