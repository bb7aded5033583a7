"""How a stage computes: the whole network on images, or what trains of it on what the rest once gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ftcli.caching.places import can_hold, find_limit
from ftcli.data.batches import Draw, Feed
from ftcli.data.loading import choose_workers, share_cores
from ftcli.data.pixels import PixelCache
from ftcli.data.transforms import ImageTransform
from ftcli.features.cache import FeatureCache, NoRoom, Sight, Source
from ftcli.inference.outputs import Look, look_from, look_through
from ftcli.models.cut import Cut, find_cut
from ftcli.models.freezing import list_frozen_tensors, set_modes
from ftcli.planning import StagePlan
from ftcli.recipe.schema import Stage
from ftcli.results import Reporter, tell_count, tell_duration, tell_size
from ftcli.runtime import measure_free_memory
from ftcli.training.acceleration import compile_look
from ftcli.training.interruption import StopSignals
from ftcli.training.ledger import Ledger
from ftcli.training.preparation import Job, choose_transform, open_loader

SMALL = 64 * 1024
"""Bytes an image up to which reading what is kept is always faster than computing it."""
FAST, SLOW = 1.5e9, 2e8
"""Bytes a second at which kept values are read that the memory holds, and that come from the disk; cautious ones."""


@dataclass(frozen=True)
class Course:
    """What a stage trains on and how it looks at that: `training` in the modes of training, `evaluating` in eval mode.

    `draws` are the random looks at the training images; epoch e, counted from 0, takes the one at e mod their number.
    None of them depends on how many there are. `cached` tells that the frozen part is not computed in the stage.
    """

    train: Feed
    val: Feed
    training: Look
    evaluating: Look
    draws: Sequence[Draw | None]
    cached: bool

    def draw(self, epoch: int) -> Draw | None:
        """The look of an epoch, counted from 0."""
        return self.draws[epoch % len(self.draws)]


@contextmanager
def open_course(
    job: Job,
    plan: StagePlan,
    ledger: Ledger,
    reporter: Reporter,
    stop: StopSignals,
    digests: Mapping[str, str],
    before: bool | None = None,
) -> Iterator[Course | None]:
    """Choose how a stage computes, say so, and compute what is to be kept of the frozen part; None if a signal came
    meanwhile. Processes that read images end with the context. `digests` are those of the frozen tensors as they are
    now. `before` is whether the frozen part was kept when the stage began, where it goes on: it does as before, with
    the same looks at the images even if there is no room now.

    Raises what reading images raises, and RunError where the disk is full.
    """
    with ledger.measure("frozen"):
        kept = None if before is False else _choose_cache(job, plan, digests, reporter, before is not None)
        course = None if kept is None else _gather(job, plan, *kept, reporter, stop)
    if course is not None:
        yield _compile(job, plan, course, ledger, reporter)
        return
    if stop.is_set():
        yield None
        return
    look, stage = look_from(job.classifier), plan.stage
    views = count_views(stage, choose_transform(job, "train")) if before else stage.epochs
    with ledger.measure("data"):
        pixels = _keep_pixels(job, stage, reporter, stop)
    if pixels is None:
        yield None
        return
    with open_loader(job, "train", pixels.get("train")) as train, open_loader(job, "val", pixels.get("val")) as val:
        draws = [(job.plan.recipe.seed, stage.name, view + 1) for view in range(views)]
        yield _compile(job, plan, Course(train, val, look, look, draws, cached=False), ledger, reporter)


def _compile(job: Job, plan: StagePlan, course: Course, ledger: Ledger, reporter: Reporter) -> Course:
    """The course with its steps compiled, if the recipe asks for that."""
    if not job.plan.recipe.compile:
        return course
    set_modes(job.classifier.model, plan.freezing)
    with ledger.measure("compiling"):
        size = min(course.train.batch_size, len(course.train.samples))
        first = next(course.train.batches(range(size), course.draw(0)))
        return replace(course, training=compile_look(course.training, first.values, job.classifier.model, reporter))


def count_views(stage: Stage, transform: ImageTransform) -> int:
    """How many looks at each training image are kept, where any are."""
    if not transform.is_random:
        return 1
    wanted = stage.epochs if stage.cache == "off" or stage.cache.views == "all" else stage.cache.views
    return min(wanted, stage.epochs)


def _choose_cache(
    job: Job, plan: StagePlan, digests: Mapping[str, str], reporter: Reporter, anyway: bool
) -> tuple[Cut, FeatureCache] | None:
    """The cut and the cache of what the frozen part gives, where there is such a part, it fits and it is worth while,
    or wanted `anyway`."""
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
    train, val = (len(job.images.splits[split]) for split in ("train", "val"))
    views = count_views(stage, choose_transform(job, "train"))
    size = (views * train + val) * cache.row_bytes
    if not can_hold(size):
        reporter.say(
            f"Stage {stage.name}: the frozen part is computed in every epoch, for what it gives would take "
            f"{tell_size(size)}, more than the disk or the cache's limit of {tell_size(find_limit())} allows"
        )
        return None
    kept = tell_count(views, "view") + f" of {tell_count(train, 'image')} and {val:,} for validation"
    gain = ""
    if cache.row_bytes > SMALL and not anyway:
        again, once = weigh_ways(cache, stage.epochs, (train, val), views, size)
        if once >= again:
            reporter.say(
                f"Stage {stage.name}: the frozen part is computed in every epoch, about {tell_duration(again)}, for "
                f"keeping {tell_size(size)} of what it gives would take {tell_duration(once)}"
            )
            return None
        gain = f": about {tell_duration(once)} instead of {tell_duration(again)}"
    names = ", ".join(crossing.name for crossing in cut.crossing)
    reporter.say(
        f"Stage {stage.name}: the frozen part, up to {names}, is computed once for {kept}, {tell_size(size)}{gain}"
    )
    return cut, cache


def weigh_ways(cache: FeatureCache, epochs: int, images: tuple[int, int], views: int, size: int) -> tuple[float, float]:
    """Seconds that the frozen part takes when it is computed in every epoch, and when it is kept and read."""
    train, val = images
    seen = epochs * (train + val) + val
    forward = cache.measure_prefix()
    rate = FAST if size < measure_free_memory() / 2 else SLOW
    return seen * forward, (views * train + val) * forward + (size + seen * cache.row_bytes) / rate


def _gather(
    job: Job, plan: StagePlan, cut: Cut, cache: FeatureCache, reporter: Reporter, stop: StopSignals
) -> Course | None:
    """What is trained on where the frozen part is kept; None if a signal came meanwhile, or there is no room."""
    data, images, name = job.plan.recipe.data, job.images, plan.stage.name
    workers = share_cores(data.workers, job.classifier.device, images)
    source = Source(images.root, data.on_bad_image, workers, job.beginning.verify)
    transform = choose_transform(job, "train")
    draws: list[Draw | None] = [
        (job.plan.recipe.seed, name, view + 1) for view in range(count_views(plan.stage, transform))
    ]
    if not transform.is_random:
        draws = [None]
    feeds = []
    for split, sights in (
        ("train", [Sight(transform, draw) for draw in draws]),
        ("val", [Sight(choose_transform(job, "val"), None)]),
    ):
        task = f"{name}: frozen part, {split}"
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
    if not cache.computed:
        reporter.say(f"Stage {name}: all of that was computed before and is read from the cache")
    training, evaluating = (look_through(part, job.classifier) for part in (cut.training_suffix, cut.suffix))
    return Course(feeds[0], feeds[1], training, evaluating, draws, cached=True)


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
        task, workers = f"{stage.name}: reading {split}", choose_workers(data.workers)
        if not kept.fill(images.splits[split], workers, data.on_bad_image, reporter, task, stop.is_set):
            return None
    return pixels
