from __future__ import annotations

import gzip
import hashlib
import inspect
import os
import signal
import subprocess
import sys
import time
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from ftcli.datasets import download_dataset
from ftcli.datasets.citations import CITATIONS
from ftcli.datasets.registry import DATASETS, InstalledFile, RemoteFile
from ftcli.errors import DataError, RunError
from ftcli.recipe.dataset_names import DATASET_NAMES
from ftcli.recipe.schema import Data
from ftcli.results import NullReporter
from tests.conftest import Ftcli, LibraryLog
from tests.datasets.conftest import RecordingReporter, Serve, list_files, pack_idx, pack_tar, pack_zip
from tests.server import Response, Server


def list_remote_files(name: str) -> list[tuple[str, str]]:
    return [(remote.url, remote.digest.removeprefix("md5:")) for remote in DATASETS[name].files]


def test_registry_matches_recipe_and_command_names(ftcli: Ftcli) -> None:
    assert tuple(DATASETS) == DATASET_NAMES == tuple(sorted(DATASET_NAMES))
    in_recipes, nothing = typing.get_args(Data.model_fields["download"].annotation)
    assert (typing.get_args(in_recipes), nothing) == (DATASET_NAMES, type(None))
    help_text = " ".join(ftcli("data", "download", "--help").out.split()).replace("- ", "-")
    assert f"Name of a known data set: {', '.join(DATASET_NAMES)}." in help_text


def test_registry_hotdog_archive() -> None:
    (archive,) = DATASETS["hotdog"].files
    assert archive.url == "http://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip"
    assert archive.digest == "sha1:fba480ffa8aa7e0febbb511d181409f899b9baa5"


def test_registry_mnist_matches_torchvision() -> None:
    for name, kind in (
        ("mnist", datasets.MNIST),
        ("kmnist", datasets.KMNIST),
        ("fashion-mnist", datasets.FashionMNIST),
    ):
        assert list_remote_files(name) == [(kind.mirrors[0] + file, md5) for file, md5 in kind.resources]


def test_registry_photos_match_torchvision() -> None:
    flowers = datasets.Flowers102
    assert list_remote_files("flowers102") == [
        (flowers._download_url_prefix + name, md5) for name, md5 in flowers._file_dict.values()
    ]
    assert list_remote_files("oxford-pets") == list(datasets.OxfordIIITPet._RESOURCES)
    assert list_remote_files("food101") == [(datasets.Food101._URL, datasets.Food101._MD5)]
    assert list_remote_files("dtd") == [(datasets.DTD._URL, datasets.DTD._MD5)]
    assert list_remote_files("imagenette") == [datasets.Imagenette._ARCHIVES["320px"]]
    ((url, md5),) = list_remote_files("eurosat")
    source = inspect.getsource(datasets.EuroSAT.download)
    assert f'"{url}"' in source
    assert f'"{md5}"' in source


def test_registry_cifar_binary_version() -> None:
    """The digests are those on the publisher's page; torchvision uses the version in pickles."""
    for name, kind, md5 in (
        ("cifar10", datasets.CIFAR10, "c32a1d4ab5d03f1284b67883e8d87530"),
        ("cifar100", datasets.CIFAR100, "03b5dce01913d631647c71ecec9e9cb8"),
    ):
        assert list_remote_files(name) == [(kind.url.replace("python", "binary"), md5)]


def test_registry_citations_complete() -> None:
    assert CITATIONS.keys() == DATASETS.keys()
    for citation in CITATIONS.values():
        for part in ("\nSource: ", "\nCite: ", "\nLicence: "):
            assert part in citation
        assert max(map(len, citation.splitlines())) <= 120


def test_installed_file_is_valid_by_content(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"inside", 1))
    installed = InstalledFile(path, "6aea6e0d9d7ab1d1d1e0e8b7d3f2c0f3")
    assert not installed.is_valid()
    installed_file = InstalledFile(path, hashlib.md5(b"inside").hexdigest())
    assert installed_file.is_valid()
    path.write_bytes(gzip.compress(b"inside", 9))
    assert installed_file.is_valid()
    path.write_bytes(gzip.compress(b"inside")[:-9])
    assert not installed_file.is_valid()
    path.write_bytes(b"no gzip")
    assert not installed_file.is_valid()


