"""What the head of a network is given for images: computed once, kept in the cache, and finished by the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ftcli.caching.places import find_limit
from ftcli.data.batches import Feed
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.data.transforms import build_eval_transform
from ftcli.features.cache import FeatureCache, NoRoom, Sight, Source
from ftcli.features.feeds import ComputedFeed
from ftcli.inference.classifier import Classifier
from ftcli.inference.outputs import AS_THEY_ARE, Look, View, look_from, look_through
from ftcli.models.cut import Cut, find_cut
from ftcli.results import Preprocessing, Reporter

ROWS = 64
"""How many images a head finishes at a time, whatever the batch size: an image's logits have the same bits always."""


@dataclass(frozen=True)
class Reading:
    """Where images are, and how many are read at a time where the cache has no part in it."""

    source: Source
    batch_size: int


@dataclass(frozen=True)
class HeadInputs:
    """A network that was cut before its head, and the cache of what its head is given."""

    cut: Cut
    cache: FeatureCache
    preprocessing: Preprocessing

    @contextmanager
    def open(
        self,
        samples: Sequence[Sample],
        source: Source,
        reporter: Reporter,
        task: str,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Feed | None]:
        """What the head is given for samples as evaluation sees them, in batches of ROWS; what is not kept yet is
        computed first. Where there is no room to keep it, and the reporter is told, it is computed as it is needed,
        with the same bits on the CPU. None if `stop` became true. Raises as `FeatureCache.gather`."""
        transform = build_eval_transform(self.preprocessing)
        if find_limit():
            try:
                feed = self.cache.gather(samples, [Sight(transform, None)], ROWS, source, reporter, task, stop)
            except NoRoom:
                reporter.say(f"{task}: the cache has no room for what the network gives, so it is computed without it")
            else:
                yield feed
                return
        files = ImageFiles(source.root, source.on_corrupt_image, source.num_workers)
        with ComputedFeed(self.cache.prefix, samples, transform, ROWS, files, nullcontext) as anew:
            yield anew

    def look(self, classifier: Classifier) -> Look:
        """How the head of a classifier, whose network was cut, finishes at most ROWS images: always in one shape."""
        finish = look_through(self.cut.suffix, classifier)

        def look(values: tuple[Tensor, ...]) -> Tensor:
            (value,) = values
            padded = torch.cat([value, value.new_zeros((ROWS - len(value), *value.shape[1:]))])
            return finish((padded,))[: len(value)]

        return look


def open_inputs(
    model: nn.Module, head: str, preprocessing: Preprocessing, device: torch.device, precision: str
) -> HeadInputs | None:
    """Cut a network before its head; it is moved to the device first, in the memory format that convolutions are
    fastest with. None where what crosses is not exactly what the head is given."""
    placed = model.to(device).to(memory_format=torch.channels_last)
    below = f"{head}."
    frozen = {name for name, _ in placed.named_parameters() if not name.startswith(below)}
    still = {name for name, _ in placed.named_modules() if name != head and not name.startswith(below)}
    cut = find_cut(placed, frozen, still, preprocessing.image_size)
    if cut is None or cut.whole or len(cut.crossing) != 1 or not _is_given(cut, head):
        return None
    return HeadInputs(cut, FeatureCache(cut, preprocessing, device, precision), preprocessing)


@contextmanager
def open_feed(
    classifier: Classifier,
    inputs: HeadInputs | None,
    samples: Sequence[Sample],
    reading: Reading,
    reporter: Reporter,
    task: str,
    views: tuple[View, ...] = AS_THEY_ARE,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Feed, Look] | None]:
    """Where the values of samples come from, and how a classifier looks at them: at the inputs of its head, where there
    are any, else at images, in these views. None if `stop` became true meanwhile. Raises what reading images raises."""
    source = reading.source
    if inputs is not None:
        with inputs.open(samples, source, reporter, f"{task}: frozen part", stop) as feed:
            yield None if feed is None else (feed, inputs.look(classifier))
        return
    files = ImageFiles(source.root, source.on_corrupt_image, source.num_workers)
    with Loader(samples, classifier.transform, reading.batch_size, files) as loader:
        yield loader, look_from(classifier, views)


def _is_given(cut: Cut, head: str) -> bool:
    """Whether the crossing value is computed outside the head, and read inside it alone."""
    if not (isinstance(cut.prefix, fx.GraphModule) and isinstance(cut.suffix, fx.GraphModule)):
        return cut.crossing[0].name == f"{head}.input"
    (output,) = (node for node in cut.prefix.graph.nodes if node.op == "output")
    (value,) = output.all_input_nodes
    (entry,) = (node for node in cut.suffix.graph.nodes if node.op == "placeholder")
    return not _is_within(value, head) and all(_is_within(reader, head) for reader in entry.users)


def _is_within(node: fx.Node, module: str) -> bool:
    return module in node.meta.get("nn_module_stack", {})
