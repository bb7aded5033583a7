"""Find, download and verify weights files."""

from __future__ import annotations

import importlib.util
import logging
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import torch

from ftcli.downloads import download_file, is_offline
from ftcli.errors import CheckpointError, RecipeError, first_line, suggest
from ftcli.files import hash_file
from ftcli.models.pretrained_cfg import TIMM_PREFIX, PretrainedWeights, find_pretrained_weights, is_weights_name
from ftcli.recipe.schema import Backbone
from ftcli.recipe.schema.network import is_url
from ftcli.results import Reporter

logger = logging.getLogger(__name__)

_HUB_TIMEOUT = 20.0  # seconds
_PACKAGE_PREFIX = "package:"


@dataclass(frozen=True)
class WeightsFile:
    """A local weights file. `source` is its name in messages: the recipe's path or package, or the URL; `entry` is set
    for published weights."""

    path: Path
    source: str
    sha256: str
    entry: PretrainedWeights | None = None


def resolve_weights(backbone: Backbone, location: str, reporter: Reporter) -> WeightsFile:
    """Return the file of a recipe's `weights` (not none), downloading it on first use.

    Every use verifies the recipe's `sha256`, and for published weights the digest in the file name. With FTCLI_OFFLINE
    nothing is downloaded. Raises RecipeError for an unknown name; CheckpointError for a missing file or package, a
    wrong digest and a failed download.
    """
    entry = None
    if is_url(backbone.weights):
        source = backbone.weights
        path = download_file(source, f"sha256:{backbone.sha256}", location, reporter, CheckpointError)
    elif is_weights_name(backbone.weights):
        entry = find_pretrained_weights(backbone.name, backbone.weights, location)
        assert entry.url is not None
        source = entry.url
        path = _download_published(backbone.name, entry, location, reporter)
    else:
        source = backbone.weights
        path = _find_file(source, location)
    digest = hash_file(path)
    if backbone.sha256 not in (None, digest):
        raise CheckpointError(
            f"{location}: the SHA-256 of {path} is {digest}, not {backbone.sha256}; get the correct file, or change "
            "backbone.sha256"
        )
    return WeightsFile(path, source, digest, entry)


def find_local_file(weights: str) -> Path | None:
    """Return the existing local file that `weights` names by path or package, else None."""
    if weights == "none" or is_weights_name(weights) or is_url(weights):
        return None
    if not weights.startswith(_PACKAGE_PREFIX):
        path: Path | None = Path(weights)
    else:
        package_dir, inner_path = _locate_package(weights)
        path = package_dir / inner_path if package_dir else None
    return path if path and path.is_file() else None


def _find_file(weights: str, location: str) -> Path:
    if path := find_local_file(weights):
        return path
    if not weights.startswith(_PACKAGE_PREFIX):
        raise CheckpointError(
            f"{location}: {weights} does not exist; give the path of a .pt, .pth or .safetensors file"
        )
    package_dir, inner_path = _locate_package(weights)
    package = weights.removeprefix(_PACKAGE_PREFIX).partition("/")[0]
    top_level = package.partition(".")[0]
    if not top_level.isidentifier():
        raise CheckpointError(f"{location}: {weights} does not name a Python package; write package:module/path")
    if package_dir is None:
        raise CheckpointError(
            f"{location}: the Python package {top_level!r} is not installed; pip install {top_level.replace('_', '-')}"
        )
    files = [
        str(file.relative_to(package_dir)) for file in package_dir.rglob("*") if file.suffix not in (".py", ".pyc")
    ]
    raise CheckpointError(
        f"{location}: the package {package!r} has no file {inner_path!r}; {suggest(inner_path, files)}"
    )


def _locate_package(weights: str) -> tuple[Path | None, str]:
    """Return the folder of the package in `package:module/path`, None if it is not installed, and the path in it."""
    package, _, inner_path = weights.removeprefix(_PACKAGE_PREFIX).partition("/")
    top_level, *subpackages = package.split(".")
    spec = importlib.util.find_spec(top_level) if top_level.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None, inner_path
    return Path(spec.submodule_search_locations[0]).joinpath(*subpackages), inner_path


def _download_published(model: str, entry: PretrainedWeights, location: str, reporter: Reporter) -> Path:
    if model.startswith(TIMM_PREFIX) and entry.library_entry.hf_hub_id:
        return _download_from_hub(entry, location)
    assert entry.url is not None
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(entry.url).path).name
    digest = torch.hub.HASH_REGEX.search(path.name)
    if digest is None:
        raise RecipeError(
            f"{location}: {entry.url} is published without a digest; set backbone.weights to its URL and "
            "backbone.sha256"
        )
    return download_file(entry.url, f"sha256:{digest.group(1)}", location, reporter, CheckpointError, path)


def _download_from_hub(entry: PretrainedWeights, location: str) -> Path:
    """Return the file of a timm model in the cache of the Hugging Face hub, downloading it on first use."""
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    repository, _, revision = entry.library_entry.hf_hub_id.partition("@")
    filenames = (
        [entry.library_entry.hf_hub_filename]
        if entry.library_entry.hf_hub_filename
        else ["model.safetensors", "pytorch_model.bin"]
    )
    cached = [try_to_load_from_cache(repository, name, revision=revision or None) for name in filenames]
    local_path = next((path for path in cached if isinstance(path, str)), None)
    url = hf_hub_url(repository, filenames[0], revision=revision or None)
    if local_path is None and is_offline():
        raise CheckpointError(
            f"{location}: {url} is not cached and FTCLI_OFFLINE is set; give the path of the file as weights, or unset "
            "FTCLI_OFFLINE"
        )
    if local_path is None:
        logger.info(f"downloading {url}")
        try:
            name = next(
                name for name in filenames if _url_exists(hf_hub_url(repository, name, revision=revision or None))
            )
            local_path = hf_hub_download(repository, name, revision=revision or None)
        except (OSError, HfHubHTTPError, StopIteration) as error:
            raise CheckpointError(
                f"{location}: {url} cannot be downloaded ({_describe_failure(error)}); download it elsewhere and give "
                "its path as weights"
            ) from error
    path = Path(local_path)
    blob_name = path.resolve().name  # the cache names a file by its SHA-256
    if re.fullmatch("[0-9a-f]{64}", blob_name) and (digest := hash_file(path)) != blob_name:
        raise CheckpointError(
            f"{location}: {path.resolve()} is not the published file: its SHA-256 is {digest}, not {blob_name}; delete "
            "it and run again"
        )
    return path


def _url_exists(url: str) -> bool:
    """Return whether a file exists on the hub. The hub's own client retries for half a minute without a connection."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_HUB_TIMEOUT):
            return True
    except HTTPError as error:
        if error.code == 404:
            return False
        raise


def _describe_failure(error: BaseException) -> str:
    if isinstance(error, StopIteration):
        return "no such file"
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or first_line(reason))
