from __future__ import annotations

import argparse
import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision

from ftcli.errors import CheckpointError
from ftcli.models.pretrained.state_dict_reading import StateDictFile, read_state_dict
from ftcli.models.pretrained.weights_files import WeightsFile, resolve_weights
from ftcli.recipe.schema import Backbone
from ftcli.results import NullReporter
from tests.server import Server

LOCATION = "x.yaml:3:22: backbone.weights"


def _read(path: Path, model: str = "resnet18") -> StateDictFile:
    return read_state_dict(WeightsFile(path, str(path), ""), model, LOCATION)


def _error_message(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        _read(path)
    return str(error.value)


class _Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_read_state_dict_executes_no_code(tmp_path: Path, form: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "w.pth"
    content = {"fc.weight": _Hostile(victim)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    message = _error_message(path)
    assert not victim.exists()
    assert message.startswith(f"{LOCATION}: {path} ")
    pickle.loads(pickle.dumps(content))  # unrestricted unpickling does
    assert victim.exists()


def test_read_state_dict_executes_no_code_of_cached_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    victim = tmp_path / "victim"
    torch.save({"fc.weight": _Hostile(victim)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    url = server.serve(f"/r-{hashlib.sha256(content).hexdigest()[:8]}.pth", content)
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.DEFAULT.value, "url", url)
    file = resolve_weights(Backbone(name="resnet18"), LOCATION, NullReporter())
    with pytest.raises(CheckpointError):
        read_state_dict(file, "resnet18", LOCATION)
    assert file.path.is_file()
    assert not victim.exists()


def test_read_state_dict_rejects_pickled_module(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None), tmp_path / "w.pth")
    assert _error_message(tmp_path / "w.pth") == (
        f"{LOCATION}: {tmp_path}/w.pth holds a Python object (torchvision.models.squeezenet.SqueezeNet), which was not "
        "loaded because it could execute code; save the network's state_dict() instead"
    )


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00", b"PK\x03\x04" + bytes(40)])
def test_read_state_dict_rejects_corrupt_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    message = _error_message(tmp_path / name)
    assert message.startswith(f"{LOCATION}: {tmp_path}/{name} cannot be read as weights (")
    assert message.endswith("): it is corrupt or of another type; get it again")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_read_state_dict_rejects_truncated_file(tmp_path: Path, fraction: float) -> None:
    torch.save({"fc.weight": torch.randn(100, 100)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: int(len(content) * fraction)])
    assert "cannot be read as weights" in _error_message(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, {"optimizer": {"a": torch.zeros(1)}}, [torch.zeros(1)], {}])
def test_read_state_dict_rejects_file_without_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert _error_message(tmp_path / "w.pth") == (
        f"{LOCATION}: {tmp_path}/w.pth holds no named tensors, neither at the top level nor under state_dict, "
        "model_state_dict, model, network, net, state_dict_ema, model_ema, ema_state_dict, ema; save the network's "
        "state_dict()"
    )


def test_read_state_dict_limits_nesting_depth(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content |= dict.fromkeys(("model", "net", "ema"), content)
    torch.save(content, tmp_path / "w.pth")
    assert _error_message(tmp_path / "w.pth").startswith(f"{LOCATION}: {tmp_path}/w.pth holds no named tensors, ")
    torch.save({"model": {"net": {"ema": {"a.weight": torch.ones(1)}}}}, tmp_path / "w.pth")
    assert _read(tmp_path / "w.pth").key == "model.net.ema"


ONE, TWO = {"a.weight": torch.ones(1)}, {"a.weight": torch.full((1,), 2.0)}


@pytest.mark.parametrize(
    ("content", "key", "other_keys", "value"),
    [
        ({"state_dict": ONE, "arch": "x", "best_acc1": torch.tensor(0.7)}, "state_dict", (), 1),
        ({"epoch": 3, "state_dict": ONE, "state_dict_ema": TWO}, "state_dict_ema", ("state_dict",), 2),
        ({"model": ONE, "model_ema": TWO, "optimizer": {"state": {}}}, "model_ema", ("model",), 2),
        ({"model": {"state_dict": ONE}}, "model.state_dict", (), 1),
        ({"model_state_dict": ONE, "ema": {"state_dict": TWO}}, "ema.state_dict", ("model_state_dict",), 2),
        ({**ONE, "epoch": 3}, "", (), 1),
    ],
)
def test_read_state_dict_prefers_ema_weights(
    tmp_path: Path, content: Any, key: str, other_keys: tuple[str, ...], value: int
) -> None:
    torch.save(content, tmp_path / "w.pth")
    read = _read(tmp_path / "w.pth")
    assert (read.key, read.other_keys) == (key, other_keys)
    assert read.tensors == {"a.weight": torch.tensor([float(value)])}


def test_read_state_dict_allows_argparse_namespace(tmp_path: Path) -> None:
    arguments = argparse.Namespace(lr=0.1, model="resnet18", opt_betas=(0.9, 0.999))
    torch.save({"state_dict": ONE, "args": arguments, "arch": "resnet18"}, tmp_path / "w.pth")
    read = _read(tmp_path / "w.pth")
    assert read.tensors == ONE
    assert read.architecture == "resnet18"


def test_read_state_dict_detects_safetensors_by_content(tmp_path: Path) -> None:
    safetensors.torch.save_file(ONE, tmp_path / "download")
    assert _read(tmp_path / "download").tensors == ONE


@pytest.mark.parametrize(
    ("tensor", "description"),
    [
        (torch.empty(2, device="meta"), "a meta tensor"),
        (torch.eye(2).to_sparse(), "a float32 tensor of layout sparse_coo"),
        (torch.ones(2, dtype=torch.complex64), "a complex64 tensor of layout strided"),
    ],
)
def test_read_state_dict_rejects_meta_sparse_and_complex_tensors(
    tmp_path: Path, tensor: torch.Tensor, description: str
) -> None:
    torch.save({**ONE, "b": tensor}, tmp_path / "w.pth")
    assert _error_message(tmp_path / "w.pth") == (
        f"{LOCATION}: {tmp_path}/w.pth holds b as {description}, not as a dense real tensor; save the network's "
        "state_dict() with dense real tensors"
    )
