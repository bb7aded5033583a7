"""Tests of pretrained weights on the command line: from a run, a URL, or a file of another program."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from ftcli.models.pretrained.loading import load_pretrained
from ftcli.recipe.schema import Backbone
from ftcli.results import NullReporter, Preprocessing
from ftcli.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.conftest import CommandResult, Ftcli
from tests.server import Response, Server

PREPROCESSING = Preprocessing(40, 44, "squash", "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
HEAD_TENSORS = "fc.0.weight [16, 1024], fc.0.bias [16], fc.3.weight [2, 16], fc.3.bias [2]"


@pytest.fixture
def earlier_checkpoint(work_dir_with_run: Path) -> Checkpoint:
    """The checkpoint `earlier.pt` of another run with other preprocessing, and `r2.yaml` that starts from it."""
    checkpoint = replace(read_checkpoint(work_dir_with_run / "runs/photos/best_loss.pt"), preprocessing=PREPROCESSING)
    write_checkpoint(checkpoint, work_dir_with_run / "earlier.pt")
    text = (
        (work_dir_with_run / "r.yaml")
        .read_text()
        .replace("  image_size: 32\n", "")
        .replace("name: photos", "name: later")
    )
    (work_dir_with_run / "r2.yaml").write_text(text.replace("weights: none", "weights: earlier.pt"))
    return checkpoint


def train_head(ftcli: Ftcli, *more: str) -> CommandResult:
    return ftcli("train", "r2.yaml", "--stage", "head", "--set", "stages.head.epochs=1", "--json", *more)


def has_same_backbone(first: Checkpoint, second: Checkpoint) -> bool:
    names = [name for name in first.state if not name.startswith("fc.")]
    return all(torch.equal(first.state[name], second.state[name]) for name in names)


@pytest.mark.slow
@pytest.mark.covers("backbone.weights", "data.resize", "data.image_size", "data.normalize")
def test_train_from_checkpoint_takes_its_preprocessing(earlier_checkpoint: Checkpoint, ftcli: Ftcli) -> None:
    outcome = train_head(ftcli)
    assert outcome.code == 0, outcome.err
    assert f"earlier.pt: tensors of another head are skipped: {HEAD_TENSORS}" in outcome.err.splitlines()
    made = read_checkpoint(Path(outcome.json["best_loss"]))
    assert made.preprocessing == PREPROCESSING
    assert made.origin["weights"] == "earlier.pt"
    assert made.origin["weights_sha256"] == hashlib.sha256(Path("earlier.pt").read_bytes()).hexdigest()
    assert has_same_backbone(made, earlier_checkpoint)
    assert ftcli("inspect", "r2.yaml", "--json").json["preprocessing"] == PREPROCESSING.to_dict()


def test_recipe_overrides_preprocessing_of_checkpoint(earlier_checkpoint: Checkpoint, ftcli: Ftcli) -> None:
    text = Path("r2.yaml").read_text()
    settings = "  image_size: 80\n  resize: pad\n  normalize: {mean: [0.5, 0.5, 0.5], std: [1.0, 1.0, 1.0]}\n"
    Path("r2.yaml").write_text(text.replace("  val: 0.2\n", f"  val: 0.2\n{settings}"))
    expected = Preprocessing(80, 80, "pad", "bicubic", (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    assert ftcli("inspect", "r2.yaml", "--json").json["preprocessing"] == expected.to_dict()
    Path("r2.yaml").write_text(text.replace("  val: 0.2\n", "  val: 0.2\n  image_size: 80\n"))
    assert ftcli("inspect", "r2.yaml", "--json").json["preprocessing"] == {
        **PREPROCESSING.to_dict(),
        "image_size": 80,
        "resize_size": 88,
    }


@pytest.mark.slow
def test_resume_does_not_need_initial_weights(earlier_checkpoint: Checkpoint, ftcli: Ftcli) -> None:
    best = train_head(ftcli).json["best_loss"]
    Path("earlier.pt").unlink()
    options = ("--set", "stages.all.epochs=1", "--json")
    outcome = ftcli("train", "--stage", "all", "--resume", best, *options)
    assert outcome.code == 0, outcome.err
    assert read_checkpoint(Path(outcome.json["best_loss"])).preprocessing == PREPROCESSING


def test_train_refuses_checkpoint_of_other_model(earlier_checkpoint: Checkpoint, ftcli: Ftcli) -> None:
    outcome = train_head(ftcli, "--set", "backbone.name=squeezenet1_1")
    assert outcome.code == 4
    assert outcome.errors == [
        "r2.yaml:8:47: backbone.weights: earlier.pt: is a checkpoint of shufflenet_v2_x0_5 and the network is "
        "squeezenet1_1; set backbone.name: shufflenet_v2_x0_5, or give weights of squeezenet1_1"
    ]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_train_refuses_corrupt_checkpoint(earlier_checkpoint: Checkpoint, ftcli: Ftcli, share: float) -> None:
    content = bytearray(Path("earlier.pt").read_bytes())
    content[int(share * len(content))] ^= 1
    Path("earlier.pt").write_bytes(content)
    for command in (("train", "r2.yaml"), ("inspect", "shufflenet_v2_x0_5", "--weights", "earlier.pt")):
        outcome = ftcli(*command)
        assert outcome.code == 4
        location = "r2.yaml:8:47: backbone.weights" if command[0] == "train" else "--weights"
        assert outcome.errors == [
            f"{location}: earlier.pt: is corrupt (its SHA-256 does not match); copy it again or use another checkpoint"
        ]
    assert not Path("runs/later").exists()


@pytest.mark.slow
@pytest.mark.covers("backbone.sha256")
def test_train_downloads_weights_once_despite_interruptions(
    earlier_checkpoint: Checkpoint, ftcli: Ftcli, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path("earlier.pt").read_bytes()
    Path("earlier.pt").unlink()
    digest = hashlib.sha256(content).hexdigest()
    cut = [Response(content, cut_after=len(content) // 3), Response(content, cut_after=len(content) // 3, reset=True)]
    url = server.serve("/earlier.pt", *cut, Response(content))
    settings = ("--set", f"backbone.weights={url}", "--set", f"backbone.sha256={digest}")
    outcome = train_head(ftcli, *settings)
    assert outcome.code == 0, outcome.err
    assert [request.range is not None for request in server.requests] == [False, True, True]
    made = read_checkpoint(Path(outcome.json["best_loss"]))
    assert made.preprocessing == PREPROCESSING
    assert made.origin["weights"] == url
    assert has_same_backbone(made, earlier_checkpoint)
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    result = ftcli("inspect", "shufflenet_v2_x0_5", "--weights", url, "--sha256", digest, "--json").json
    assert result["loaded"]["source"] == url  # from the cache
    assert server.count() == 3


def test_train_refuses_weights_with_other_sha256(earlier_checkpoint: Checkpoint, ftcli: Ftcli) -> None:
    actual, wrong = hashlib.sha256(Path("earlier.pt").read_bytes()).hexdigest(), "0" * 64
    outcome = train_head(ftcli, "--set", f"backbone.sha256='{wrong}'")
    assert outcome.code == 4
    assert outcome.errors == [
        f"r2.yaml:8:47: backbone.weights: the SHA-256 of earlier.pt is {actual}, not "
        f"{wrong}; get the correct file, or change backbone.sha256"
    ]


def test_recipe_with_url_requires_sha256(work_dir: Path, ftcli: Ftcli) -> None:
    outcome = ftcli("train", "r.yaml", "--set", "backbone.weights=https://example.org/w.pth")
    assert outcome.code == 2
    assert outcome.errors == [
        "r.yaml:9:11: backbone: weights from a URL require sha256; give the SHA-256 that the publisher states, or "
        "that `sha256sum FILE` prints for a copy that you trust"
    ]


def test_train_offline_reports_path_of_weights(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    outcome = ftcli("train", "r.yaml", "--set", "backbone.weights=default")
    assert outcome.code == 4
    name = "shufflenetv2_x0.5-f707e7126e.pth"
    assert outcome.errors == [
        f"--set backbone.weights=default: backbone.weights: https://download.pytorch.org/models/{name} is not cached "
        f"and FTCLI_OFFLINE is set; copy the file to {tmp_path}/hub/checkpoints/{name}, or "
        "unset FTCLI_OFFLINE"
    ]


def test_inspect_shows_loaded_weights(work_dir: Path, ftcli: Ftcli) -> None:
    state: dict[str, Any] = dict(torchvision.models.squeezenet1_1(weights=None).state_dict())
    state["classifier.1.weight"], state["classifier.1.bias"] = torch.zeros(3, 512, 1, 1), torch.zeros(3)
    torch.save({"state_dict": {f"model.{n}": t for n, t in state.items()} | {"loss.weight": torch.ones(3)}}, "w.ckpt")
    digest = hashlib.sha256(Path("w.ckpt").read_bytes()).hexdigest()
    result = ftcli("inspect", "squeezenet1_1", "--weights", "./w.ckpt", "--sha256", digest, "--json").json
    skipped = ["loss.weight [3]", "classifier.1.weight [3, 512, 1, 1]", "classifier.1.bias [3]"]
    assert result["loaded"] == {"source": "./w.ckpt", "sha256": digest, "tensors": 50, "left_out": skipped}
    lines = ftcli("inspect", "squeezenet1_1", "--weights", "./w.ckpt").out.splitlines()
    assert "weights: 50 tensors from ./w.ckpt" in lines
    assert f"  sha256: {digest}" in lines
    assert f"  skipped: {', '.join(skipped)}" in lines
    assert ftcli("inspect", "squeezenet1_1", "--json").json["loaded"] is None


def test_inspect_shows_preprocessing_of_checkpoint(earlier_checkpoint: Checkpoint, ftcli: Ftcli) -> None:
    result = ftcli("inspect", "shufflenet_v2_x0_5", "--weights", "earlier.pt", "--json").json
    assert result["preprocessing"] == PREPROCESSING.to_dict()
    assert result["loaded"]["tensors"] == 336
    backbone = Backbone(name="shufflenet_v2_x0_5", weights="earlier.pt")
    state = load_pretrained(backbone, "here", NullReporter()).model.state_dict()
    assert all(torch.equal(state[name], earlier_checkpoint.state[name]) for name in state if not name.startswith("fc."))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("r.yaml", "--weights", "w.pth"),
            "--weights w.pth: requires a model name; recipes and checkpoints have their own weights",
        ),
        (
            ("runs/x/best_loss.pt", "--weights", "w.pth"),
            "--weights w.pth: requires a model name; recipes and checkpoints have their own weights",
        ),
        (
            ("--weights", "w.pth"),
            "--weights w.pth: requires a model name; recipes and checkpoints have their own weights",
        ),
        (("resnet18", "--match", "position"), "--match: requires --weights"),
        (("resnet18", "--sha256", "ab"), "--sha256: requires --weights"),
        (("resnet18", "--weights", "w.pth", "--match", "x"), "--match: 'x' is not one of name, position"),
    ],
)
def test_inspect_refuses_incompatible_options(
    work_dir: Path, ftcli: Ftcli, arguments: tuple[str, ...], sentence: str
) -> None:
    outcome = ftcli("inspect", *arguments)
    assert (outcome.code, outcome.errors) == (2, [sentence])


@pytest.mark.parametrize("columns", ["30", "200"])
def test_inspect_shows_mismatched_tensors(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    state = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
    torch.save(state, "w.pth")
    outcome = ftcli("inspect", "squeezenet1_1", "--weights", "w.pth", "--match", "position")
    assert outcome.code == 4
    assert outcome.out == ""
    assert [" ".join(line.split()) for line in outcome.err.splitlines()[:4]] == [
        "error: --weights: w.pth has 338 tensors and the network 52, and match: position needs the same number; the "
        "file's tensors are those of shufflenet_v2_x0_5; set backbone.name: shufflenet_v2_x0_5",
        "network shape file shape",
        "1 features.0.weight [64, 3, 3, 3] conv1.0.weight [24, 3, 3, 3]",
        "2 features.0.bias [64] conv1.1.weight [24]",
    ]
    assert outcome.err.splitlines()[-1] == "tensors 1 to 12 of 282, in order, without batch counters"
