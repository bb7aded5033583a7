"""Which images there are, which class each belongs to, and who trains, validates and tests."""

from __future__ import annotations

import bisect
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcli import runtime
from ftcli.data.folders import FolderScan, name_all
from ftcli.errors import CheckpointError, DataError
from ftcli.recipe import schema

Layout = dict[str, dict[str, tuple[str, ...]]]
"""Split name -> class name -> sorted paths relative to the root."""


@dataclass(frozen=True)
class Sample:
    """An image: its path relative to the root, with slashes, and the index of its class."""

    path: str
    label: int


@dataclass(frozen=True)
class ImageSet:
    """The images of a recipe: `splits` has train, val and, where there is one, test, each sorted by label and path."""

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Sample, ...]]

    def fingerprint(self) -> str:
        """A SHA-256, in hexadecimal, over split, path, label and size in bytes of every image.

        It changes when an image comes, goes, moves or changes its size; the files are not read. A file that has gone
        since it was listed counts with size -1: whoever opens it tells of that.
        """
        digest = hashlib.sha256()
        for split, samples in self.splits.items():
            for sample in samples:
                fields = (split, sample.path, str(sample.label), str(_measure(self.root / sample.path)), "")
                digest.update("\0".join(fields).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def natural_key(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key that sorts names as people do: class_2 before class_10, 9 before 10. No two names have the same."""
    parts = re.split(r"([0-9]+)", name)
    # Text and digits alternate. A number without its zeros is compared by length first, so any length will do.
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part) for place, part in enumerate(parts)
    ), name


def read_folder(root: Path, where: str) -> Layout:
    """List the images below a root that holds train/<class>/ (and val/, test/), or one folder a class (split "all").

    Images may lie at any depth below a class folder; links are followed; hidden files and files that are no images
    are passed over. `valid` and `validation` are val, and case does not matter. Raises one DataError with every fault:
    a root that is missing or no folder, no class folders, a class folder without an image, images beside the class
    folders, folders beside the splits, a folder that cannot be read. Each fault begins with `where`.
    """
    scan = FolderScan(root, where)
    layout = _list_all(scan)
    scan.raise_faults()
    return layout


def split_images(data: schema.Data, seed: int, where: str, held: Mapping[str, str] | None = None) -> ImageSet:
    """Say who trains, validates and tests.

    What the folders fix stands. Otherwise each image has its own share u, drawn from (seed, class, path within the
    class) alone, and u below data.test is test, below data.val of what remains is val, and the rest train: images that
    are added or taken away move nobody else. Only where a class would have no image in a split does the nearest one
    by u go there. `held` maps paths to the split they had in an earlier run, where they stay.

    Raises one DataError with every fault: those of `read_folder`, a root without train, fewer than two classes, a
    class that train lacks or that val or test lacks, classes other than data.classes, a class with too few images.
    """
    scan = FolderScan(Path(data.root), where)
    layout = _list_all(scan)
    pool = "all" if "all" in layout else "train"
    if pool not in layout:
        scan.fail(f"{data.root} has no folder train, only {name_all(layout)}; add it, with a folder for each class")
        scan.raise_faults()
    _check_classes(scan, layout, pool, data.classes)
    bounds = {"test": data.test, "val": data.test + (1 - data.test) * data.val, "train": 1.0}
    if pool == "train":
        bounds = {"train": 1.0} if "val" in layout else {"val": data.val, "train": 1.0}
    classes = data.classes or tuple(sorted(layout[pool], key=natural_key))
    drawn: dict[str, str] = {}
    for name, paths in layout[pool].items():
        drawn |= _draw_class(scan, name, _share_out(seed, pool, name, paths), bounds, held or {})
    scan.raise_faults()
    found: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for split, folders in layout.items():
        for label, name in enumerate(classes):
            for path in folders[name]:
                found[drawn[path] if split == pool else split].append(Sample(path, label))
    splits = {split: tuple(sorted(samples, key=order_samples)) for split, samples in found.items() if samples}
    return ImageSet(Path(data.root), classes, splits)


def list_split(root: Path, split: str, classes: Sequence[str], where: str) -> tuple[Sample, ...]:
    """List one split of another root for a classifier of known classes; sorted by label and path.

    `split` is train, val or test, or all for a folder of classes. Folders find their label by name; some classes may
    have no folder. Raises DataError for faults of the folders and for a split that is not there, CheckpointError for
    folders that are no class of the classifier.
    """
    scan = FolderScan(root, where)
    folders = scan.find_splits()
    scan.raise_faults()
    if split not in folders:
        if "all" in folders:
            raise DataError(f"{where}: {root} is a folder of classes and has no split {split!r}; use the split 'all'")
        raise DataError(f"{where}: {root} has no split {split!r}; give one that it has: {name_all(folders)}")
    listed = scan.list_classes(folders[split])
    scan.raise_faults()
    labels = {name: label for label, name in enumerate(classes)}
    unknown = sorted(listed.keys() - labels.keys(), key=natural_key)
    if unknown:
        raise CheckpointError(
            f"{where}: {root} has {_tell(unknown)} that the checkpoint does not know; "
            f"its classes are {name_all(classes)}"
        )
    samples = (Sample(path, labels[name]) for name, paths in listed.items() for path in paths)
    return tuple(sorted(samples, key=order_samples))


def _list_all(scan: FolderScan) -> Layout:
    folders = scan.find_splits()
    if not folders:
        scan.raise_faults()
    return {split: scan.list_classes(folder) for split, folder in folders.items()}


def _check_classes(scan: FolderScan, layout: Layout, pool: str, given: Sequence[str] | None) -> None:
    """Note the faults of splits whose classes differ from train's, and of a recipe whose classes differ from those."""
    have = layout[pool].keys()
    if not have:
        return  # noted when it was listed, as for other splits below
    home = f"{scan.root}/train" if pool == "train" else str(scan.root)
    if len(have) == 1:
        scan.fail(f"{home} has one class only, {name_all(have)}; a classifier needs at least 2")
    for split, folders in layout.items():
        if lacks := sorted(have - folders.keys(), key=natural_key) if folders else []:
            scan.fail(f"{scan.root}: {split} lacks {_tell(lacks)} that train has; give both the same classes")
        if extra := sorted(folders.keys() - have, key=natural_key):
            scan.fail(f"{scan.root}: train lacks {_tell(extra)} that {split} has; give both the same classes")
    if given is None:
        return
    if lacks := [name for name in given if name not in have]:
        scan.fail(f"{home} lacks {_tell(lacks)} that data.classes names; add the folder, or mend data.classes")
    if extra := sorted(have - set(given), key=natural_key):
        scan.fail(f"{home} has {_tell(extra)} beyond data.classes; move the folder away, or mend data.classes")


def _share_out(seed: int, pool: str, name: str, paths: Iterable[str]) -> list[tuple[float, str]]:
    """Each path with its share, least first. The share knows the class and the path below it, not the layout."""
    depth = 1 if pool == "all" else 2
    return sorted((runtime.derive_share(seed, "split", name, path.split("/", depth)[-1]), path) for path in paths)


def _draw_class(
    scan: FolderScan,
    name: str,
    shares: list[tuple[float, str]],
    bounds: Mapping[str, float],
    held: Mapping[str, str],
) -> dict[str, str]:
    """The split of each path of one class; `bounds` are the shares below which an image belongs to each split."""
    drawn = {path: held[path] for _, path in shares if path in held}
    counts = Counter(drawn.values())
    free = [pair for pair in shares if pair[1] not in held]
    needs = [0 if counts[split] else 1 for split in bounds]
    if len(free) < sum(needs):
        if shares:  # an empty class was noted when it was listed
            beside = " beside those of the earlier run" if drawn else ""
            wanting = [split for split, need in zip(bounds, needs, strict=True) if need]
            scan.fail(
                f"class {name!r} has {len(free)} image{'' if len(free) == 1 else 's'}{beside}, too few for "
                f"{'one each' if len(wanting) > 1 else 'one'} in {' and '.join(wanting)}; add images"
            )
        return drawn
    start = 0
    for number, (split, bound) in enumerate(bounds.items()):
        # The cut falls where the bound lies, moved by no more than this and the later splits need for an image each.
        end = bisect.bisect_left(free, (bound, ""))
        end = min(max(end, start + needs[number]), len(free) - sum(needs[number + 1 :]))
        drawn |= {path: split for _, path in free[start:end]}
        start = end
    return drawn


def order_samples(sample: Sample) -> tuple[int, str]:
    """The key by which the samples of a split are sorted: label, then path."""
    return sample.label, sample.path


def _tell(names: Sequence[str]) -> str:
    return f"the {'class' if len(names) == 1 else 'classes'} {name_all(names)}"


def _measure(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
