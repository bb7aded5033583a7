"""Tests of head features: they are computed once for all commands, and the cache changes no result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftcli.evaluation import head_features
from ftcli.evaluation.eval_setup import EvaluateArgs, evaluate_checkpoint
from ftcli.evaluation.head_features import cut_at_head
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.models.factory import create_model
from ftcli.results import NullReporter, Preprocessing
from tests.conftest import Ftcli, LibraryLog, read_npz

CPU = torch.device("cpu")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Return a list of the sizes of all batches computed with an initially empty cache."""
    counts: list[int] = []
    compute = FrozenBackbone._compute

    def count(backbone: FrozenBackbone, images: torch.Tensor) -> Any:
        counts.append(len(images))
        return compute(backbone, images)

    monkeypatch.setattr(FrozenBackbone, "_compute", count)
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "own-cache"))
    return counts


def test_head_features_are_shared_between_commands(ftcli: Ftcli, work_dir_with_run: Path, computed: list[int]) -> None:
    checkpoint = "runs/photos/best_loss.pt"
    first_result = ftcli("evaluate", checkpoint, "--json", "--batch-size", "3").json
    assert sum(computed) == 22  # test and, for the threshold, val
    computed.clear()
    second_result = ftcli("evaluate", checkpoint, "--json", "--batch-size", "64", "--rehash").json
    assert second_result == first_result
    assert not computed
    probe_options = ("--probe", "logistic", "--save-head", "head.pt", "--out")
    extracted = ftcli("extract", checkpoint, "--json", *probe_options, "a.npz").json
    assert sum(computed) == 30  # train
    assert ftcli("extract", checkpoint, "--json", *probe_options, "b.npz").code == 0
    assert sum(computed) == 30
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    uncached = ftcli("extract", checkpoint, "--json", "--no-cache", *probe_options, "plain.npz").json
    assert uncached["probe"]["cv_accuracy"] == extracted["probe"]["cv_accuracy"]
    cached_arrays, uncached_arrays = read_npz("a.npz"), read_npz("plain.npz")
    assert np.array_equal(cached_arrays["paths"], uncached_arrays["paths"])
    assert np.allclose(cached_arrays["features"], uncached_arrays["features"], rtol=1e-4, atol=1e-5)
    assert sum(computed) == 30


def test_evaluate_without_cache_is_close_and_writes_nothing(
    work_dir_with_run: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = EvaluateArgs(checkpoint=work_dir_with_run / "runs/photos/best_loss.pt", device="cpu", num_workers=0)
    _, uncached = evaluate_checkpoint(replace(args, use_cache=False), NullReporter())
    assert not computed
    assert not (tmp_path / "own-cache").exists()
    _, cached = evaluate_checkpoint(args, NullReporter())
    assert sum(computed) == 12
    assert torch.allclose(cached.logits, uncached.logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(cached.predicted, uncached.predicted)


@pytest.mark.parametrize("limit", ["0", "1 kB"])
def test_evaluate_with_full_cache_is_bit_identical(
    work_dir_with_run: Path,
    computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    limit: str,
    log: LibraryLog,
) -> None:
    args = EvaluateArgs(checkpoint=work_dir_with_run / "runs/photos/best_loss.pt", device="cpu", num_workers=0)
    _, cached = evaluate_checkpoint(args, NullReporter())
    shutil.rmtree(tmp_path / "own-cache")
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", limit)
    _, uncached = evaluate_checkpoint(args, NullReporter())
    assert torch.equal(uncached.logits, cached.logits)
    assert sum(computed) == 2 * 12
    expected = "evaluating test: feature extraction: the features do not fit in the cache and are computed in each pass"
    assert log.messages == ([] if limit == "0" else [expected])  # silent if the cache is disabled
    assert not list((tmp_path / "own-cache").glob("*/*/*.sqlite"))


def test_extract_with_full_cache_is_bit_identical(
    ftcli: Ftcli, work_dir_with_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "own-cache"))
    assert ftcli("extract", "runs/photos/best_loss.pt", "--out", "cached.npz").code == 0
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert ftcli("extract", "runs/photos/best_loss.pt", "--out", "uncached.npz").code == 0
    assert Path("cached.npz").read_bytes() == Path("uncached.npz").read_bytes()


def test_rehash_without_cache_is_an_error(ftcli: Ftcli, work_dir_with_run: Path) -> None:
    checkpoint = "runs/photos/best_loss.pt"
    assert ftcli("evaluate", checkpoint, "--rehash", "--no-cache").errors == [
        "--rehash: has no effect with --no-cache; omit one of them"
    ]
    assert ftcli("extract", checkpoint, "--out", "a.npz", "--rehash", "--no-cache").errors == [
        "--rehash: has no effect with --no-cache; omit one of them"
    ]
    assert ftcli("evaluate", checkpoint, "--rehash", "--tta", "flips").errors == [
        "--rehash: has no effect with --tta flips, which uses no cache; omit one of them"
    ]
    assert ftcli("extract", checkpoint, "--out", "a.npz", "--rehash", "--layer", "stage3").errors == [
        "--rehash: has no effect with --layer stage3, which uses no cache; omit one of them"
    ]


@pytest.mark.parametrize(
    ("name", "head", "shape"),
    [("squeezenet1_1", "classifier.1", (512, 3, 3)), ("mobilenet_v3_small", "classifier.3", (1024,))],
)
def test_cut_at_head_boundary_is_the_head_input(name: str, head: str, shape: tuple[int, ...]) -> None:
    preprocessing = Preprocessing(64, 64, "squash", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    pipeline = cut_at_head(create_model(name, meta=False, image_size=64), head, preprocessing, CPU, "float32")
    assert pipeline is not None
    assert [boundary.shape for boundary in pipeline.cut.boundary] == [shape]


class _SharedHeadInputModel(nn.Module):
    """A network that uses the input of its head a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 2, 3)
        self.head = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.body(images).mean((2, 3))
        output: torch.Tensor = self.head(values) + values
        return output


def test_cut_at_head_is_none_where_the_head_input_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessing = Preprocessing(8, 8, "squash", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert cut_at_head(_SharedHeadInputModel(), "head", preprocessing, CPU, "float32") is None
    monkeypatch.setattr(head_features, "_is_head_input", lambda *_: True)
    assert cut_at_head(_SharedHeadInputModel(), "head", preprocessing, CPU, "float32") is not None
