"""The number format is chosen by what it gains, and compiled steps compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ftcli.errors import RecipeError, RunError
from ftcli.evaluation.classifier import Classifier, load_classifier
from ftcli.results import Preprocessing
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.training import precision
from ftcli.training.precision import check_compiler, choose_precision, compile_forward, resolve_classifier_precision
from tests.conftest import Ftcli, RecordingReporter

CPU = torch.device("cpu")


def fake_clock(*durations: float) -> Callable[[], float]:
    """A clock by which the things that are timed take these seconds."""
    times = [
        time for index, _ in enumerate(durations) for time in (sum(durations[:index]), sum(durations[: index + 1]))
    ]
    return iter(times).__next__


@pytest.mark.parametrize(
    ("seconds", "chosen", "sentence"),
    [
        (
            (9.0, 9.0, 1.1, 1.0),
            "bfloat16",
            "precision: bfloat16, for a step in bfloat16 is 1.1 times as fast as in float32 here",
        ),
        (
            (1.05, 1.0, 9.0, 9.0),
            "float32",
            "precision: float32, for a step in bfloat16 is 1.1 times as fast as in float32 here",
        ),
        (
            (1.0, 3.0, 1.0, 2.0),
            "float32",
            "precision: float32, for a step in bfloat16 is 0.5 times as fast as in float32 here",
        ),
    ],
)
def test_choose_precision_requires_speedup_of_ten_percent(
    seconds: tuple[float, ...], chosen: str, sentence: str
) -> None:
    reporter, timed_precisions = RecordingReporter(), list[str]()
    assert choose_precision(timed_precisions.append, CPU, reporter, fake_clock(*seconds)) == chosen
    assert timed_precisions == ["float32", "bfloat16"] * 2
    assert reporter.messages == [sentence]


def build_classifier() -> Classifier:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(8, 3))
    return Classifier.create(
        model, Preprocessing(16, 16, "squash", "bilinear", (0,) * 3, (1,) * 3), ("a", "b", "c"), CPU, "auto"
    )


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What is computed in, and whether gradients flow, while bfloat16 is always found to be faster."""
    seen: list[tuple[str, bool]] = []
    original = Classifier.compute_logits

    def compute(self: Classifier, images: Tensor) -> Tensor:
        seen.append((self.precision, torch.is_grad_enabled()))
        return original(self, images)

    monkeypatch.setattr(Classifier, "compute_logits", compute)
    monkeypatch.setattr(precision, "MIN_BFLOAT16_SPEEDUP", 0.0)
    return seen


def test_resolve_classifier_precision_works_with_unusable_cache(
    monkeypatch: pytest.MonkeyPatch, tried: list[tuple[str, bool]], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    assert resolve_classifier_precision(build_classifier(), "tiny", 4, {}, RecordingReporter()).precision == "bfloat16"
    assert len(tried) == 6


@pytest.mark.covers("precision")
def test_resolve_classifier_precision_times_real_steps_on_bfloat16_hardware(
    monkeypatch: pytest.MonkeyPatch, tried: list[tuple[str, bool]], tmp_path: Path
) -> None:
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    classifier, reporter = build_classifier(), RecordingReporter()
    classifier.model.train()
    state_before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    rng_state = torch.get_rng_state()
    assert resolve_classifier_precision(classifier, "tiny", 4, {}, reporter).precision == "bfloat16"
    assert tried == [("float32", True)] * 2 + [("float32", True), ("bfloat16", True)] * 2
    assert len(reporter.messages) == 1
    assert all(torch.equal(state_before[name], tensor) for name, tensor in classifier.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in classifier.model.parameters())
    assert classifier.model.training
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert (
        resolve_classifier_precision(classifier, "tiny", 4, {}, reporter).precision == "bfloat16"
    )  # as the cache has it
    assert len(tried) == 6
    assert resolve_classifier_precision(classifier, "other", 4, {}, reporter, save=False).precision == "bfloat16"
    assert (tmp_path / "choices.json").read_text().count("bfloat16") == 1


def test_resolve_classifier_precision_skips_trial_without_choice(
    monkeypatch: pytest.MonkeyPatch, tried: list[tuple[str, bool]]
) -> None:
    classifier = build_classifier()
    reporter = RecordingReporter()
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: False)
    assert resolve_classifier_precision(classifier, "tiny", 4, {}, reporter).precision == "float32"
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    monkeypatch.setattr("ftcli.runtime.device.supports_bfloat16", lambda _: True)
    assert resolve_classifier_precision(classifier, "tiny", 4, {"cpu": "bfloat16"}, reporter).precision == "bfloat16"
    assert resolve_classifier_precision(classifier, "tiny", 4, {"cpu": "float32"}, reporter).precision == "float32"
    assert (tried, reporter.messages) == ([], [])


