"""What a checkpoint gives for images does not depend on how they are batched, and several views are averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ftcli.analysis.evaluation.measurement import Question, measure, open_case, run_split
from ftcli.analysis.evaluation.summary import evaluate, find_confused
from ftcli.analysis.evaluation.wishes import Wish
from ftcli.errors import RunError
from ftcli.results import Confusion, Progress, Silent


class Counter(Silent):
    """A Reporter that counts the batches."""

    def __init__(self) -> None:
        self.batches = 0

    def advance(self, progress: Progress) -> None:
        self.batches = progress.done


@pytest.fixture
def question(finished: Path) -> Question:
    return Question(checkpoint=finished / "runs/photos/best_loss.pt", device="cpu")


def test_batches_of_any_size_give_the_same(question: Question) -> None:
    own = measure(question, Silent()).outputs
    for size, batches in ((1, 12), (7, 2), (64, 1)):
        kept = measure(replace(question, batch_size=size, num_workers=0), Silent()).outputs
        assert torch.equal(kept.logits, own.logits)
        counter = Counter()
        outputs = measure(replace(question, batch_size=size, num_workers=0, cache=False), counter).outputs
        assert counter.batches == batches
        assert outputs.paths == own.paths
        assert torch.equal(outputs.logits.argmax(1), own.logits.argmax(1))
        assert torch.allclose(outputs.logits, own.logits, rtol=0, atol=1e-5)


def test_flips_average_the_probabilities_of_four_views(question: Question) -> None:
    measured = measure(replace(question, views="flips"), Silent())
    classifier, outputs = measured.classifier, measured.outputs
    images = torch.stack([classifier.prepare(measured.images.root / path) for path in outputs.paths])
    mirrored, upside_down = images[..., torch.arange(31, -1, -1)], images[..., torch.arange(31, -1, -1), :]
    both = mirrored[..., torch.arange(31, -1, -1), :]
    with torch.inference_mode():
        views = [classifier.compute_logits(one).softmax(1) for one in (images, mirrored, upside_down, both)]
    mean = torch.stack(views).mean(0)
    assert torch.allclose(outputs.logits.exp(), mean, rtol=0, atol=1e-6)
    assert not torch.allclose(mean, views[0], rtol=0, atol=1e-6)
    told = evaluate(replace(question, views="flips"), Wish(), Silent())
    assert told.views == 4
    assert told.loss == pytest.approx(float(-mean[range(12), outputs.labels].log().mean()), abs=1e-5)


def test_outputs_that_are_not_finite_are_refused(question: Question) -> None:
    case = open_case(question, Silent())
    with torch.no_grad():
        next(case.classifier.model.parameters()).fill_(torch.nan)
    with pytest.raises(RunError) as caught:
        run_split(case, case.images, "test", Silent())
    assert str(caught.value) == (
        "evaluating test: the network gives numbers that are not finite for 12 of 12 images, first test/china/20.jpg; "
        "take another checkpoint, or train anew with a lower learning rate"
    )


def test_pairs_are_listed_by_their_images() -> None:
    assert find_confused(("a", "b", "c"), ((95, 5, 0), (2, 2, 0), (0, 2, 6))) == (
        Confusion("a", "b", 5, 0.05),
        Confusion("b", "a", 2, 0.5),
        Confusion("c", "b", 2, 0.25),
    )
    many = tuple(tuple(0 if i == j else i + j for j in range(5)) for i in range(5))
    found = find_confused(tuple("abcde"), many)
    assert [one.images for one in found] == [7, 7, 6, 6, 5, 5, 5, 5, 4, 4]
