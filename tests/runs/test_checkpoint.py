"""Tests of checkpoints: round trips, and the refusal of corrupt and hostile files."""

from __future__ import annotations

import io
import os
import pickle
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from ftcli.errors import CheckpointError, RunError
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

CHECKPOINT = Checkpoint(
    kind="best",
    recipe={"name": "x", "stages": [{"lr": 0.1}]},
    classes=("b", "a", "ü 猫"),
    preprocessing=Preprocessing(224, 256, "crop", "bicubic", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
    head_path="fc",
    stage="head",
    epoch=3,
    metrics={"val_loss": 0.1},
    origin={"weights": None},
    splits={"train": ("a/1.png",), "val": ("a/2.png",)},
    state={"fc.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)},
    progress={"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [1, None, True]}},
)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "best_loss.pt"
    write_checkpoint(CHECKPOINT, path)
    return path


def checkpoint_error(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_read_checkpoint_round_trips(written: Path) -> None:
    read = read_checkpoint(written)
    assert replace(read, state={}) == replace(CHECKPOINT, state={})
    assert all(torch.equal(read.state[name], tensor) for name, tensor in CHECKPOINT.state.items())
    assert read.splits_by_path() == {"a/1.png": "train", "a/2.png": "val"}


def test_write_checkpoint_copies_to_each_path(tmp_path: Path) -> None:
    best, stage = tmp_path / "best_loss.pt", tmp_path / "head.pt"
    digest = write_checkpoint(CHECKPOINT, best, stage)
    assert read_checkpoint(best).digest == read_checkpoint(stage).digest == digest
    best.write_bytes(b"overwritten in place")
    assert read_checkpoint(stage).digest == digest


def test_torch_load_reads_checkpoint(written: Path) -> None:
    assert torch.load(written, weights_only=True)["classes"] == ["b", "a", "ü 猫"]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_read_checkpoint_detects_flipped_bit(written: Path, fraction: float) -> None:
    content = bytearray(written.read_bytes())
    content[int(fraction * len(content))] ^= 4
    written.write_bytes(content)
    assert checkpoint_error(written) == (
        f"{written}: is corrupt (its SHA-256 does not match); copy it again or use another checkpoint"
    )


def test_read_checkpoint_detects_truncated_file(written: Path) -> None:
    content = written.read_bytes()
    written.write_bytes(content[: len(content) // 2])
    assert checkpoint_error(written) == (
        f"{written}: is truncated at {len(content) // 2} bytes; copy it again or use another checkpoint"
    )


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"a": 1})])
def test_read_checkpoint_rejects_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert checkpoint_error(path) == (
        f"{path}: is not an ftcli checkpoint; give one that ftcli train wrote, such as runs/NAME/best_loss.pt, or "
        "set backbone.weights in a recipe to use weights of another program"
    )


def test_read_checkpoint_rejects_foreign_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"fc.weight": torch.ones(2)}, path)
    assert checkpoint_error(path).startswith(f"{path}: is not an ftcli checkpoint; ")


class Hostile:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def sign(content: bytes) -> bytes:
    """Add the digest of a checkpoint to an archive, as an attacker could."""
    content = content[:-2] + struct.pack("<H", 71)
    return content + b"sha256:" + sha256(content).hexdigest().encode()


def test_read_checkpoint_never_runs_pickled_code(tmp_path: Path) -> None:
    path, created = tmp_path / "x.pt", tmp_path / "created"
    for hostile in (Hostile(created), {"format": 2, "state": Hostile(created)}):
        buffer = io.BytesIO()
        torch.save(hostile, buffer)
        path.write_bytes(sign(buffer.getvalue()))
        message = checkpoint_error(path)
        assert message.startswith(f"{path}: was not loaded, since its contents are not those of a checkpoint (")
        assert not created.exists()


@pytest.mark.parametrize(
    ("format_version", "age", "remedy"), [(1, "an older", "train again"), (3, "a newer", "update ftcli")]
)
def test_read_checkpoint_rejects_other_format(tmp_path: Path, format_version: int, age: str, remedy: str) -> None:
    buffer = io.BytesIO()
    torch.save({"format": format_version, "ftcli": "9.9"}, buffer)
    path = tmp_path / "x.pt"
    path.write_bytes(sign(buffer.getvalue()))
    assert checkpoint_error(path) == (
        f"{path}: was written by {age} version of ftcli (9.9, format {format_version}; this ftcli reads format 2); "
        f"{remedy}"
    )


def test_read_checkpoint_rejects_other_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for plain in ([1, 2], {"format": 2}, {"format": "x"}):
        buffer = io.BytesIO()
        torch.save(plain, buffer)
        path.write_bytes(sign(buffer.getvalue()))
        assert "was not loaded, since its contents are not those of a checkpoint" in checkpoint_error(path)


def test_write_checkpoint_keeps_old_file_on_failure(written: Path) -> None:
    before = written.read_bytes()
    (written.parent / f".{written.name}.{os.getpid()}.tmp").mkdir()
    with pytest.raises(RunError):
        write_checkpoint(CHECKPOINT, written)
    assert written.read_bytes() == before
