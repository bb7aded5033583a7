"""What a checkpoint gives for images does not depend on how they are batched, and several views are averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ftcli.errors import RunError
from ftcli.evaluation.eval_setup import EvaluateArgs, evaluate_checkpoint, predict_split, setup_eval
from ftcli.evaluation.evaluate import evaluate, list_confused_pairs
from ftcli.evaluation.evaluate_args import EvaluateOptions
from ftcli.results import ConfusedPair, NullReporter, Progress


class BatchCounter(NullReporter):
    """A Reporter that counts the batches."""

    def __init__(self) -> None:
        self.num_batches = 0

    def update_progress(self, progress: Progress) -> None:
        self.num_batches = progress.done


@pytest.fixture
def args(finished: Path) -> EvaluateArgs:
    return EvaluateArgs(checkpoint=finished / "runs/photos/best_loss.pt", device="cpu")


def test_evaluate_is_independent_of_batch_size(args: EvaluateArgs) -> None:
    expected = evaluate_checkpoint(args, NullReporter()).outputs
    for size, batches in ((1, 12), (7, 2), (64, 1)):
        cached = evaluate_checkpoint(replace(args, batch_size=size, num_workers=0), NullReporter()).outputs
        assert torch.equal(cached.logits, expected.logits)
        counter = BatchCounter()
        outputs = evaluate_checkpoint(replace(args, batch_size=size, num_workers=0, use_cache=False), counter).outputs
        assert counter.num_batches == batches
        assert outputs.paths == expected.paths
        assert torch.equal(outputs.logits.argmax(1), expected.logits.argmax(1))
        assert torch.allclose(outputs.logits, expected.logits, rtol=0, atol=1e-5)


def test_evaluate_tta_averages_four_views(args: EvaluateArgs) -> None:
    eval_run = evaluate_checkpoint(replace(args, tta="flips"), NullReporter())
    classifier, outputs = eval_run.classifier, eval_run.outputs
    images = torch.stack([classifier.preprocess(eval_run.dataset.root / path) for path in outputs.paths])
    mirrored, upside_down = images[..., torch.arange(31, -1, -1)], images[..., torch.arange(31, -1, -1), :]
    both = mirrored[..., torch.arange(31, -1, -1), :]
    with torch.inference_mode():
        view_probabilities = [
            classifier.compute_logits(one).softmax(1) for one in (images, mirrored, upside_down, both)
        ]
    mean = torch.stack(view_probabilities).mean(0)
    assert torch.allclose(outputs.logits.exp(), mean, rtol=0, atol=1e-6)
    assert not torch.allclose(mean, view_probabilities[0], rtol=0, atol=1e-6)
    result = evaluate(replace(args, tta="flips"), EvaluateOptions(), NullReporter())
    assert result.views == 4
    assert result.loss == pytest.approx(float(-mean[range(12), outputs.labels].log().mean()), abs=1e-5)


def test_predict_split_rejects_nonfinite_logits(args: EvaluateArgs) -> None:
    setup = setup_eval(args, NullReporter())
    with torch.no_grad():
        next(setup.classifier.model.parameters()).fill_(torch.nan)
    with pytest.raises(RunError) as caught:
        predict_split(setup, setup.dataset, "test", NullReporter())
    assert str(caught.value) == (
        "evaluating test: the network gives numbers that are not finite for 12 of 12 images, first test/china/20.jpg; "
        "take another checkpoint, or train anew with a lower learning rate"
    )


def test_list_confused_pairs_sorts_by_images() -> None:
    assert list_confused_pairs(("a", "b", "c"), ((95, 5, 0), (2, 2, 0), (0, 2, 6))) == (
        ConfusedPair("a", "b", 5, 0.05),
        ConfusedPair("b", "a", 2, 0.5),
        ConfusedPair("c", "b", 2, 0.25),
    )
    many = tuple(tuple(0 if i == j else i + j for j in range(5)) for i in range(5))
    pairs = list_confused_pairs(tuple("abcde"), many)
    assert [one.images for one in pairs] == [7, 7, 6, 6, 5, 5, 5, 5, 4, 4]
