"""The shipped hotdog recipe in an empty folder, with interrupted downloads of data and weights."""

from __future__ import annotations

import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from ftcli.datasets.registry import DATASETS
from tests.conftest import CONFIGS, Ftcli
from tests.datasets.conftest import list_files, pack_zip
from tests.server import Response, Server


@pytest.fixture
def weights(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Random weights of ResNet-18 in place of the published ones, at an address that the server answers."""
    file = io.BytesIO()
    torch.save(resnet18().state_dict(), file)
    name = f"resnet18-{hashlib.sha256(file.getvalue()).hexdigest()[:8]}.pth"
    url = server.serve(f"http://weights.example/models/{name}", file.getvalue())
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return url


@pytest.mark.slow
@pytest.mark.covers("data.download")
def test_hotdog_recipe_downloads_and_trains(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ftcli: Ftcli,
    server: Server,
    weights: str,
    jpegs: tuple[bytes, ...],
) -> None:
    members = {
        f"hotdog/{split}/{label}/{number}.png": jpegs[(number + shift) % 12]
        for split, count, shift in (("train", 4, 0), ("test", 2, 8))
        for label in ("hotdog", "not-hotdog")
        for number in range(0 if label == "hotdog" else 1, 2 * count, 2)
    }
    archive = pack_zip(members)
    (remote,) = DATASETS["hotdog"].files
    small = replace(remote, digest=f"sha1:{hashlib.sha1(archive).hexdigest()}")
    monkeypatch.setitem(DATASETS, "hotdog", replace(DATASETS["hotdog"], files=(small,)))
    server.serve(remote.url, *[Response(archive, cut_after=length) for length in (3000, 2000, 1000)], Response(archive))
    monkeypatch.setenv("http_proxy", server.address)
    home = tmp_path / "home"
    shutil.copytree(CONFIGS, home / "configs")
    monkeypatch.chdir(home)

    outcome = ftcli("train", "configs/hotdog.yaml", "--json")
    assert outcome.code == 0, outcome.err
    assert [(stage["name"], stage["epochs"]) for stage in outcome.json["stages"]] == [("head", 5), ("all", 5)]
    assert outcome.json["test"]["images"] == 4
    assert list_files(home / "data/hotdog") == {name.removeprefix("hotdog/"): image for name, image in members.items()}
    ranges = [seen.range for seen in server.requests if seen.path == remote.url]
    assert ranges == [None, "bytes=3000-", "bytes=5000-", "bytes=6000-"]
    assert [server.count(path) for path in (weights, "")] == [1, 5]
    assert f"{remote.url}: connection closed at 0.0 MB; trying again" in outcome.err
    assert ftcli("evaluate", "runs/hotdog/best_loss.pt", "--json").json["images"] == 4
    assert server.count() == 5
