from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ftcli.data.finding import find_images
from ftcli.errors import DataError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: photos/ with images at three depths, hidden ones, and what is no image."""
    names = ["b.jpg", "a.PNG", "a.txt", ".hidden.jpg", "deep/1.jpg", "deep/er/2.jpg", "deep/er/3.png", ".git/4.jpg"]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(*given: str, listed: bytes = b"") -> list[str]:
    found = find_images(given, io.BytesIO(listed))
    paths = list(found.paths)
    assert found.count == (None if "-" in given else len(paths))
    return paths


def fault(*given: str, listed: bytes = b"") -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        find_images(given, io.BytesIO(listed))
    return error.value.faults


ALL = ["photos/a.PNG", "photos/b.jpg", "photos/deep/1.jpg", "photos/deep/er/2.jpg", "photos/deep/er/3.png"]


def test_a_folder_is_walked_in_order(place: Path) -> None:
    assert find("photos") == ALL
    assert find(f"{place}/photos/deep/") == [
        f"{place}/photos/deep/{name}" for name in ("1.jpg", "er/2.jpg", "er/3.png")
    ]
    assert find("photos/deep", "photos/b.jpg", "photos/deep/er") == [*ALL[2:], "photos/b.jpg", *ALL[3:]]


def test_links_are_followed_but_never_in_circles(place: Path) -> None:
    (place / "photos/deep/er/loop").symlink_to(place / "photos")
    (place / "photos/deep/nowhere.jpg").symlink_to(place / "gone.jpg")
    (place / "elsewhere").mkdir()
    (place / "elsewhere/5.jpg").touch()
    (place / "photos/linked").symlink_to(place / "elsewhere")
    os.mkfifo(place / "photos/pipe.jpg")
    assert find("photos") == [*ALL[:3], "photos/deep/nowhere.jpg", *ALL[3:], "photos/linked/5.jpg"]


def test_a_pattern_that_the_shell_left(place: Path) -> None:
    assert find("photos/**/*.jpg") == [path for path in ALL if path.endswith(".jpg")]
    assert find("photos/*") == ALL[:2]
    assert find("photos/**") == ALL
    assert find("photos/**/er/**/?.[pj][np]g") == ALL[3:]
    assert find("*/*/*.jpg") == ["photos/deep/1.jpg"]
    assert find(f"{place}/photos/*.jpg") == [f"{place}/photos/b.jpg"]


def test_a_file_that_is_named_is_taken_as_it_is(place: Path) -> None:
    (place / "[1]*.jpg").touch()
    assert find("[1]*.jpg", "photos/a.txt", "gone.jpg", "./photos/b.jpg") == [
        "[1]*.jpg",
        "photos/a.txt",
        "gone.jpg",
        "./photos/b.jpg",
    ]


def test_a_list_of_lines_or_of_nuls(place: Path) -> None:
    assert find("-", listed=b"b.jpg\n\n a b.jpg\nphotos\n*.jpg") == ["b.jpg", " a b.jpg", "photos", "*.jpg"]
    assert find("-", listed=b"\xef\xbb\xbfa.jpg\r\n\r\nb.jpg\r\n") == ["a.jpg", "b.jpg"]  # as Windows writes it
    assert find("-", listed=b"line\nbreak.jpg\0\xff.jpg\0") == ["line\nbreak.jpg", "\udcff.jpg"]
    many = [f"{number:06}.jpg" for number in range(20_000)]
    assert find("photos/b.jpg", "-", "photos/deep/er", listed="\n".join(many).encode()) == [
        "photos/b.jpg",
        *many,
        *ALL[3:],
    ]


def test_a_list_is_read_as_it_is_used() -> None:
    listed = io.BytesIO(b"a.jpg\n" * 1_000_000)
    found = find_images(["-"], listed)
    assert [next(found.paths) for _ in range(5)] == ["a.jpg"] * 5
    assert listed.tell() < 1_000_000


def test_every_fault_at_once(place: Path, forbidden: Callable[[Path], AbstractContextManager[None]]) -> None:
    (place / "empty/.x").mkdir(parents=True)
    (place / "secret").mkdir()
    place.chmod(0o755)  # that whoever reads in it gets as far as secret
    with forbidden(place / "secret"):
        assert fault("empty", "photos/*.gif", "nothing/**/*.jpg", "secret", "photos") == (
            "empty: holds no image; give a folder that does",
            "photos/*.gif: fits no image; mend the pattern, in which ** stands for any number of folders",
            "nothing/**/*.jpg: fits no image; mend the pattern, in which ** stands for any number of folders",
            "secret: cannot be read (Permission denied); check its permissions",
        )
    assert fault() == (
        "predict: no image is given; name files, folders or patterns, or - for a list on standard input",
    )
    assert fault("-", "-") == ("-: stands twice; standard input can be read once",)
    assert fault("-", listed=b"\n\n") == (
        "-: standard input names no image; give a path a line, as `find photos -name '*.jpg'` does",
    )
