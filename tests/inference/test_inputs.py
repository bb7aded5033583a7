"""What the head is given is computed once, for whichever command asks first; else the cache changes nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftcli.analysis.evaluation.measurement import Question, measure
from ftcli.features.prefix import Prefix
from ftcli.inference import inputs as module
from ftcli.inference.inputs import open_inputs
from ftcli.models.zoo import build_network
from ftcli.results import Preprocessing, Silent
from tests.conftest import Ftcli, read_npz

CPU = torch.device("cpu")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many images each batch of a prefix had; an empty cache is beside it."""
    counts: list[int] = []
    compute = Prefix._compute

    def count(prefix: Prefix, images: torch.Tensor) -> Any:
        counts.append(len(images))
        return compute(prefix, images)

    monkeypatch.setattr(Prefix, "_compute", count)
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "own-cache"))
    return counts


def test_commands_share_what_they_compute(ftcli: Ftcli, finished: Path, computed: list[int]) -> None:
    checkpoint = "runs/photos/best_loss.pt"
    told = ftcli("evaluate", checkpoint, "--json", "--batch-size", "3").json
    assert sum(computed) == 22  # of test and, for the threshold, of val
    computed.clear()
    again = ftcli("evaluate", checkpoint, "--json", "--batch-size", "64", "--rehash").json
    assert again == told
    assert not computed
    wish = ("--probe", "logistic", "--save-head", "head.pt", "--out")
    extracted = ftcli("extract", checkpoint, "--json", *wish, "a.npz").json
    assert sum(computed) == 30  # those of train
    assert ftcli("extract", checkpoint, "--json", *wish, "b.npz").code == 0
    assert sum(computed) == 30
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    plain = ftcli("extract", checkpoint, "--json", "--no-cache", *wish, "plain.npz").json
    assert plain["probe"]["cv_accuracy"] == extracted["probe"]["cv_accuracy"]
    one, other = read_npz("a.npz"), read_npz("plain.npz")
    assert np.array_equal(one["paths"], other["paths"])
    assert np.allclose(one["features"], other["features"], rtol=1e-4, atol=1e-5)
    assert sum(computed) == 30


def test_without_the_cache_an_evaluation_is_close_and_keeps_nothing(
    finished: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    question = Question(checkpoint=finished / "runs/photos/best_loss.pt", device="cpu", num_workers=0)
    plain = measure(replace(question, cache=False), Silent()).outputs
    assert not computed
    assert not (tmp_path / "own-cache").exists()
    kept = measure(question, Silent()).outputs
    assert sum(computed) == 12
    assert torch.allclose(kept.logits, plain.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(kept.logits.argmax(1), plain.logits.argmax(1))


@pytest.mark.parametrize("limit", ["0", "1 kB"])
def test_without_room_an_evaluation_has_the_same_bits(
    finished: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str
) -> None:
    class Listener(Silent):
        said = ""

        def say(self, text: str) -> None:
            self.said += text

    question = Question(checkpoint=finished / "runs/photos/best_loss.pt", device="cpu", num_workers=0)
    kept = measure(question, Silent()).outputs
    shutil.rmtree(tmp_path / "own-cache")
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", limit)
    listener = Listener()
    assert torch.equal(measure(question, listener).outputs.logits, kept.logits)
    assert sum(computed) == 2 * 12
    told = (
        "evaluating test: frozen part: the cache has no room for what the network gives, so it is computed without it"
    )
    assert listener.said == ("" if limit == "0" else told)  # who keeps nothing on purpose knows
    assert not list((tmp_path / "own-cache").rglob("*.chunk"))


def test_without_room_features_have_the_same_bits(
    ftcli: Ftcli, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "own-cache"))
    assert ftcli("extract", "runs/photos/best_loss.pt", "--out", "kept.npz").code == 0
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert ftcli("extract", "runs/photos/best_loss.pt", "--out", "anew.npz").code == 0
    assert Path("kept.npz").read_bytes() == Path("anew.npz").read_bytes()


def test_options_that_do_nothing_are_refused(ftcli: Ftcli, finished: Path) -> None:
    checkpoint = "runs/photos/best_loss.pt"
    both = ["--rehash: does nothing with --no-cache; leave one out"]
    assert ftcli("evaluate", checkpoint, "--rehash", "--no-cache").faults == both
    assert ftcli("extract", checkpoint, "--out", "a.npz", "--rehash", "--no-cache").faults == both
    assert ftcli("evaluate", checkpoint, "--rehash", "--tta", "flips").faults == [
        "--rehash: does nothing with --tta flips, which uses no cache; leave one out"
    ]
    assert ftcli("extract", checkpoint, "--out", "a.npz", "--rehash", "--layer", "stage3").faults == [
        "--rehash: does nothing with --layer stage3, which uses no cache; leave one out"
    ]


@pytest.mark.parametrize(
    ("name", "head", "shape"),
    [("squeezenet1_1", "classifier.1", (512, 3, 3)), ("mobilenet_v3_small", "classifier.3", (1024,))],
)
def test_what_crosses_is_what_the_head_is_given(name: str, head: str, shape: tuple[int, ...]) -> None:
    expected = Preprocessing(64, 64, "squash", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    opened = open_inputs(build_network(name, meta=False, image_size=64), head, expected, CPU, "float32")
    assert opened is not None
    assert [crossing.shape for crossing in opened.cut.crossing] == [shape]


class _Beside(nn.Module):
    """A network whose head is given a value that goes past it too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 2, 3)
        self.head = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.body(images).mean((2, 3))
        output: torch.Tensor = self.head(values) + values
        return output


def test_a_value_that_others_read_too_is_not_taken_for_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Preprocessing(8, 8, "squash", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert open_inputs(_Beside(), "head", expected, CPU, "float32") is None
    monkeypatch.setattr(module, "_is_given", lambda *_: True)
    assert open_inputs(_Beside(), "head", expected, CPU, "float32") is not None
