from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ftcli.data.input_paths import find_images
from ftcli.errors import DataError


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: photos/ with images at three depths, hidden ones, and another file."""
    names = ["b.jpg", "a.PNG", "a.txt", ".hidden.jpg", "deep/1.jpg", "deep/er/2.jpg", "deep/er/3.png", ".git/4.jpg"]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(*arguments: str, stdin: bytes = b"") -> list[str]:
    input_paths = find_images(arguments, io.BytesIO(stdin))
    paths = list(input_paths.paths)
    assert input_paths.num_paths == (None if "-" in arguments else len(paths))
    return paths


def errors_of(*arguments: str, stdin: bytes = b"") -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        find_images(arguments, io.BytesIO(stdin))
    return error.value.messages


ALL = ["photos/a.PNG", "photos/b.jpg", "photos/deep/1.jpg", "photos/deep/er/2.jpg", "photos/deep/er/3.png"]


def test_find_images_folder_order(workdir: Path) -> None:
    assert find("photos") == ALL
    assert find(f"{workdir}/photos/deep/") == [
        f"{workdir}/photos/deep/{name}" for name in ("1.jpg", "er/2.jpg", "er/3.png")
    ]
    assert find("photos/deep", "photos/b.jpg", "photos/deep/er") == [*ALL[2:], "photos/b.jpg", *ALL[3:]]


def test_find_images_follows_links_without_cycles(workdir: Path) -> None:
    (workdir / "photos/deep/er/loop").symlink_to(workdir / "photos")
    (workdir / "photos/deep/nowhere.jpg").symlink_to(workdir / "gone.jpg")
    (workdir / "elsewhere").mkdir()
    (workdir / "elsewhere/5.jpg").touch()
    (workdir / "photos/linked").symlink_to(workdir / "elsewhere")
    os.mkfifo(workdir / "photos/pipe.jpg")
    assert find("photos") == [*ALL[:3], "photos/deep/nowhere.jpg", *ALL[3:], "photos/linked/5.jpg"]


def test_find_images_glob_pattern(workdir: Path) -> None:
    assert find("photos/**/*.jpg") == [path for path in ALL if path.endswith(".jpg")]
    assert find("photos/*") == ALL[:2]
    assert find("photos/**") == ALL
    assert find("photos/**/er/**/?.[pj][np]g") == ALL[3:]
    assert find("*/*/*.jpg") == ["photos/deep/1.jpg"]
    assert find(f"{workdir}/photos/*.jpg") == [f"{workdir}/photos/b.jpg"]


def test_find_images_explicit_file(workdir: Path) -> None:
    (workdir / "[1]*.jpg").touch()
    assert find("[1]*.jpg", "photos/a.txt", "gone.jpg", "./photos/b.jpg") == [
        "[1]*.jpg",
        "photos/a.txt",
        "gone.jpg",
        "./photos/b.jpg",
    ]


def test_find_images_list_separators(workdir: Path) -> None:
    assert find("-", stdin=b"b.jpg\n\n a b.jpg\nphotos\n*.jpg") == ["b.jpg", " a b.jpg", "photos", "*.jpg"]
    assert find("-", stdin=b"\xef\xbb\xbfa.jpg\r\n\r\nb.jpg\r\n") == ["a.jpg", "b.jpg"]  # as Windows writes it
    assert find("-", stdin=b"line\nbreak.jpg\0\xff.jpg\0") == ["line\nbreak.jpg", "\udcff.jpg"]
    many = [f"{number:06}.jpg" for number in range(20_000)]
    assert find("photos/b.jpg", "-", "photos/deep/er", stdin="\n".join(many).encode()) == [
        "photos/b.jpg",
        *many,
        *ALL[3:],
    ]


def test_find_images_list_is_lazy() -> None:
    stdin = io.BytesIO(b"a.jpg\n" * 1_000_000)
    input_paths = find_images(["-"], stdin)
    assert [next(input_paths.paths) for _ in range(5)] == ["a.jpg"] * 5
    assert stdin.tell() < 1_000_000


def test_find_images_reports_all_errors(
    workdir: Path, unreadable: Callable[[Path], AbstractContextManager[None]]
) -> None:
    (workdir / "empty/.x").mkdir(parents=True)
    (workdir / "secret").mkdir()
    workdir.chmod(0o755)  # so that an unprivileged user reaches secret
    with unreadable(workdir / "secret"):
        assert errors_of("empty", "photos/*.gif", "nothing/**/*.jpg", "secret", "photos") == (
            "empty: contains no image; give a folder with images",
            "photos/*.gif: matches no image; fix the pattern (** matches any number of folders)",
            "nothing/**/*.jpg: matches no image; fix the pattern (** matches any number of folders)",
            "secret: cannot be read (Permission denied); check its permissions",
        )
    assert errors_of() == (
        "predict: no image is given; name files, folders or patterns, or - for a list on standard input",
    )
    assert errors_of("-", "-") == ("-: occurs twice, but standard input can be read only once; give it once",)
    assert errors_of("-", stdin=b"\n\n") == (
        "-: standard input has no paths; write one path per line, as `find photos -name '*.jpg'` does",
    )