def test_download_dataset_unknown_name() -> None:
    with pytest.raises(DataError) as error:
        download_dataset("solar", Path("nowhere"), NullReporter())
    assert str(error.value) == "download: unknown data set 'solar'; did you mean 'solar-cells'?"


def test_download_dataset_root_not_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(DataError) as error:
            download_dataset("solar-cells", tmp_path / name, NullReporter())
        assert str(error.value) == (
            f"download: solar-cells: {tmp_path}/{name} exists and is not empty; remove it, or give another folder"
        )
    assert (tmp_path / "full/mine.txt").read_text() == "mine"


def test_download_dataset_interrupt_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "solar").mkdir()
    with pytest.raises(KeyboardInterrupt):
        download_dataset("solar-cells", tmp_path / "solar", RecordingReporter(stop_at=30))
    assert [path.name for path in tmp_path.rglob("*")] == ["solar"]


def test_download_dataset_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as error:
        download_dataset("solar-cells", tmp_path / "file/solar", NullReporter())
    assert str(error.value) == (
        f"download: solar-cells: {tmp_path}/file/solar cannot be created (Not a directory); free disk space, or give "
        "another folder"
    )


@pytest.mark.slow
def test_download_dataset_removes_leftovers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ftcli", "data", "download", "solar-cells", "--out", str(tmp_path / "solar")]
    with subprocess.Popen(command) as process:
        left = tmp_path / f".solar.{process.pid}.unfinished"
        while not (left / "train").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert left.exists()
    others = [f".solar.{os.getppid()}.unfinished", f".other.{process.pid}.unfinished", ".solar.x.unfinished"]
    for name in others:
        (tmp_path / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        download_dataset("solar-cells", tmp_path / "solar", RecordingReporter(stop_at=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.slow
def test_download_dataset_sigterm_keeps_partial_download(tmp_path: Path, server: Server, ftcli: Ftcli) -> None:
    """The published address is reached through a proxy, which sends a part of the archive and then waits."""
    url = server.serve(DATASETS["hotdog"].files[0].url, Response(bytes(3_000_000), cut_after=2_000_000, delay=60))
    environment = {**os.environ, "http_proxy": server.address}
    command = [sys.executable, "-m", "ftcli", "data", "download", "hotdog", "--out", str(tmp_path / "data/hotdog")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        part = tmp_path / "cache/downloads/fba480ffa8aa7e0f-hotdog.zip.part"
        while not part.exists() or part.stat().st_size < 2_000_000:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.stderr is not None
        output = process.stderr.read().splitlines()
    assert process.returncode == 143
    assert output == [
        f"downloading {url} to {str(part).removesuffix('.part')}",
        "error: terminated; the last saved files are complete",
    ]
    assert part.stat().st_size == 2_000_000
    assert not (tmp_path / "data").exists()


def test_download_dataset_archive_errors_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ftcli: Ftcli,
    serve_set: Serve,
    server: Server,
    jpegs: tuple[bytes, ...],
) -> None:
    monkeypatch.chdir(tmp_path)

    def download_error(*contents: bytes) -> str:
        serve_set("oxford-pets", *contents)
        outcome = ftcli("data", "download", "oxford-pets")
        assert outcome.code == 3
        assert not list(tmp_path.glob("data/*"))
        assert not list(tmp_path.glob("data/.*"))
        (output,) = outcome.errors
        return output

    images, lists = (
        pack_tar({"images/a_1.jpg": jpegs[0]}),
        pack_tar({"annotations/trainval.txt": b"a_1 1 1 1\nb_2 2 1 1\n"}),
    )
    cache = tmp_path / "cache/downloads"
    paths = [
        cache / f"{hashlib.sha256(content).hexdigest()[:16]}-{name}.tar.gz"
        for content, name in ((images, "images"), (lists, "annotations"))
    ]
    assert download_error(images, lists) == (
        f"download: oxford-pets: annotations/test.txt is missing from {paths[0]} and {paths[1]}; report it to the "
        "publisher"
    )
    both = pack_tar({"annotations/trainval.txt": b"a_1 1 1 1\nb_2 2 1 1\n", "annotations/test.txt": b"a_1 1 1 1\n"})
    assert "download: oxford-pets: images/b_2.jpg is missing from " in download_error(images, both)
    assert "is corrupt at member 'images/a_1.jpg' (" in download_error(images[:-40], lists)
    assert "contains '../evil', which is outside its folder, and is not used" in download_error(
        pack_tar({"../evil": b"x"}), lists
    )
    url = serve_set("oxford-pets", images, lists)[0]
    server.serve("/oxford-pets/images.tar.gz", lists)
    paths[0].unlink()
    outcome = ftcli("data", "download", "oxford-pets")
    wanted, found = (hashlib.sha256(content).hexdigest() for content in (images, lists))
    assert outcome.errors == [
        f"download: oxford-pets: the download from {url} is not the expected file (expected SHA-256 "
        f"{wanted}, found {found}); try again, or on another network"
    ]
    assert outcome.code == 3


def test_download_dataset_offline_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftcli: Ftcli, server: Server
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTCLI_OFFLINE", "1")
    outcome = ftcli("data", "download", "hotdog")
    assert outcome.code == 3
    assert outcome.errors == [
        "download: hotdog: http://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip is not cached and FTCLI_OFFLINE is "
        f"set; copy the file to {tmp_path}/cache/downloads/fba480ffa8aa7e0f-hotdog.zip, or "
        "unset FTCLI_OFFLINE"
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.covers("data.download")
def test_download_dataset_reuses_archive(
    work_dir: Path, ftcli: Ftcli, serve_set: Serve, server: Server, jpegs: tuple[bytes, ...]
) -> None:
    members = {f"2750/{'Forest' if n % 2 else 'River'}/{n}.jpg": image for n, image in enumerate(jpegs)}
    serve_set("eurosat", pack_zip(members))
    for folder in ("one", "two"):
        assert ftcli("data", "download", "eurosat", "--out", folder).code == 0
    settings = ["data.root=deep/three", "data.download=eurosat", "stages.head.epochs=1", "stages.all.epochs=1"]
    outcome = ftcli("train", "r.yaml", *(f"--set={setting}" for setting in settings), "--json")
    assert outcome.code == 0, outcome.err
    for folder in ("one", "two", "deep/three"):
        assert list_files(work_dir / folder) == {name.removeprefix("2750/"): image for name, image in members.items()}
    assert server.count() == 1


def test_download_dataset_uses_installed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, log: LibraryLog
) -> None:
    pixels = np.arange(4 * 28 * 28).astype(np.uint8).reshape(4, 28, 28)
    labels = np.array([3, 4, 3, 4], dtype=np.uint8)
    contents = [pack_idx(pixels), pack_idx(labels), pack_idx(pixels), pack_idx(labels)]
    files = []
    for remote, content in zip(DATASETS["fashion-mnist"].files, contents, strict=True):
        path = tmp_path / remote.name
        path.write_bytes(content)
        inside = hashlib.md5(gzip.decompress(content)).hexdigest()
        url = server.serve(f"/{remote.name}", content)
        files.append(RemoteFile(url, f"md5:{hashlib.md5(content).hexdigest()}", InstalledFile(path, inside)))
    known = replace(DATASETS["fashion-mnist"], files=tuple(files))
    monkeypatch.setitem(DATASETS, "fashion-mnist", known)
    assert download_dataset("fashion-mnist", tmp_path / "one", NullReporter()).images == 8
    assert server.count() == 0
    labels_name = DATASETS["fashion-mnist"].files[1].name
    (tmp_path / labels_name).write_bytes(contents[0])
    assert download_dataset("fashion-mnist", tmp_path / "two", NullReporter()).splits["test"] == {"Coat": 2, "Dress": 2}
    assert log.warnings == [
        f"download: fashion-mnist: {tmp_path}/{labels_name} differs from the published file and is ignored"
    ]
    assert [seen.path for seen in server.requests] == [f"/{labels_name}"]
