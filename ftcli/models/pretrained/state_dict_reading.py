"""Read the state dict of a weights file written by any program, without executing code in it."""

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
from ftcli.models.checkpoint_file import BaseCheckpoint, read_base_checkpoint
from ftcli.models.pretrained.weights_files import WeightsFile
from ftcli.models.pretrained_cfg import TIMM_PREFIX, PretrainedWeights

_EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "network", "net")
_MAX_DEPTH = 3  # nested keys above a state dict
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
"""The errors of reading a file that is not a weights file or is truncated."""


@dataclass(frozen=True)
class StateDictFile:
    """The tensors of a weights file by name, in file order, on the CPU.

    `key` is the key of the state dict in the file, empty at the top level; `other_keys` are those of further state
    dicts. `architecture` is the network's name in the file; `base_checkpoint` is set for a checkpoint of ftcli.
    """

    file: WeightsFile
    tensors: dict[str, Tensor]
    key: str = ""
    other_keys: tuple[str, ...] = ()
    architecture: str | None = None
    base_checkpoint: BaseCheckpoint | None = None


def read_state_dict(file: WeightsFile, model: str, location: str) -> StateDictFile:
    """Read a weights file for a model: a state dict, or a training checkpoint with a state dict inside.

    Of several state dicts the averaged one (EMA) is used. Executes nothing in the file. Published torchvision weights
    are read by torchvision, which renames the tensors of old files. Raises CheckpointError if the file is corrupt,
    holds Python objects or holds no tensors.
    """
    if base_checkpoint := read_base_checkpoint(file.path, model, f"{location}: {file.source}"):
        return StateDictFile(file, dict(base_checkpoint.state_dict), base_checkpoint=base_checkpoint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of old formats
            if file.entry is not None and not model.startswith(TIMM_PREFIX):
                return StateDictFile(file, _read_with_torchvision(model, file.entry))
            if _is_safetensors(file.path):
                return StateDictFile(file, safetensors.torch.load_file(file.path))
            # Training scripts such as torchvision's and timm's save their arguments as a Namespace.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file.path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise CheckpointError(f"{location}: {_describe_error(file.path, error)}") from error
    return _extract_state_dict(content, file, location)


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is named .safetensors or begins as one: with the length of a JSON object and a brace."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
        size = file.seek(0, io.SEEK_END)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size


def _read_with_torchvision(model: str, entry: PretrainedWeights) -> dict[str, Tensor]:
    # torchvision unpickles the file; the variable makes torch.load accept only tensors and plain data.
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
            f"{path} holds a Python object ({unsafe_global.group(1)}), which was not loaded because it could execute "
            "code; save the network's state_dict() instead"
        )
    return f"{path} cannot be read as weights ({type(error).__name__}): it is corrupt or of another type; get it again"


def _extract_state_dict(content: Any, file: WeightsFile, location: str) -> StateDictFile:
    state_dicts = list(_find_state_dicts(content, ""))
    if not state_dicts:
        raise CheckpointError(
            f"{location}: {file.path} holds no named tensors, neither at the top level nor under "
            f"{', '.join((*_STATE_DICT_KEYS, *_EMA_KEYS))}; save the network's state_dict()"
        )
    (key, tensors), *others = state_dicts
    if unsupported := [name for name, tensor in tensors.items() if not _is_dense_real(tensor)]:
        raise CheckpointError(
            f"{location}: {file.path} holds {unsupported[0]} as {_describe_tensor(tensors[unsupported[0]])}, not as a "
            "dense real tensor; save the network's state_dict() with dense real tensors"
        )
    architecture = content.get("arch")
    return StateDictFile(
        file,
        tensors,
        key,
        tuple(key for key, _ in others),
        architecture if isinstance(architecture, str) else None,
    )


def _is_dense_real(tensor: Tensor) -> bool:
    return not (tensor.is_meta or tensor.is_quantized or tensor.is_complex() or tensor.layout != torch.strided)


def _describe_tensor(tensor: Tensor) -> str:
    return (
        "a meta tensor"
        if tensor.is_meta
        else f"a {tensor.dtype} tensor of layout {tensor.layout}".replace("torch.", "")
    )


def _find_state_dicts(content: Any, key_path: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the state dicts of a file with their dotted keys, averaged ones first.

    Tensors next to a nested state dict, such as an accuracy, do not count. The depth is limited, since a file may
    contain itself.
    """
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
