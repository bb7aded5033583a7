"""One walk through a folder of images, which notes every fault before any is raised."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ftcli.data.entries import SPLIT_OF_NAME
from ftcli.data.images import is_image
from ftcli.errors import DataError
from ftcli.results import tell_count

_LAYOUT = "give a folder with train/<class>/, or with one folder a class"

_Identity = tuple[int, int]


class FolderScan:
    """The splits and classes below one root. Faults gather in `faults`, each begun with `where`."""

    def __init__(self, root: Path, where: str) -> None:
        self.root = root
        self.where = where
        self.faults: list[str] = []

    def fail(self, what: str) -> None:
        """Note a fault."""
        self.faults.append(f"{self.where}: {what}")

    def raise_faults(self) -> None:
        """Raise one DataError with all faults, if there are any."""
        if self.faults:
            raise DataError(*self.faults)

    def find_splits(self) -> dict[str, Path]:
        """The folder of each split; a root without train/ and with folders of other names is the split "all"."""
        listed = self._list(self.root)
        if listed is None:
            return {}
        folders, images = listed
        named: dict[str, list[str]] = {}
        for name in folders:
            if split := SPLIT_OF_NAME.get(name.lower()):
                named.setdefault(split, []).append(name)
        others = [name for name in folders if name.lower() not in SPLIT_OF_NAME]
        if not named or (others and "train" not in named):
            return {"all": self.root}
        if others:
            self.fail(
                f"{self.root} is split, for it has {named['train'][0]}, but {name_all(others)} beside it "
                f"{'is no split' if len(others) == 1 else 'are no splits'}; move what is no split out of {self.root}, "
                f"or, if {named['train'][0]} is a class, move every class into {self.root / 'train'}"
            )
        for split, names in named.items():
            if len(names) > 1:
                self.fail(f"{self.root} has {name_all(names)}, which all stand for {split}; keep one")
        self._refuse_loose(self.root, images, "split folders")
        return {split: self.root / names[0] for split, names in named.items()}

    def list_classes(self, folder: Path) -> dict[str, tuple[str, ...]]:
        """The images of each class folder right below a folder, as sorted paths relative to the root."""
        noted = len(self.faults)
        names, images = self._list(folder) or ([], [])
        if not names and len(self.faults) == noted:
            self.fail(f"{folder} has no class folders; put the images of each class into a folder of its own")
        if names:
            self._refuse_loose(folder, images, "class folders")
        above = frozenset(_identify(place) for place in (self.root, folder))
        classes: dict[str, tuple[str, ...]] = {}
        empty: list[str] = []
        for name in names:
            noted = len(self.faults)
            paths = self._walk(folder / name, above)
            classes[name] = tuple(sorted(path.relative_to(self.root).as_posix() for path in paths))
            if not classes[name] and len(self.faults) == noted:
                empty.append(name)
        if empty:
            kind = "an empty class folder" if len(empty) == 1 else f"{len(empty)} empty class folders"
            self.fail(f"{folder} has {kind}, {name_all(empty)}; add images, or remove what is empty")
        return classes

    def _walk(self, folder: Path, above: frozenset[_Identity | None]) -> Iterator[Path]:
        """Every image at any depth. A link to a folder that this one lies in is not entered: it would never end."""
        here = _identify(folder)
        if here in above:
            return
        folders, images = self._list(folder) or ([], [])
        for name in images:
            yield folder / name
        for name in folders:
            yield from self._walk(folder / name, above | {here})

    def _list(self, folder: Path) -> tuple[list[str], list[str]] | None:
        """The names of the folders and of the images right inside a folder, sorted; None if it cannot be read."""
        folders: list[str] = []
        images: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir():
                        folders.append(entry.name)
                    # A link to nowhere counts: whoever opens it tells that it leads nowhere. Pipes and devices do not.
                    elif is_image(entry.name) and (entry.is_file() or not Path(entry.path).exists()):
                        images.append(entry.name)
        except FileNotFoundError:
            self.fail(f"{folder} is not there; {_LAYOUT}")
            return None
        except NotADirectoryError:
            self.fail(f"{folder} is no folder and no manifest (.csv, .tsv, .parquet); {_LAYOUT}")
            return None
        except OSError as error:
            self.fail(f"{folder} cannot be read ({error.strerror}); check its permissions")
            return None
        return sorted(folders), sorted(images)

    def _refuse_loose(self, folder: Path, images: list[str], beside: str) -> None:
        if images:
            count = tell_count(len(images), "image")
            self.fail(
                f"{folder} has {count} beside its {beside}, such as {images[0]!r}, which would belong to no class; "
                "move what is to be used into a class folder and the rest away"
            )


def name_all(names: Iterable[str], show: int = 12) -> str:
    """The names in quotes, at most `show` of them with the count of the rest."""
    known = list(names)
    listed = ", ".join(repr(name) for name in known[:show])
    return listed if len(known) <= show else f"{listed} and {len(known) - show} more"


def _identify(folder: Path) -> _Identity | None:
    """What a folder is, whatever its name; None where that cannot be asked, which listing it then tells."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