def test_train_stores_chosen_precision_in_checkpoints(
    ftcli: Ftcli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcli.runtime.device.supports_bfloat16", lambda _: True)
    monkeypatch.setattr(precision, "supports_bfloat16", lambda _: True)
    monkeypatch.setattr(precision, "MIN_BFLOAT16_SPEEDUP", 0.0)
    arguments = ("--device", "cpu", "--set", "precision=auto", "--set", "stages.all.epochs=1")
    first = ftcli("train", "r.yaml", "--stage", "head", *arguments, "--out", "one")
    assert first.code == 0
    assert first.err.count("precision: bfloat16, for a step") == 1
    best = Path("one/best_loss.pt")
    assert read_checkpoint(best).precisions == {"cpu": "bfloat16"}
    assert load_classifier(best, CPU).classifier.precision == "bfloat16"
    monkeypatch.setattr(precision, "MIN_BFLOAT16_SPEEDUP", 1e9)
    second = ftcli("train", "--resume", best, "--stage", "all", "--device", "cpu", "--out", "two")
    assert second.code == 0
    assert "a step in bfloat16" not in second.err
    assert read_checkpoint(Path("two/last.pt")).precisions == {"cpu": "bfloat16"}
    monkeypatch.setattr("ftcli.runtime.device.supports_bfloat16", lambda _: False)  # another machine
    assert load_classifier(best, CPU).classifier.precision == "float32"


def test_check_compiler_reports_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_compile(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
        def fail(_: Tensor) -> Tensor:
            raise RuntimeError("\nInvalidCxxCompiler: No working C++ compiler found\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", fake_compile)
    with pytest.raises(RecipeError) as caught:
        check_compiler("r.yaml:3:10: compile", CPU)
    assert str(caught.value) == (
        "r.yaml:3:10: compile: true needs what compiles C++ (a GPU: Triton), and here it fails: InvalidCxxCompiler: No "
        "working C++ compiler found; install g++ and the headers of Python, or set compile: false"
    )
    classifier = build_classifier()
    values = (torch.zeros((4, 3, 16, 16), dtype=torch.uint8),)
    with pytest.raises(RunError) as failed:
        compile_forward(
            lambda values: classifier.compute_logits(values[0]), values, classifier.model, RecordingReporter()
        )
    assert str(failed.value) == (
        "compile: true: the steps of this network cannot be compiled: InvalidCxxCompiler: No working C++ compiler "
        "found; set compile: false"
    )


@pytest.mark.slow
@pytest.mark.covers("compile")
def test_compile_forward_matches_eager_and_preserves_model() -> None:
    check_compiler("compile", CPU)
    classifier = build_classifier()
    model, reporter = classifier.model.train(), RecordingReporter()
    values = (torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8),)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng_state = torch.get_rng_state()
    calls = list[int]()

    def forward(given: tuple[Tensor, ...]) -> Tensor:
        if not torch.compiler.is_compiling():
            calls.append(len(given[0]))
        return classifier.compute_logits(given[0])

    compiled = compile_forward(forward, values, model, reporter, fake_clock(0.5, 0.25, 18.0, 0.2, 0.125))
    assert reporter.messages == ["compile: took 18 s; a step takes 0.125 s, 0.25 s before"]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng_state)
    calls.clear()
    dropout = model.get_submodule("5")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0
    first = compiled(values)
    assert calls == []
    assert torch.allclose(first, forward(values), rtol=1e-4, atol=1e-5)
    calls.clear()
    compiled((values[0][:3],))
    assert calls == [3]
    dropout.p = 0.5
    given = []
    for _ in range(2):
        torch.manual_seed(5)
        given.append(compiled(values))
    assert torch.equal(given[0], given[1])
    assert not torch.equal(compiled(values), given[0])  # dropout draws anew
