"""Read and write the file format of checkpoints.

A checkpoint is a torch.save archive (zip) whose comment is the SHA-256 of its bytes. The digest is verified before
unpickling, and unpickling is restricted to plain data and tensors, so a corrupt or hostile file only raises an error.
`torch.load(path, weights_only=True)` reads it too.
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

from ftcli.errors import CheckpointError, first_line
from ftcli.files import atomic_write
from ftcli.results import Preprocessing
from ftcli.version import __version__

FORMAT_VERSION = 2
_COMMENT_LENGTH = len("sha256:") + 64
_END_RECORD_LENGTH = 22  # bytes of the zip archive's last record without its comment
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
"""The errors of reading plain data that do not have the structure of a checkpoint."""


@dataclass(frozen=True)
class BaseCheckpoint:
    """A checkpoint that is used as pretrained weights: model name, preprocessing and tensors."""

    model: str
    preprocessing: Preprocessing
    state_dict: Mapping[str, Tensor]


def write_checkpoint_file(content_dict: Mapping[str, Any], *paths: Path) -> str:
    """Write plain data and tensors to each path, atomically, and return the digest.

    Raises RunError if the disk is full or not writable.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT_VERSION, "ftcli": __version__, **content_dict}, buffer)
    # The archive ends with the length of its comment, which torch.save writes as 0.
    buffer.seek(-2, io.SEEK_END)
    buffer.write(struct.pack("<H", _COMMENT_LENGTH))
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(f"sha256:{digest}".encode())
    with ThreadPoolExecutor(len(paths)) as pool:  # most of the time is waiting for the disk
        list(pool.map(atomic_write, paths, [buffer.getbuffer()] * len(paths)))
    return digest


def read_checkpoint_file(path: Path, location: str) -> tuple[dict[str, Any], str]:
    """Return the contents of a checkpoint file, without format and version, and its digest; tensors are on the CPU.

    Raises CheckpointError for a file that is missing, truncated, corrupt, hostile, of another program or of another
    format version. Executes nothing in the file.
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
        if format_version != FORMAT_VERSION:
            is_newer = format_version > FORMAT_VERSION
            raise CheckpointError(
                f"{location}: was written by {'a newer' if is_newer else 'an older'} version of ftcli ({version}, "
                f"format {format_version}; this ftcli reads format {FORMAT_VERSION}); "
                + ("update ftcli" if is_newer else "train again")
            )
    except CONTENT_ERRORS as error:
        raise make_invalid_content_error(error, location) from error
    return content_dict, digest


def read_base_checkpoint(path: Path, model: str, location: str) -> BaseCheckpoint | None:
    """Return the weights and preprocessing of an ftcli checkpoint; None for another type of file.

    Raises CheckpointError for a checkpoint that is corrupt, hostile, of another format version or of another model.
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
        raise make_invalid_content_error(error, location) from error
    if base_checkpoint.model != model:
        raise CheckpointError(
            f"{location}: is a checkpoint of {base_checkpoint.model} and the network is {model}; set backbone.name: "
            f"{base_checkpoint.model}, or give weights of {model}"
        )
    return base_checkpoint


def make_invalid_content_error(error: BaseException, location: str) -> CheckpointError:
    """Return the error for an intact file whose contents are not those of a checkpoint."""
    return CheckpointError(
        f"{location}: was not loaded, since its contents are not those of a checkpoint ({first_line(error)}); do not "
        "use it unless you trust its source"
    )


def _has_digest(path: Path) -> bool:
    """Return whether a file ends with an archive comment of a digest's length, as only ftcli's checkpoints do."""
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
                f"{location}: is truncated at {len(content)} bytes; copy it again or use another checkpoint"
            )
        raise CheckpointError(
            f"{location}: is not an ftcli checkpoint; give one that ftcli train wrote, such as runs/NAME/best_loss.pt, "
            "or set backbone.weights in a recipe to use weights of another program"
        )
    end = len(content) - _COMMENT_LENGTH
    digest = hashlib.sha256(memoryview(content)[:end]).hexdigest()
    if content[end:] != f"sha256:{digest}".encode():
        raise CheckpointError(
            f"{location}: is corrupt (its SHA-256 does not match); copy it again or use another checkpoint"
        )
    return digest
