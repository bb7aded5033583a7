"""Shared fixtures: the command line and small folders of photographs."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as cli.py does, before torch is imported

import contextlib
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftcli import cli
from ftcli.datasets import download_dataset
from ftcli.results import NullReporter, Progress
from tests.server import Server, run_server

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]


Ftcli = Callable[..., CommandResult]


class RecordingReporter(NullReporter):
    """A reporter that records progress."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def update_progress(self, progress: Progress) -> None:
        self.progress.append(progress)


@dataclass(frozen=True)
class LibraryLog:
    """The messages and warnings that the library has logged in a test."""

    caplog: pytest.LogCaptureFixture

    @property
    def messages(self) -> list[str]:
        return self._list(logging.INFO)

    @property
    def warnings(self) -> list[str]:
        return self._list(logging.WARNING)

    def _list(self, level: int) -> list[str]:
        records = self.caplog.records
        return [
            record.getMessage() for record in records if (record.name.split(".")[0], record.levelno) == ("ftcli", level)
        ]


def read_npz(path: str | Path) -> dict[str, Any]:
    """Return the arrays of an .npz file by name, and close it, since open files fail later tests."""
    with np.load(path) as arrays:
        return dict(arrays)


def pytest_configure() -> None:
    """Set the garbage collection of the command line, and restore SIGINT for child processes.

    SIGINT is ignored, and child processes inherit that, if a shell runs pytest in the background.
    """
    gc.set_threshold(50_000)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set a cache directory that all tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTCLI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> LibraryLog:
    """Record what the library logs. Commands print it instead."""
    caplog.set_level(logging.INFO, "ftcli")
    return LibraryLog(caplog)


@pytest.fixture
def ftcli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ftcli:
    """Return a function that runs the command line in this process."""

    def run(*arguments: str | Path) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["ftcli", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            cli.main()
        captured = capfd.readouterr()
        code = exited.value.code
        return CommandResult(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    return run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Run a local HTTP server; downloads are retried at once and cached in tmp_path/cache."""
    for name in ("FTCLI_OFFLINE", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ftcli.downloads.RETRY_DELAYS", (0.0, 0.0, 0.0, 0.0))
    with run_server() as running:
        yield running


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    """Return the two photographs of scikit-learn: a Chinese temple and a flower."""
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    names = [Path(name).stem for name in bunch.filenames]
    return {name: Image.fromarray(image) for name, image in zip(names, bunch.images, strict=True)}


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Image.Image]) -> Path:
    """Create train/ with 20 and test/ with 6 crops of each of two photographs, as JPEG files of 64 x 48 pixels."""
    root = tmp_path_factory.mktemp("photos")
    for name, photo in photographs.items():
        for number in range(26):
            left, top = 20 * number, 13 * number % 340
            folder = root / ("train" if number < 20 else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            photo.crop((left, top, left + 120, top + 80)).resize((64, 48)).save(folder / f"{number}.jpg", quality=90)
    return root


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path) -> Path:
    """Create and enter a folder with `r.yaml`, a recipe for the photographs that trains in a second or two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=photo_folder))
    return tmp_path


@pytest.fixture(scope="session")
def _solar_cells_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cells") / "solar-cells"
    download_dataset("solar-cells", root, NullReporter())
    for image in root.rglob("*.png"):
        if int(image.stem.removeprefix("cell")) % 30:
            image.unlink()
    return root


@pytest.fixture
def solar_cells_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _solar_cells_once: Path) -> Path:
    """Create and enter a folder with the shipped recipes and every 30th solar cell in data/solar-cells."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(_solar_cells_once, tmp_path / "data/solar-cells")
    shutil.copytree(CONFIGS, tmp_path / "configs")
    return tmp_path


@pytest.fixture(scope="session")
def _photos_run_once(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "r.yaml").write_text(RECIPE.format(root=photo_folder))
    _train(folder)
    return folder


@pytest.fixture
def work_dir_with_run(work_dir: Path, _photos_run_once: Path) -> Path:
    """Return the work_dir after `ftcli train r.yaml`, with the run in runs/photos."""
    shutil.copytree(_photos_run_once, work_dir, dirs_exist_ok=True)
    return work_dir


@pytest.fixture(scope="session")
def unicode_run(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Image.Image]) -> Path:
    """Create a folder with a finished run of one stage, whose classes and files have names in many scripts."""
    folder = tmp_path_factory.mktemp("many scripts 多")
    photo = photographs["china"]
    for label, name in enumerate(UNICODE_CLASS_NAMES):
        for number in range(14):
            class_dir = folder / "data" / ("train" if number < 10 else "test") / name
            class_dir.mkdir(parents=True, exist_ok=True)
            left, top = 50 * label + 20 * number, 13 * number
            photo.crop((left, top, left + 120, top + 80)).resize((64, 48)).save(class_dir / f"图 {number} 'x' 🙂.jpg")
    text = RECIPE.format(root="data")
    (folder / "r.yaml").write_text(text[: text.index("  - name: all")] + "precision: float32\n")
    _train(folder)
    return folder


def _train(folder: Path) -> None:
    """Run `ftcli train r.yaml` in a folder, in this process."""
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ftcli", "train", "r.yaml"])
        with pytest.raises(SystemExit) as exited:
            cli.main()
    assert exited.value.code in (0, None)


UNICODE_CLASS_NAMES = ("bird's nest", "ünïcode “quoted”", "قطة", "狗 (柴犬)", "🐶 puppy")
"""Class names in many scripts."""

RECIPE = """\
name: photos
data:
  root: {root}
  val: 0.2
  image_size: 32
  augment: standard
  batch_size: 8
  num_workers: 0
backbone: {{name: shufflenet_v2_x0_5, weights: none}}
head: {{hidden: [16], dropout: 0.5}}
stages:
  - name: head
    freeze: backbone
    epochs: 2
    optimizer: {{name: sgd, lr: 0.05}}
  - name: all
    freeze: none
    epochs: 2
    optimizer: {{name: adamw, lr: 1e-3, weight_decay: 0.01}}
    schedule: one_cycle
    lr_mult: {{head: 10}}
precision: float32
"""
