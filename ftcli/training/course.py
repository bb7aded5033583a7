"""How a stage computes: the whole network on images, or what trains of it on what the rest once gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from ftcli.caching.places import can_hold, find_limit
from ftcli.data.batches import Draw, Feed
from ftcli.data.loading import choose_workers
from ftcli.data.pixels import PixelCache
from ftcli.features.cache import FeatureCache, NoRoom, Sight, Source
from ftcli.features.feeds import ComputedFeed
from ftcli.inference.outputs import Look, look_from, look_through
from ftcli.models.cut import Cut, find_cut
from ftcli.models.freezing import list_frozen_tensors, set_modes
from ftcli.planning import StagePlan
from ftcli.recipe.schema import Stage
from ftcli.results import Reporter, tell_count, tell_duration, tell_size
from ftcli.training.acceleration import compile_look
from ftcli.training.interruption import StopSignals
from ftcli.training.keeping import SMALL, count_looks, count_views, weigh_ways
from ftcli.training.ledger import Ledger
from ftcli.training.preparation import Job, choose_transform, find_files, open_loader


@dataclass(frozen=True)
class Course:
    """What a stage trains on and how it looks at that: `training` in the modes of training, `evaluating` in eval mode.

    `draws` are the random looks at the training images; epoch e, counted from 0, takes the one at e mod their number.
    None of them depends on how many there are. `kept` tells that the frozen part is not computed in the epochs.
    """

    train: Feed
    val: Feed
    training: Look
    evaluating: Look
    draws: Sequence[Draw | None]
    kept: bool

    def draw(self, epoch: int) -> Draw | None:
        """The look of an epoch, counted from 0."""
        return self.draws[epoch % len(self.draws)]


@dataclass(frozen=True)
class _Division:
    """The cut of a network between what is frozen and what trains, and the cache of what crosses it."""

    cut: Cut
    cache: FeatureCache

    def make_course(self, job: Job, train: Feed, val: Feed, draws: Sequence[Draw | None], kept: bool) -> Course:
        """The course behind the cut."""
        training, evaluating = (
            look_through(part, job.classifier) for part in (self.cut.training_suffix, self.cut.suffix)
        )
        return Course(train, val, training, evaluating, draws, kept)


@contextmanager
def open_course(
    job: Job, plan: StagePlan, ledger: Ledger, reporter: Reporter, stop: StopSignals, digests: Mapping[str, str]
) -> Iterator[Course | None]:
    """Choose how a stage computes, say so, and compute what is to be kept of the frozen part; None if a signal came
    meanwhile. Processes that read images end with the context. `digests` are those of the frozen tensors as they are
    now.

    Where the network is cut, the stage sees the same looks and on the CPU the same bits whether they are kept or not:
    no result depends on how much room there is, or on what is faster. Raises what reading images raises, and RunError
    where the disk is full.
    """
    with ledger.measure("frozen"):
        division = _divide(job, plan, digests, reporter)
        keeps = division is not None and _choose_keeping(job, plan, division, reporter)
        course = _gather(job, plan, division, reporter, stop) if division and keeps else None
    if course is not None:
        yield _compile(job, plan, course, ledger, reporter)
        return
    if stop.is_set():
        yield None
        return
    with ledger.measure("data"):
        pixels = _keep_pixels(job, plan.stage, reporter, stop)
    if pixels is None:
        yield None
        return
    opened = _open_whole(job, plan, pixels) if division is None else _open_anew(job, plan, division, pixels, ledger)
    with opened as course:
        yield _compile(job, plan, course, ledger, reporter)


@contextmanager
def _open_whole(job: Job, plan: StagePlan, pixels: Mapping[str, PixelCache]) -> Iterator[Course]:
    """The whole network on images, at which each epoch has a look of its own."""
    look = look_from(job.classifier)
    draws = [(job.plan.recipe.seed, plan.stage.name, view + 1) for view in range(plan.stage.epochs)]
    with open_loader(job, "train", pixels.get("train")) as train, open_loader(job, "val", pixels.get("val")) as val:
        yield Course(train, val, look, look, draws, kept=False)


@contextmanager
def _open_anew(
    job: Job, plan: StagePlan, division: _Division, pixels: Mapping[str, PixelCache], ledger: Ledger
) -> Iterator[Course]:
    """What trains, on what the frozen part gives for the images, computed in every epoch."""

    def open_split(split: str) -> ComputedFeed:
        samples, transform = job.images.splits[split], choose_transform(job, split)
        files, size = find_files(job, pixels.get(split)), job.plan.recipe.data.batch_size
        return ComputedFeed(division.cache.prefix, samples, transform, size, files, lambda: ledger.measure("frozen"))

    with open_split("train") as train, open_split("val") as val:
        yield division.make_course(job, train, val, _list_draws(job, plan.stage), kept=False)


def _compile(job: Job, plan: StagePlan, course: Course, ledger: Ledger, reporter: Reporter) -> Course:
    """The course with its steps compiled, if the recipe asks for that."""
    if not job.plan.recipe.compile:
        return course
    set_modes(job.classifier.model, plan.freezing)
    with ledger.measure("compiling"):
        values = _take_whole(course.train, course.draw(0))
        if values is None:
            return course  # the first epoch tells what is wrong with the images
        return replace(course, training=compile_look(course.training, values, job.classifier.model, reporter))


def _take_whole(feed: Feed, draw: Draw | None) -> tuple[Tensor, ...] | None:
    """The values of a whole batch, of the first images that are not broken; None if all are."""
    size, paths = min(feed.batch_size, len(feed.samples)), set[str]()
    for batch in feed.batches(draw=draw):
        if len(batch.paths) == size:
            return batch.values
        paths.update(batch.paths)
        if len(paths) >= size:
            break
    places = [place for place, sample in enumerate(feed.samples) if sample.path in paths]
    return next(feed.batches(places[:size], draw)).values if places else None


def _list_draws(job: Job, stage: Stage) -> list[Draw | None]:
    """The looks at the training images that a stage takes turns among where the network is cut."""
    transform = choose_transform(job, "train")
    if not transform.is_random:
        return [None]
    return [(job.plan.recipe.seed, stage.name, view + 1) for view in range(count_views(stage, transform))]


def _divide(job: Job, plan: StagePlan, digests: Mapping[str, str], reporter: Reporter) -> _Division | None:
    """The network, cut behind its frozen part; None where there is no such part, where the recipe wants it whole, and,
    as is said, where it cannot be cut."""
    stage, freezing, classifier = plan.stage, plan.freezing, job.classifier
    if stage.cache == "off" or not freezing.parameters:
        return None
    cut = find_cut(classifier.model, freezing.parameters, freezing.modules, job.plan.preprocessing.image_size)
    if cut is None or cut.whole:
        why = "its code cannot be divided" if cut is None else "what trains comes before it"
        reporter.say(f"Stage {stage.name}: the frozen part is computed in every epoch, for {why}")
        return None
    known = {id(tensor): digests[name] for name, tensor in list_frozen_tensors(classifier.model, freezing).items()}
    cache = FeatureCache(cut, classifier.preprocessing, classifier.device, classifier.precision, known)
    return _Division(cut, cache)


def _choose_keeping(job: Job, plan: StagePlan, division: _Division, reporter: Reporter) -> bool:
    """Whether what crosses the cut is kept: where it fits, and that is worth while. It is said either way."""
    stage, cache = plan.stage, division.cache
    train, val = (len(job.images.splits[split]) for split in ("train", "val"))
    views = len(_list_draws(job, stage))
    records = views * train + val
    size = records * cache.prefix.row_bytes
    if not can_hold(size):
        reporter.say(
            f"Stage {stage.name}: the frozen part is computed in every epoch, for what it gives would take "
            f"{tell_size(size)}, more than the disk or the cache's limit of {tell_size(find_limit())} allows"
        )
        return False
    gain = ""
    if cache.prefix.row_bytes > SMALL:
        again, once = weigh_ways(cache.prefix, count_looks(stage.epochs, train, val), records, size)
        if once >= again:
            reporter.say(
                f"Stage {stage.name}: the frozen part is computed in every epoch, about {tell_duration(again)}, for "
                f"keeping {tell_size(size)} of what it gives would take {tell_duration(once)}"
            )
            return False
        gain = f": about {tell_duration(once)} instead of {tell_duration(again)}"
    names = ", ".join(crossing.name for crossing in division.cut.crossing)
    kept = tell_count(views, "view") + f" of {tell_count(train, 'image')} and {val:,} for validation"
    reporter.say(
        f"Stage {stage.name}: the frozen part, up to {names}, is computed once for {kept}, {tell_size(size)}{gain}"
    )
    return True


def _gather(job: Job, plan: StagePlan, division: _Division, reporter: Reporter, stop: StopSignals) -> Course | None:
    """What is trained on where the frozen part is kept; None if a signal came meanwhile, or there is no room."""
    data, images, cache, name = job.plan.recipe.data, job.images, division.cache, plan.stage.name
    source = Source(images.root, data.on_corrupt_image, find_files(job).num_workers, job.beginning.verify)
    draws, feeds = _list_draws(job, plan.stage), list[Feed]()
    for split, looks in (("train", draws), ("val", [None])):
        task, transform = f"{name}: frozen part, {split}", choose_transform(job, split)
        sights = [Sight(transform, draw) for draw in looks]
        try:
            feed = cache.gather(images.splits[split], sights, data.batch_size, source, reporter, task, stop.is_set)
        except NoRoom:  # what leaves for it is less than was hoped: it is in use
            reporter.say(
                f"Stage {name}: the frozen part is computed in every epoch, for what is in use leaves no room in the "
                "cache"
            )
            return None
        if feed is None:
            return None
        feeds.append(feed)
    if not cache.prefix.computed:
        reporter.say(f"Stage {name}: all of that was computed before and is read from the cache")
    return division.make_course(job, feeds[0], feeds[1], draws, kept=True)


def _keep_pixels(job: Job, stage: Stage, reporter: Reporter, stop: StopSignals) -> dict[str, PixelCache] | None:
    """What is kept of the images as they are before chance, by split: nothing where each is read once, or where there
    is no room. None if `stop` became true."""
    images, data = job.images, job.plan.recipe.data
    if stage.cache == "off" or stage.epochs < 2:
        return {}
    pixels = {
        split: PixelCache(images.root, choose_transform(job, split), job.beginning.verify) for split in ("train", "val")
    }
    if not can_hold(sum(kept.estimate(images.splits[split]) for split, kept in pixels.items())):
        return {}
    for split, kept in pixels.items():
        task, num_workers = f"{stage.name}: reading {split}", choose_workers(data.num_workers)
        if not kept.fill(images.splits[split], num_workers, data.on_corrupt_image, reporter, task, stop.is_set):
            return None
    return pixels
