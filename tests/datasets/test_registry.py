from __future__ import annotations

import gzip
import hashlib
import inspect
import typing
from pathlib import Path

from torchvision import datasets

from ftcli.datasets.citations import CITATIONS
from ftcli.datasets.registry import DATASETS, InstalledFile
from ftcli.recipe.dataset_names import DATASET_NAMES
from ftcli.recipe.schema import Data
from tests.conftest import Ftcli


def list_files(name: str) -> list[tuple[str, str]]:
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
        assert list_files(name) == [(kind.mirrors[0] + file, md5) for file, md5 in kind.resources]


def test_registry_photos_match_torchvision() -> None:
    flowers = datasets.Flowers102
    assert list_files("flowers102") == [
        (flowers._download_url_prefix + name, md5) for name, md5 in flowers._file_dict.values()
    ]
    assert list_files("oxford-pets") == list(datasets.OxfordIIITPet._RESOURCES)
    assert list_files("food101") == [(datasets.Food101._URL, datasets.Food101._MD5)]
    assert list_files("dtd") == [(datasets.DTD._URL, datasets.DTD._MD5)]
    assert list_files("imagenette") == [datasets.Imagenette._ARCHIVES["320px"]]
    ((url, md5),) = list_files("eurosat")
    source = inspect.getsource(datasets.EuroSAT.download)
    assert f'"{url}"' in source
    assert f'"{md5}"' in source


def test_registry_cifar_binary_version() -> None:
    """The digests are those on the publisher's page; torchvision uses the version in pickles."""
    for name, kind, md5 in (
        ("cifar10", datasets.CIFAR10, "c32a1d4ab5d03f1284b67883e8d87530"),
        ("cifar100", datasets.CIFAR100, "03b5dce01913d631647c71ecec9e9cb8"),
    ):
        assert list_files(name) == [(kind.url.replace("python", "binary"), md5)]


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
