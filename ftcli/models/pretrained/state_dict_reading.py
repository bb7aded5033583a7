"""What weights files of many programs hold: their tensors by name, read without executing anything."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor

from ftcli.errors import CheckpointError
from ftcli.models.pretrained.checkpoint_file import BaseCheckpoint, read_base_checkpoint
from ftcli.models.pretrained.pretrained_cfg import TIMM_PREFIX, PretrainedWeights
from ftcli.models.pretrained.weights_files import WeightsFile

_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "network", "net")
_MAX_DEPTH = 3  # keys that may lead to a state_dict
_READ_ERRORS = (
    pickle.UnpicklingError,
    SafetensorError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What reading a file that is no weights file, or only a part of one, raises."""


@dataclass(frozen=True)
class StateDictFile:
    """The tensors of a weights file by name, in its order, on the CPU.

    `taken` is the key under which they stood, empty where that is none, and `others` are the keys of further copies
    beside it. `architecture` is what the file calls its network, `ancestor` is there where it is a checkpoint of ftcli.
    """

    tensors: dict[str, Tensor]
    key: str = ""
    other_keys: tuple[str, ...] = ()
    architecture: str | None = None
    base_checkpoint: BaseCheckpoint | None = None


def read_state_dict(file: WeightsFile, model: str, location: str) -> StateDictFile:
    """Read a weights file for a model: a state_dict as it is, or the one inside a training's checkpoint.

    Of several in one file the averaged weights are taken, which evaluation uses. Nothing that a file holds is executed.
    Published files of torchvision are read by torchvision, which knows the names that its older ones use. Raises
    CheckpointError that begins with `where` if the file is broken, holds Python objects, or holds no tensors.
    """
    if base_checkpoint := read_base_checkpoint(file.path, model, f"{location}: {file.source}"):
        return StateDictFile(dict(base_checkpoint.state_dict), base_checkpoint=base_checkpoint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's words about formats; what matters is raised
            if file.entry is not None and not model.startswith(TIMM_PREFIX):
                return StateDictFile(_read_with_torchvision(model, file.entry))
            if _is_safetensors(file.path):
                return StateDictFile(safetensors.torch.load_file(file.path))
            # Training scripts, torchvision's and timm's among them, keep their arguments in plain namespaces.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file.path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise CheckpointError(f"{location}: {_describe_error(file.path, error)}") from error
    return _extract_state_dict(content, file.path, location)


def _is_safetensors(path: Path) -> bool:
    """By its name, or by how it begins: with the length of a JSON object, and that."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
        size = file.seek(0, io.SEEK_END)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size


def _read_with_torchvision(model: str, entry: PretrainedWeights) -> dict[str, Tensor]:
    # torchvision reads with pickle; the variable has PyTorch refuse everything but tensors
    previous = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.random.fork_rng(devices=[]):
            network = torchvision.models.get_model(model, weights=entry.library_entry, progress=False)
    finally:
        if previous is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = previous
    return dict(network.state_dict())


def _describe_error(path: Path, error: BaseException) -> str:
    unsafe_global = re.search(r"GLOBAL (\S+)", str(error))
    if unsafe_global and isinstance(error, pickle.UnpicklingError):
        return (
            f"{path} holds a Python object ({unsafe_global.group(1)}) and not tensors alone; it was not loaded, since that "
            "could run any code; save the network's state_dict() instead"
        )
    return (
        f"{path} cannot be read as weights ({type(error).__name__}); the file is broken or of another kind, get it anew"
    )


def _extract_state_dict(content: Any, path: Path, location: str) -> StateDictFile:
    state_dicts = list(_find_state_dicts(content, ""))
    if not state_dicts:
        raise CheckpointError(
            f"{location}: {path} holds no named tensors, neither directly nor under {', '.join((*_STATE_DICT_KEYS, *_EMA_KEYS))}; "
            "save the network's state_dict()"
        )
    (found_key, tensors), *others = state_dicts
    if unsupported := [name for name, tensor in tensors.items() if not _is_dense_real(tensor)]:
        raise CheckpointError(
            f"{location}: {path} holds no plain numbers in {unsupported[0]} ({_describe_tensor(tensors[unsupported[0]])}); save the network's "
            "state_dict() with its values, as dense real tensors"
        )
    architecture = content.get("arch")
    return StateDictFile(
        tensors,
        found_key,
        tuple(key for key, _ in others),
        architecture if isinstance(architecture, str) else None,
    )


def _is_dense_real(tensor: Tensor) -> bool:
    return not (tensor.is_meta or tensor.is_quantized or tensor.is_complex() or tensor.layout != torch.strided)


def _describe_tensor(tensor: Tensor) -> str:
    return "without values" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}".replace("torch.", "")


def _find_state_dicts(content: Any, key_path: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state_dicts of a file with the keys that lead to them, averaged ones first. What stands beside a state_dict,
    such as an accuracy, is none, though it be a tensor. A file that holds itself ends after some keys."""
    if not isinstance(content, Mapping) or key_path.count(".") >= _MAX_DEPTH:
        return
    inner = [
        state_dict
        for key in (*_EMA_KEYS, *_STATE_DICT_KEYS)
        for state_dict in _find_state_dicts(content.get(key), f"{key_path}.{key}" if key_path else key)
    ]
    yield from inner
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors and not inner:
        yield key_path, tensors
