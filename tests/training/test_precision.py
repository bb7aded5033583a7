"""Tests of the choice of the number format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ftcli.evaluation.classifier import Classifier, load_classifier
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.training import precision
from ftcli.training.precision import choose_precision, resolve_classifier_precision
from tests.conftest import Ftcli, LibraryLog
from tests.training.classifiers import CPU, build_classifier, fake_clock


@pytest.mark.parametrize(
    ("seconds", "chosen", "speedup"),
    [
        ((9.0, 9.0, 1.1, 1.0), "bfloat16", "1.1"),
        ((1.05, 1.0, 9.0, 9.0), "float32", "1.1"),
        ((1.0, 3.0, 1.0, 2.0), "float32", "0.5"),
    ],
)
def test_choose_precision_requires_speedup_of_ten_percent(
    seconds: tuple[float, ...], chosen: str, speedup: str, log: LibraryLog
) -> None:
    timed_precisions = list[str]()
    assert choose_precision(timed_precisions.append, CPU, fake_clock(*seconds)) == chosen
    assert timed_precisions == ["float32", "bfloat16"] * 2
    assert log.messages == [f"precision: {chosen}; a step in bfloat16 is {speedup} times as fast as in float32"]


@pytest.fixture
def measured_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Record the precision of each forward pass and whether it has gradients, and choose bfloat16 at any speedup."""
    forward_passes: list[tuple[str, bool]] = []
    original = Classifier.compute_logits

    def compute(self: Classifier, images: Tensor) -> Tensor:
        forward_passes.append((self.precision, torch.is_grad_enabled()))
        return original(self, images)

    monkeypatch.setattr(Classifier, "compute_logits", compute)
    monkeypatch.setattr(precision, "MIN_BFLOAT16_SPEEDUP", 0.0)
    return forward_passes


def test_resolve_classifier_precision_works_with_unusable_cache(
    monkeypatch: pytest.MonkeyPatch, measured_steps: list[tuple[str, bool]], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    assert resolve_classifier_precision(build_classifier(), "tiny", 4, {}).precision == "bfloat16"
    assert len(measured_steps) == 6


@pytest.mark.covers("precision")
def test_resolve_classifier_precision_measures_steps_on_bfloat16_hardware(
    monkeypatch: pytest.MonkeyPatch, measured_steps: list[tuple[str, bool]], tmp_path: Path, log: LibraryLog
) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    classifier = build_classifier()
    classifier.model.train()
    state_before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    rng_state = torch.get_rng_state()
    assert resolve_classifier_precision(classifier, "tiny", 4, {}).precision == "bfloat16"
    assert measured_steps == [("float32", True)] * 2 + [("float32", True), ("bfloat16", True)] * 2
    assert len(log.messages) == 1
    assert all(torch.equal(state_before[name], tensor) for name, tensor in classifier.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in classifier.model.parameters())
    assert classifier.model.training
    assert torch.equal(torch.get_rng_state(), rng_state)
    # The second time the choice is read from the cache.
    assert resolve_classifier_precision(classifier, "tiny", 4, {}).precision == "bfloat16"
    assert len(measured_steps) == 6
    assert resolve_classifier_precision(classifier, "other", 4, {}, save=False).precision == "bfloat16"
    assert (tmp_path / "choices.json").read_text().count("bfloat16") == 1


def test_resolve_classifier_precision_reuses_known_precision(
    monkeypatch: pytest.MonkeyPatch, measured_steps: list[tuple[str, bool]], log: LibraryLog
) -> None:
    classifier = build_classifier()
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: False)
    assert resolve_classifier_precision(classifier, "tiny", 4, {}).precision == "float32"
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    monkeypatch.setattr("ftcli.runtime.supports_bfloat16", lambda _: True)
    assert resolve_classifier_precision(classifier, "tiny", 4, {"cpu": "bfloat16"}).precision == "bfloat16"
    assert resolve_classifier_precision(classifier, "tiny", 4, {"cpu": "float32"}).precision == "float32"
    assert (measured_steps, log.messages) == ([], [])


def test_train_stores_chosen_precision_in_checkpoints(
    ftcli: Ftcli, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcli.runtime.supports_bfloat16", lambda _: True)
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    monkeypatch.setattr(precision, "MIN_BFLOAT16_SPEEDUP", 0.0)
    arguments = ("--device", "cpu", "--set", "precision=auto", "--set", "stages.all.epochs=1")
    first = ftcli("train", "r.yaml", "--stage", "head", *arguments, "--out", "first")
    assert first.code == 0
    assert first.err.count("precision: bfloat16; a step") == 1
    best = Path("first/best_loss.pt")
    assert read_checkpoint(best).precisions == {"cpu": "bfloat16"}
    assert load_classifier(best, CPU).classifier.precision == "bfloat16"
    monkeypatch.setattr(precision, "MIN_BFLOAT16_SPEEDUP", 1e9)
    second = ftcli("train", "--resume", best, "--stage", "all", "--device", "cpu", "--out", "second")
    assert second.code == 0
    assert "a step in bfloat16" not in second.err
    assert read_checkpoint(Path("second/last.pt")).precisions == {"cpu": "bfloat16"}
    monkeypatch.setattr("ftcli.runtime.supports_bfloat16", lambda _: False)  # another machine
    assert load_classifier(best, CPU).classifier.precision == "float32"
