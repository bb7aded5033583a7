"""The registry is right: the publishers' addresses and digests, as torchvision has them, and the names of recipes."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import typing
from pathlib import Path

from torchvision import datasets

from ftcli.data.fetching import labels
from ftcli.data.fetching.registry import DATA_SETS, Installed
from ftcli.recipe.datasets import NAMES
from ftcli.recipe.schema import Data
from tests.conftest import Ftcli


def list_files(name: str) -> list[tuple[str, str]]:
    return [(remote.url, remote.digest.removeprefix("md5:")) for remote in DATA_SETS[name].files]


def test_recipes_commands_and_the_registry_know_the_same_names(ftcli: Ftcli) -> None:
    assert tuple(DATA_SETS) == NAMES == tuple(sorted(NAMES))
    in_recipes, nothing = typing.get_args(Data.model_fields["fetch"].annotation)
    assert (typing.get_args(in_recipes), nothing) == (NAMES, type(None))
    told = " ".join(ftcli("data", "fetch", "--help").out.split()).replace("- ", "-")
    assert f"A known data set: {', '.join(NAMES)}." in told


def test_hotdog_is_the_archive_of_dive_into_deep_learning() -> None:
    (archive,) = DATA_SETS["hotdog"].files
    assert archive.url == "http://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip"
    assert archive.digest == "sha1:fba480ffa8aa7e0febbb511d181409f899b9baa5"


def test_mnist_and_its_kin_are_those_of_torchvision() -> None:
    for name, kind in (
        ("mnist", datasets.MNIST),
        ("kmnist", datasets.KMNIST),
        ("fashion-mnist", datasets.FashionMNIST),
    ):
        assert list_files(name) == [(kind.mirrors[0] + file, md5) for file, md5 in kind.resources]
    assert [f"{digit} - " for digit in labels.DIGITS] == [label[:4] for label in datasets.MNIST.classes]
    assert list(labels.KUZUSHIJI) == datasets.KMNIST.classes
    assert list(labels.CLOTHES) == [label.replace("/", "-") for label in datasets.FashionMNIST.classes]


def test_photographs_are_those_of_torchvision() -> None:
    flowers = datasets.Flowers102
    assert list_files("flowers102") == [
        (flowers._download_url_prefix + name, md5) for name, md5 in flowers._file_dict.values()
    ]
    assert list(labels.FLOWERS) == [name.replace("?", "") for name in flowers.classes]
    assert list_files("oxford-pets") == list(datasets.OxfordIIITPet._RESOURCES)
    assert list_files("food101") == [(datasets.Food101._URL, datasets.Food101._MD5)]
    assert list_files("dtd") == [(datasets.DTD._URL, datasets.DTD._MD5)]
    assert list_files("imagenette") == [datasets.Imagenette._ARCHIVES["320px"]]
    assert {number: names[0] for number, names in datasets.Imagenette._WNID_TO_CLASS.items()} == labels.WORDNET
    ((url, md5),) = list_files("eurosat")
    source = inspect.getsource(datasets.EuroSAT.download)
    assert f'"{url}"' in source
    assert f'"{md5}"' in source


def test_cifar_is_the_binary_version_of_the_same_publisher() -> None:
    """Its digests are those of the publisher's page; torchvision takes the pickled version."""
    for name, kind, md5 in (
        ("cifar10", datasets.CIFAR10, "c32a1d4ab5d03f1284b67883e8d87530"),
        ("cifar100", datasets.CIFAR100, "03b5dce01913d631647c71ecec9e9cb8"),
    ):
        assert list_files(name) == [(kind.url.replace("python", "binary"), md5)]


def test_each_tells_its_source_whom_to_cite_and_the_licence() -> None:
    for known in DATA_SETS.values():
        for part in ("\nSource: ", "\nCite: ", "\nLicence: "):
            assert part in known.source
        assert max(map(len, known.source.splitlines())) <= 120


def test_a_file_of_a_system_package_is_known_by_what_is_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"inside", 1))
    installed = Installed(path, "6aea6e0d9d7ab1d1d1e0e8b7d3f2c0f3")
    assert not installed.is_right()
    right = Installed(path, hashlib.md5(b"inside").hexdigest())
    assert right.is_right()
    path.write_bytes(gzip.compress(b"inside", 9))
    assert right.is_right()
    path.write_bytes(gzip.compress(b"inside")[:-9])
    assert not right.is_right()
    path.write_bytes(b"no gzip")
    assert not right.is_right()
