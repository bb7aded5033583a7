"""Archives of plain data and tensors that carry their own digest: what a checkpoint is written as.

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftcli import __version__
from ftcli.errors import CheckpointError
from ftcli.files import atomic_write
from ftcli.results import Preprocessing

FORMAT_VERSION = 1
_COMMENT_LENGTH = len("sha256:") + 64
_END_RECORD_LENGTH = 22  # bytes of the record that ends a zip archive, its comment apart
CONTENT_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)
"""What plain data that are not those of a checkpoint raise when they are read as such."""


@dataclass(frozen=True)
class BaseCheckpoint:
    """What a network takes from a checkpoint of ftcli that it begins from: weights and preprocessing, for one model."""

    model: str
    preprocessing: Preprocessing
    state_dict: Mapping[str, Tensor]


def write_checkpoint_file(content_dict: Mapping[str, Any], *paths: Path) -> str:
    """Write plain data and tensors to each path, atomically, and return their digest.

    Raises RunError if the disk is full or not writable.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT_VERSION, "ftcli": __version__, **content_dict}, buffer)
    # The archive ends with the length of its comment, which torch.save leaves at 0.
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack("<H", _COMMENT_LENGTH))
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(f"sha256:{digest}".encode())
    with ThreadPoolExecutor(len(paths)) as pool:  # most of it is waiting for the disk
        list(pool.map(atomic_write, paths, [buffer.getbuffer()] * len(paths)))
    return digest


def read_checkpoint_file(path: Path, location: str) -> tuple[dict[str, Any], str]:
    """The plain data of an archive, without format and version, and its digest; tensors are on the CPU.

    Raises CheckpointError that begins with `place` for a file that is missing, cut short, damaged, hostile, of another
    program or of a newer format. Nothing in the file is executed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{location}: cannot be read ({error.strerror}); give a checkpoint that ftcli train wrote, such as "
            "runs/NAME/best_loss.pt"
        ) from error
    digest = _verify_digest(content, location)
    try:
        content_dict: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        format_version, version = content_dict.pop("format"), content_dict.pop("ftcli")
        if format_version > FORMAT_VERSION:
            raise CheckpointError(
                f"{location}: was written by ftcli {version} in a newer format ({format_version}; this ftcli reads {FORMAT_VERSION}); "
                "update ftcli"
            )
    except CONTENT_ERRORS as error:
        raise invalid_content_error(error, location) from error
    return content_dict, digest


def read_base_checkpoint(path: Path, model: str, location: str) -> BaseCheckpoint | None:
    """What a network of this model takes from a checkpoint of ftcli; None if the file is none.

    Raises CheckpointError that begins with `place` for a checkpoint that is damaged, hostile, of a newer format or of
    another model.
    """
    if not _has_digest(path):
        return None
    content_dict, _ = read_checkpoint_file(path, location)
    try:
        base_checkpoint = BaseCheckpoint(
            str(content_dict["recipe"]["backbone"]["name"]),
            Preprocessing.from_dict(content_dict["preprocessing"]),
            {str(name): tensor.detach() for name, tensor in content_dict["state"].items()},
        )
    except CONTENT_ERRORS as error:
        raise invalid_content_error(error, location) from error
    if base_checkpoint.model != model:
        raise CheckpointError(
            f"{location}: is a checkpoint of {base_checkpoint.model} and the network is {model}; set backbone.name: "
            f"{base_checkpoint.model}, or give weights of {model}"
        )
    return base_checkpoint


def invalid_content_error(error: BaseException, location: str) -> CheckpointError:
    """The error for an archive that is whole and holds what no checkpoint holds."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return CheckpointError(
        f"{location}: holds something other than a checkpoint's plain data and was not opened further ({reason}); "
        "do not use it unless you know who made it"
    )


def _has_digest(path: Path) -> bool:
    """Whether a file ends as our archives do and others do not: with a comment of just the length of a digest."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _COMMENT_LENGTH - _END_RECORD_LENGTH))
        return _ends_with_digest(file.read())


def _ends_with_digest(content: bytes) -> bool:
    end = len(content) - _COMMENT_LENGTH
    return content[max(0, end - _END_RECORD_LENGTH) : end - _END_RECORD_LENGTH + 4] == b"PK\x05\x06"


def _verify_digest(content: bytes, location: str) -> str:
    if not _ends_with_digest(content):
        if content.startswith(b"PK\x03\x04") and b"PK\x05\x06" not in content[-65_557:]:
            raise CheckpointError(
                f"{location}: is cut short at {len(content)} bytes; copy it again or take another checkpoint"
            )
        raise CheckpointError(
            f"{location}: is no ftcli checkpoint; give one that ftcli train wrote, such as runs/NAME/best_loss.pt (the "
            "weights of other programs belong in a recipe, under backbone.weights)"
        )
    end = len(content) - _COMMENT_LENGTH
    digest = hashlib.sha256(memoryview(content)[:end]).hexdigest()
    if content[end:] != f"sha256:{digest}".encode():
        raise CheckpointError(
            f"{location}: is damaged: its bytes are not those that were written (SHA-256 differs); copy it again or take "
            "another checkpoint"
        )
    return digest
