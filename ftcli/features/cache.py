"""What the frozen part of a network gives for images: computed once, kept on the disk, found by what it is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from ftcli.caching.images import digest_images
from ftcli.caching.places import make_room
from ftcli.caching.store import Filler, Store, make_key
from ftcli.data.batches import Draw, LeftOut, divide_order
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.data.transforms import ImageTransform
from ftcli.errors import DataError, RunError
from ftcli.features.feeds import KEY_BYTES, ValueFeed
from ftcli.features.identity import UNKNOWN, Digests, identify_prefix, name_draw
from ftcli.features.prefix import Prefix
from ftcli.models.cut import Cut
from ftcli.results import Preprocessing, Progress, Reporter, tell_count
from ftcli.runtime import settle_precision

_OVERHEAD = 64  # bytes of a record beside its values
_NO_KEY = bytes(KEY_BYTES)


@dataclass(frozen=True)
class Sight:
    """A way to look at every image: a transform, and the draw of its random part; the draw does nothing where the
    transform has none."""

    transform: ImageTransform
    draw: Draw | None


@dataclass(frozen=True)
class Source:
    """Where image files are and how they are read: with `workers` processes, or in this one if 0. `verify` reads every
    file anew to know it by its bytes, where else size and dates tell that it is the one known."""

    root: Path
    on_corrupt_image: Literal["error", "skip"]
    num_workers: int
    verify: bool = False


class NoRoom(RunError):
    """What is asked for does not fit into the cache. Nothing was computed."""


class FeatureCache:
    """The values that cross a cut, for images seen in certain ways, kept from one process to the next.

    They are known by what they are made of: the image's bytes, its way to the network, every tensor and layer of the
    prefix, the place of the cut, device type and number format, and the versions of the libraries. Whatever of this
    differs in a bit makes other records; nothing else does. `prefix` is what computes them.
    """

    def __init__(
        self, cut: Cut, preprocessing: Preprocessing, device: torch.device, precision: str, known: Digests = UNKNOWN
    ) -> None:
        self.prefix = Prefix(cut, preprocessing, device, precision)
        identity = {
            **identify_prefix(cut, preprocessing, known),
            "device": device.type,
            "precision": settle_precision(precision, device, {}),
            "batch": self.prefix.batch,
        }
        size = preprocessing.image_size
        about = ", ".join(f"{crossing.name} ({'x'.join(map(str, crossing.shape))})" for crossing in cut.crossing)
        self._store = Store("features", identity, f"{about} of images of {size} x {size} pixels")

    def gather(
        self,
        samples: Sequence[Sample],
        sights: Sequence[Sight],
        batch_size: int,
        source: Source,
        reporter: Reporter,
        task: str,
        stop: Callable[[], bool] = lambda: False,
    ) -> ValueFeed | None:
        """The values of samples, each seen in all `sights`, as a feed of batches of `batch_size`; what is not kept yet
        is computed first, identical images once. None if `stop` became true; what was computed by then is kept.

        Raises NoRoom where there is none for it in the cache, DataError for an image that changes while it is read, and
        what a Loader raises. Broken images are left out of the feed as a Loader leaves them out.
        """
        gathering = _Gathering(self._store, self.prefix, tuple(samples), source)
        gathering.see(sights)
        for once in (True, False):  # the twins of a broken image are looked at too, for each is told by its name
            missing = gathering.list_missing(once)
            if any(missing) and not gathering.fill(sights, once, _Course(reporter, task, stop)):
                return None
        if any(gathering.list_missing(False)):
            raise RunError(
                f"{task}: what was computed has left {self._store.folder} meanwhile; give the cache more room with "
                "FTCLI_CACHE_LIMIT, or do without it: cache: off in a recipe, or --no-cache"
            )
        self._store.release()
        fixed = not any(sight.transform.is_random for sight in sights)
        keys = {sight.draw: keys for sight, keys in zip(sights, gathering.keys, strict=True)}
        return ValueFeed(
            self._store,
            self.prefix,
            gathering.samples,
            batch_size,
            keys,
            gathering.left_out,
            fixed and len(sights) == 1,
        )


@dataclass
class _Course:
    """How the computing is followed and ended."""

    reporter: Reporter
    task: str
    stop: Callable[[], bool]
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0

    def advance(self, images: int) -> bool:
        """Tell that so many more are done; returns whether to go on."""
        self.done += images
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        self.reporter.advance(Progress(self.task, self.done, self.total, rate))
        return not self.stop()


class _Gathering:
    """The samples of a gathering, their keys for each sight, and which of them are broken."""

    def __init__(self, store: Store, prefix: Prefix, samples: tuple[Sample, ...], source: Source) -> None:
        self.samples = samples
        self.keys: list[bytes] = []
        self.left_out: dict[str, LeftOut] = {}
        self._store = store
        self._prefix = prefix
        self._source = source
        self._digests = digest_images(source.root, [sample.path for sample in samples], source.verify)

    def see(self, sights: Sequence[Sight]) -> None:
        """Work out the key of each sample in each sight, one after the other; one of zeros where it is unreadable."""
        for sight in sights:
            own = sight.transform.identity
            random = sight.transform.is_random
            if random and sight.draw is None:
                raise ValueError("a random transform needs a draw, or no two looks at an image are the same")
            # A random look depends on the image's name too, which the draw is mixed with.
            drawn = name_draw(sight.draw) if random and sight.draw is not None else ""
            self.keys.append(
                b"".join(
                    _NO_KEY if digest is None else make_key(digest, own, drawn, sample.path if random else "")
                    for sample, digest in zip(self.samples, self._digests, strict=True)
                )
            )

    def list_missing(self, once: bool) -> list[list[int]]:
        """For each sight, the places of the samples that have no record and are not known to be broken; with `once`, of
        those with equal keys the first alone."""
        missing: list[list[int]] = []
        seen = set[bytes]()
        for keys in self.keys:
            own = [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]
            places = []
            for place, (key, found) in enumerate(zip(own, self._store.find(own), strict=True)):
                if found or self.samples[place].path in self.left_out or (once and key in seen):
                    continue
                if key != _NO_KEY:
                    seen.add(key)
                places.append(place)
            missing.append(places)
        return missing

    def fill(self, sights: Sequence[Sight], once: bool, course: _Course) -> bool:
        """Compute what is missing and keep it; False if that was stopped. Raises as `FeatureCache.gather`."""
        with self._store.fill(course.reporter, course.stop) as filler:
            if filler is None:
                return False
            missing = self.list_missing(once)  # another process may have computed it while this one waited
            course.total = sum(map(len, missing))
            self._claim_room(course)
            for sight, keys, places in zip(sights, self.keys, missing, strict=True):
                left = [place for place in places if self.samples[place].path not in self.left_out]
                course.total -= len(places) - len(left)
                if left and not self._compute(sight, keys, left, filler, course):
                    return False
        return True

    def _claim_room(self, course: _Course) -> None:
        needed = course.total * (self._prefix.row_bytes + _OVERHEAD)
        if not make_room(needed):
            raise NoRoom(
                f"{course.task}: {needed / 1e6:.1f} MB of the cache are needed for "
                f"{tell_count(course.total, 'image')}, more than there is room for; raise FTCLI_CACHE_LIMIT, free some "
                "of the disk, or set cache: off"
            )

    def _compute(self, sight: Sight, keys: bytes, places: list[int], filler: Filler, course: _Course) -> bool:
        draw = sight.draw if sight.transform.is_random else None
        with self._open(sight, places) as loader, closing(self._prefix.stream(loader.batches(draw=draw))) as computed:
            for taken, (batch, rows) in zip(divide_order(places, self._prefix.batch), computed, strict=True):
                self.left_out |= {one.path: one for one in batch.left_out}
                kept = [place for place in taken if self.samples[place].path not in self.left_out]
                self._check_unchanged(kept)
                for place, row in zip(kept, rows, strict=True):
                    filler.add(keys[KEY_BYTES * place : KEY_BYTES * (place + 1)], row.data)
                if not course.advance(len(taken)):
                    return False
        return True

    def _open(self, sight: Sight, places: list[int]) -> Loader:
        source, size = self._source, self._prefix.batch
        num_workers = source.num_workers if len(places) > size else 0  # a single batch is sooner read than handed over
        samples = [self.samples[place] for place in places]
        whole = replace(sight.transform, is_deferred=False)  # nobody makes its changes afterwards
        return Loader(samples, whole, size, ImageFiles(source.root, source.on_corrupt_image, num_workers))

    def _check_unchanged(self, places: list[int]) -> None:
        """Raise DataError where a file is no longer the one that its record would be known by."""
        paths = [self.samples[place].path for place in places]
        for place, digest in zip(places, digest_images(self._source.root, paths), strict=True):
            if digest != self._digests[place]:
                path = self._source.root / self.samples[place].path
                raise DataError(f"{path}: changed while it was read; run again when it stays as it is")
