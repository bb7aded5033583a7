"""A checkpoint carries its world: weights, classes, preprocessing, recipe, origin, and a digest of itself.

The file is what torch.save writes (a zip archive) with the SHA-256 of all its bytes as the archive's comment. The
digest is checked before anything is unpickled, and unpickling is restricted to plain data and tensors, so neither a
damaged nor a hostile file gets further than the error message. `torch.load(path, weights_only=True)` reads it too.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ftcli import __version__
from ftcli.errors import CheckpointError
from ftcli.results import Preprocessing
from ftcli.storage import replace_file

FORMAT = 1
_COMMENT_LENGTH = len("sha256:") + 64
_REFUSED = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Checkpoint:
    """A network at one moment of a run.

    `kind` is best (lowest validation loss of the run), stage (of its stage) or last (with `progress`, all that is
    needed to go on exactly). `held` tells which split each image was in. `digest` is that of the file it was read
    from, empty before it is written.
    """

    kind: Literal["best", "stage", "last"]
    recipe: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    stage: str
    epoch: int
    metrics: Mapping[str, float]
    origin: Mapping[str, Any]
    held: Mapping[str, tuple[str, ...]]
    state: Mapping[str, Tensor]
    progress: Mapping[str, Any] | None = None
    digest: str = field(default="", compare=False)

    def splits_by_path(self) -> dict[str, str]:
        """The split of each image, by its path below the data's root."""
        return {path: split for split, paths in self.held.items() for path in paths}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> str:
    """Write a checkpoint atomically and return its digest. Raises RunError if the disk is full or not writable."""
    plain: dict[str, Any] = {
        "format": FORMAT,
        "ftcli": __version__,
        "kind": checkpoint.kind,
        "recipe": dict(checkpoint.recipe),
        "classes": list(checkpoint.classes),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "stage": checkpoint.stage,
        "epoch": checkpoint.epoch,
        "metrics": dict(checkpoint.metrics),
        "origin": dict(checkpoint.origin),
        "held": {split: list(paths) for split, paths in checkpoint.held.items()},
        "state": {name: tensor.detach().cpu() for name, tensor in checkpoint.state.items()},
        "progress": None if checkpoint.progress is None else dict(checkpoint.progress),
    }
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    # The archive ends with the length of its comment, which torch.save leaves at 0.
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack("<H", _COMMENT_LENGTH))
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(f"sha256:{digest}".encode())
    replace_file(path, buffer.getvalue())
    return digest


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint; its tensors are on the CPU.

    Raises CheckpointError for a file that is missing, cut short, damaged, hostile, of another program or of a newer
    format. Nothing in the file is executed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); give a checkpoint that ftcli train wrote, such as "
            "runs/NAME/best_loss.pt"
        ) from error
    digest = _verify(path, content)
    try:
        plain = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if plain["format"] > FORMAT:
            raise CheckpointError(
                f"{path}: was written by ftcli {plain['ftcli']} in a newer format ({plain['format']}; this ftcli reads "
                f"{FORMAT}); update ftcli"
            )
        return _build(plain, digest)
    except _REFUSED as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path}: holds something other than a checkpoint's plain data and was not opened further ({reason}); "
            "do not use it unless you know who made it"
        ) from error


def _verify(path: Path, content: bytes) -> str:
    end = len(content) - _COMMENT_LENGTH
    # The archive's last record, 22 bytes, stands before a comment of just this length in our files alone.
    if content[max(0, end - 22) : end - 18] != b"PK\x05\x06":
        if content.startswith(b"PK\x03\x04") and b"PK\x05\x06" not in content[-65_557:]:
            raise CheckpointError(
                f"{path}: is cut short at {len(content)} bytes; copy it again or take another checkpoint"
            )
        raise CheckpointError(
            f"{path}: is no ftcli checkpoint; give one that ftcli train wrote, such as runs/NAME/best_loss.pt (the "
            "weights of other programs belong in a recipe, under backbone.weights)"
        )
    digest = hashlib.sha256(memoryview(content)[:end]).hexdigest()
    if content[end:] != f"sha256:{digest}".encode():
        raise CheckpointError(
            f"{path}: is damaged: its bytes are not those that were written (SHA-256 differs); copy it again or take "
            "another checkpoint"
        )
    return digest


def _build(plain: dict[str, Any], digest: str) -> Checkpoint:
    fields = {name: value for name, value in plain.items() if name not in ("format", "ftcli")}
    checkpoint = Checkpoint(**fields, digest=digest)
    return replace(
        checkpoint,
        classes=tuple(plain["classes"]),
        preprocessing=Preprocessing.from_dict(plain["preprocessing"]),
        held={split: tuple(paths) for split, paths in plain["held"].items()},
    )
