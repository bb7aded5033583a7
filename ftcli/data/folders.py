"""One walk through a folder of images, which notes every fault before any is raised."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ftcli.data.entries import SPLIT_ALIASES
from ftcli.data.images import is_image
from ftcli.errors import DataError
from ftcli.results import format_count

_LAYOUT_HINT = "give a folder with train/<class>/, or with one folder a class"

_FolderId = tuple[int, int]


class FolderScan:
    """The splits and classes below one root. Faults gather in `faults`, each begun with `where`."""

    def __init__(self, root: Path, location: str) -> None:
        self.root = root
        self.location = location
        self.errors: list[str] = []

    def add_error(self, message: str) -> None:
        """Note a fault."""
        self.errors.append(f"{self.location}: {message}")

    def raise_errors(self) -> None:
        """Raise one DataError with all faults, if there are any."""
        if self.errors:
            raise DataError(*self.errors)

    def find_splits(self) -> dict[str, Path]:
        """The folder of each split; a root without train/ and with folders of other names is the split "all"."""
        contents = self._list_folder(self.root)
        if contents is None:
            return {}
        folders, images = contents
        names_by_split: dict[str, list[str]] = {}
        for name in folders:
            if split := SPLIT_ALIASES.get(name.lower()):
                names_by_split.setdefault(split, []).append(name)
        other_names = [name for name in folders if name.lower() not in SPLIT_ALIASES]
        if not names_by_split or (other_names and "train" not in names_by_split):
            return {"all": self.root}
        if other_names:
            self.add_error(
                f"{self.root} is split, for it has {names_by_split['train'][0]}, but {format_names(other_names)} beside it "
                f"{'is no split' if len(other_names) == 1 else 'are no splits'}; move what is no split out of {self.root}, "
                f"or, if {names_by_split['train'][0]} is a class, move every class into {self.root / 'train'}"
            )
        for split, names in names_by_split.items():
            if len(names) > 1:
                self.add_error(f"{self.root} has {format_names(names)}, which all stand for {split}; keep one")
        self._report_loose_images(self.root, images, "split folders")
        return {split: self.root / names[0] for split, names in names_by_split.items()}

    def list_classes(self, folder: Path) -> dict[str, tuple[str, ...]]:
        """The images of each class folder right below a folder, as sorted paths relative to the root."""
        num_errors = len(self.errors)
        names, images = self._list_folder(folder) or ([], [])
        if not names and len(self.errors) == num_errors:
            self.add_error(f"{folder} has no class folders; put the images of each class into a folder of its own")
        if names:
            self._report_loose_images(folder, images, "class folders")
        ancestors = frozenset(_get_folder_id(ancestor) for ancestor in (self.root, folder))
        classes: dict[str, tuple[str, ...]] = {}
        empty: list[str] = []
        for name in names:
            num_errors = len(self.errors)
            paths = self._walk(folder / name, ancestors)
            classes[name] = tuple(sorted(path.relative_to(self.root).as_posix() for path in paths))
            if not classes[name] and len(self.errors) == num_errors:
                empty.append(name)
        if empty:
            description = "an empty class folder" if len(empty) == 1 else f"{len(empty)} empty class folders"
            self.add_error(f"{folder} has {description}, {format_names(empty)}; add images, or remove what is empty")
        return classes

    def _walk(self, folder: Path, ancestors: frozenset[_FolderId | None]) -> Iterator[Path]:
        """Every image at any depth. A link to a folder that this one lies in is not entered: it would never end."""
        folder_id = _get_folder_id(folder)
        if folder_id in ancestors:
            return
        folders, images = self._list_folder(folder) or ([], [])
        for name in images:
            yield folder / name
        for name in folders:
            yield from self._walk(folder / name, ancestors | {folder_id})

    def _list_folder(self, folder: Path) -> tuple[list[str], list[str]] | None:
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
            self.add_error(f"{folder} is not there; {_LAYOUT_HINT}")
            return None
        except NotADirectoryError:
            self.add_error(f"{folder} is no folder and no manifest (.csv, .tsv, .parquet); {_LAYOUT_HINT}")
            return None
        except OSError as error:
            self.add_error(f"{folder} cannot be read ({error.strerror}); check its permissions")
            return None
        return sorted(folders), sorted(images)

    def _report_loose_images(self, folder: Path, images: list[str], sibling_kind: str) -> None:
        if images:
            count = format_count(len(images), "image")
            self.add_error(
                f"{folder} has {count} beside its {sibling_kind}, such as {images[0]!r}, which would belong to no class; "
                "move what is to be used into a class folder and the rest away"
            )


def format_names(names: Iterable[str], max_names: int = 12) -> str:
    """The names in quotes, at most `show` of them with the count of the rest."""
    all_names = list(names)
    shown = ", ".join(repr(name) for name in all_names[:max_names])
    return shown if len(all_names) <= max_names else f"{shown} and {len(all_names) - max_names} more"


def _get_folder_id(folder: Path) -> _FolderId | None:
    """What a folder is, whatever its name; None where that cannot be asked, which listing it then tells."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
