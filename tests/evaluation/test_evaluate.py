"""Outputs do not depend on the batch size, several views are averaged, and invalid arguments are reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ftcli.errors import RecipeError, RunError
from ftcli.evaluation.eval_setup import EvaluateArgs, evaluate_checkpoint, predict_split, setup_eval, validate_args
from ftcli.evaluation.evaluate import evaluate, list_confused_pairs
from ftcli.results import ConfusedPair, NullReporter, Progress


class BatchCounter(NullReporter):
    """A Reporter that counts batches."""

    def __init__(self) -> None:
        self.num_batches = 0

    def update_progress(self, progress: Progress) -> None:
        self.num_batches = progress.done


@pytest.fixture
def args(work_dir_with_run: Path) -> EvaluateArgs:
    return EvaluateArgs(checkpoint=work_dir_with_run / "runs/photos/best_loss.pt", device="cpu")


def test_evaluate_is_independent_of_batch_size(args: EvaluateArgs) -> None:
    _, expected = evaluate_checkpoint(args, NullReporter())
    for batch_size, num_batches in ((1, 12), (7, 2), (64, 1)):
        resized = replace(args, batch_size=batch_size, num_workers=0)
        _, cached = evaluate_checkpoint(resized, NullReporter())
        assert torch.equal(cached.logits, expected.logits)
        counter = BatchCounter()
        _, outputs = evaluate_checkpoint(replace(resized, use_cache=False), counter)
        assert counter.num_batches == num_batches
        assert outputs.paths == expected.paths
        assert torch.equal(outputs.predicted, expected.predicted)
        assert torch.allclose(outputs.logits, expected.logits, rtol=0, atol=1e-5)


def test_evaluate_tta_averages_four_views(args: EvaluateArgs) -> None:
    setup, outputs = evaluate_checkpoint(replace(args, tta="flips"), NullReporter())
    images = torch.stack([setup.classifier.preprocess(setup.dataset.root / path) for path in outputs.paths])
    views = (images, images.flip(3), images.flip(2), images.flip((2, 3)))
    with torch.inference_mode():
        view_probabilities = [setup.classifier.compute_logits(view).softmax(1) for view in views]
    mean = torch.stack(view_probabilities).mean(0)
    assert torch.allclose(outputs.logits.exp(), mean, rtol=0, atol=1e-6)
    assert not torch.allclose(mean, view_probabilities[0], rtol=0, atol=1e-6)
    result = evaluate(replace(args, tta="flips"), NullReporter())
    assert result.views == 4
    assert result.loss == pytest.approx(float(-mean[range(12), outputs.labels].log().mean()), abs=1e-5)


def test_predict_split_rejects_nonfinite_logits(args: EvaluateArgs) -> None:
    setup = setup_eval(args, NullReporter())
    with torch.no_grad():
        next(setup.classifier.model.parameters()).fill_(torch.nan)
    with pytest.raises(RunError) as error:
        predict_split(setup, setup.dataset, "test", NullReporter())
    assert str(error.value) == (
        "evaluating test: the logits of 12 of 12 images are not finite, such as those of test/china/20.jpg; use "
        "another checkpoint, or train again with a lower learning rate"
    )


def test_list_confused_pairs_sorts_by_images() -> None:
    assert list_confused_pairs("abc", ((95, 5, 0), (2, 2, 0), (0, 2, 6))) == (
        ConfusedPair("a", "b", 5, 0.05),
        ConfusedPair("b", "a", 2, 0.5),
        ConfusedPair("c", "b", 2, 0.25),
    )
    many = tuple(tuple(0 if i == j else i + j for j in range(5)) for i in range(5))
    assert [pair.images for pair in list_confused_pairs("abcde", many)] == [7, 7, 6, 6, 5, 5, 5, 5, 4, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("report.pdf", "--report: report.pdf does not end in .html or .htm; give a path that does"),
        ("no/report.html", "--report: the folder no does not exist; create it, or give another path"),
        ("taken.html", "--report: taken.html is a folder, link or device; give the name of a file"),
    ],
)
def test_validate_args_rejects_report_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.html").mkdir()
    args = EvaluateArgs(checkpoint=Path("best_loss.pt"), device="cpu")
    validate_args(replace(args, report=Path("report.HTM")))
    with pytest.raises(RecipeError) as error:
        validate_args(replace(args, report=Path(name)))
    assert error.value.messages == (message,)
