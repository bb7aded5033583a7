"""Tests of the data of a stage: caching features and decoded images changes no result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from ftcli.data.transforms import build_eval_transform, build_train_transform
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.features.pipeline import ForwardFn
from ftcli.recipe.schema import AdamW, Stage
from ftcli.results import EpochMetrics, Preprocessing
from ftcli.runs.checkpoint import read_checkpoint
from ftcli.training.stage_data import count_views
from tests.conftest import Ftcli

HEAD_STAGE_ARGS = ("--stage", "head")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an initially empty cache folder."""
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read_rows(folder: Path, stage: str = "head") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def assert_same_weights(folder: Path, *runs: str) -> None:
    """Assert that the last checkpoints of runs have bit-identical weights."""
    first, *others = (read_checkpoint(folder / run / "last.pt").state for run in runs)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(weight, other[name]) for name, weight in first.items())


@pytest.mark.covers("stages.cache", "stages.cache.views")
def test_cache_with_one_view_per_epoch_matches_uncached_training(work_dir: Path, ftcli: Ftcli) -> None:
    for name, setting in (("off", "off"), ("all", "{views: all}"), ("two", "{views: 2}"), ("one", "{views: 1}")):
        outcome = ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, "--set", f"stages.head.cache={setting}", "--out", name)
        assert outcome.code == 0, outcome.err
    losses = {name: [row["train_loss"] for row in read_rows(work_dir / name)[1:]] for name in ("off", "all", "one")}
    assert losses["all"] == pytest.approx(losses["off"], rel=1e-4)
    assert losses["one"][0] == losses["all"][0]  # the first view does not depend on the number of views
    assert losses["one"][1] != losses["all"][1]
    assert_same_weights(work_dir, "two", "all")


def test_cache_off_writes_nothing(work_dir: Path, cache: Path, ftcli: Ftcli) -> None:
    assert ftcli("train", "r.yaml", "--set", "stages.head.cache=false", "--set", "stages.all.cache=off").code == 0
    assert not list(cache.glob("*/*/*.sqlite"))


def test_second_run_reads_cache_and_gives_same_weights(
    work_dir: Path, cache: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, "--out", "first")
    assert (
        "Stage head: the frozen backbone, up to mean, is computed once for 2 views of 30 images and 10 for validation"
        in (first.err)
    )
    rehashed = ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, "--out", "again", "--rehash")
    assert rehashed.code == 0
    for path in cache.glob("*/*/*.sqlite"):
        path.unlink()
    assert ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, "--out", "rebuilt").code == 0
    assert "Stage head: all features are read from the cache" in rehashed.err.splitlines()
    assert_same_weights(work_dir, "first", "again", "rebuilt")


def test_cache_recomputes_changed_images(work_dir: Path, photo_folder: Path, cache: Path, ftcli: Ftcli) -> None:
    shutil.copytree(photo_folder, work_dir / "own")
    plain = (*HEAD_STAGE_ARGS, "--set", "data.root=own", "--set", "data.augment=none")
    assert ftcli("train", "r.yaml", *plain, "--out", "before").code == 0
    for image in (work_dir / "own/train").rglob("*.jpg"):
        Image.open(image).rotate(180).save(image, quality=95)
    assert ftcli("train", "r.yaml", *plain, "--out", "after").code == 0
    for path in cache.glob("*/*/*.sqlite"):
        path.unlink()
    assert ftcli("train", "r.yaml", *plain, "--out", "fresh").code == 0
    before, after, fresh = (read_rows(work_dir / name) for name in ("before", "after", "fresh"))
    assert [row["train_loss"] for row in after] == [row["train_loss"] for row in fresh]
    assert [row["train_loss"] for row in after] != [row["train_loss"] for row in before]


def test_cache_over_limit_gives_same_weights(
    work_dir: Path, cache: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ftcli("train", "r.yaml", "--out", "cached").code == 0
    shutil.rmtree(cache)
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "100 kB")
    outcome = ftcli("train", "r.yaml", "--out", "uncached", "--json")
    assert outcome.code == 0
    assert (
        "Stage head: the frozen backbone is computed in every epoch because its features, 0.3 MB, exceed the free disk "
        "space or the cache limit of 0.1 MB"
    ) in outcome.err.splitlines()
    assert_same_weights(work_dir, "cached", "uncached")
    for stage in ("head", "all"):
        cached, uncached = (
            [{key: row[key] for key in ("train_loss", "val_loss", "val_accuracy")} for row in read_rows(run, stage)]
            for run in (work_dir / "cached", work_dir / "uncached")
        )
        assert cached == uncached
    progresses = [read_checkpoint(work_dir / run / "last.pt").progress for run in ("cached", "uncached")]
    assert len({(end or {})["test"]["loss"] for end in progresses}) == 1
    assert outcome.json["stages"][0]["times"]["frozen"] > 0


@pytest.mark.parametrize("freeze", ["backbone", "{through: layer3}"])
def test_uncached_features_use_same_views_and_weights(
    work_dir: Path, cache: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, freeze: str
) -> None:
    settings = ("backbone.name=resnet18", "data.image_size=64", "stages.head.epochs=3", f"stages.head.freeze={freeze}")
    arguments = ("train", "r.yaml", *HEAD_STAGE_ARGS, *(part for setting in settings for part in ("--set", setting)))
    for name, views in (("cached", "{views: 1}"), ("all", "{views: all}"), ("off", "off")):
        assert ftcli(*arguments, "--set", f"stages.head.cache={views}", "--out", name).code == 0
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "0")
    assert ftcli(*arguments, "--set", "stages.head.cache={views: 1}", "--out", "uncached").code == 0
    losses = {
        name: [(row["train_loss"], row["val_loss"]) for row in read_rows(work_dir / name)]
        for name in ("cached", "all", "off", "uncached")
    }
    assert losses["uncached"] == losses["cached"]
    assert_same_weights(work_dir, "cached", "uncached")
    # The network is sensitive to other views and to unfolded BatchNorms, otherwise the test would be too weak.
    assert losses["all"] != losses["cached"]
    assert losses["off"][:2] != losses["cached"][:2]


@pytest.mark.parametrize(("forward_seconds", "is_cached"), [(1.0, True), (1e-9, False)])
def test_boundary_inside_backbone_is_cached_only_if_faster(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, forward_seconds: float, is_cached: bool
) -> None:
    change = ("--set", "stages.head.freeze={through: stage3}", "--set", "stages.head.epochs=3")
    assert ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, *change, "--out", "small").code == 0
    monkeypatch.setattr("ftcli.training.stage_data.ALWAYS_CACHE_BYTES", 1000)
    monkeypatch.setattr(FrozenBackbone, "measure_seconds_per_image", lambda _self: forward_seconds)
    outcome = ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, *change, "--out", "measured")
    assert outcome.code == 0, outcome.err
    messages = [line for line in outcome.err.splitlines() if line.startswith("Stage head: the frozen backbone")]
    assert len(messages) == 1
    assert ("is computed once for 3 views of 30 images" in messages[0]) is is_cached
    assert ("is computed in every epoch, about 1 s, because caching" in messages[0]) is not is_cached
    assert_same_weights(work_dir, "small", "measured")


def test_count_views_without_randomness_is_one() -> None:
    stage = Stage(name="head", freeze="backbone", epochs=10, optimizer=AdamW(name="adamw", lr=1e-3))
    preprocessing = Preprocessing.from_dict(
        {"mean": (0.5,) * 3, "std": (0.5,) * 3, "image_size": 32, "resize_size": 32, "resize": "crop",
         "interpolation": "bilinear"}
    )  # fmt: skip
    assert count_views(stage, build_train_transform(preprocessing, "standard")) == 4
    assert count_views(stage, build_train_transform(preprocessing, "none")) == 1
    assert count_views(stage, build_eval_transform(preprocessing)) == 1


def test_delayed_checkpoints_survive_kill_bit_for_bit(
    work_dir: Path, training: Callable[..., int], kill_by: Callable[..., Any]
) -> None:
    kill = kill_by("SIGKILL", "log_epoch", "head", 2)
    assert training(work_dir, "train", "r.yaml", "--out", "run", kill=kill, save_interval_factor=1e6) == -9
    assert sorted(path.name for path in (work_dir / "run").glob("*.pt")) == []
    assert (
        training(work_dir, "train", "r.yaml", "--out", "run", save_interval_factor=1e6) == 0
    )  # the folder was still free
    assert training(work_dir, "train", "r.yaml", "--out", "each", save_interval_factor=0) == 0
    for name in ("best_loss.pt", "stages/head.pt", "stages/all.pt"):
        one, other = (read_checkpoint(work_dir / run / name) for run in ("run", "each"))
        assert (one.epoch, one.metrics) == (other.epoch, other.metrics)
        assert all(torch.equal(one.state[key], other.state[key]) for key in one.state)


def test_batch_transforms_on_device_give_same_weights(
    work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = (*HEAD_STAGE_ARGS, "--set", "stages.head.cache=off", "--set", "data.augment=strong", "--out")
    assert ftcli("train", "r.yaml", *change, "here").code == 0
    monkeypatch.setattr("ftcli.training.setup.defers_to_device", lambda _device: True)
    assert ftcli("train", "r.yaml", *change, "there").code == 0
    assert_same_weights(work_dir, "here", "there")
    assert read_rows(work_dir / "here")[1]["train_loss"] == read_rows(work_dir / "there")[1]["train_loss"]


def test_pixel_cache_gives_same_weights(work_dir: Path, cache: Path, ftcli: Ftcli) -> None:
    change = ("--set", "stages=[{name: all, freeze: none, epochs: 2, optimizer: {name: sgd, lr: 0.01}, cache: CACHE}]")
    for name in ("off", "on"):
        setting = [word.replace("CACHE", name) for word in change]
        assert ftcli("train", "r.yaml", *setting, "--out", name).code == 0
        assert bool(list(cache.glob("pixels/*/*.sqlite"))) is (name == "on")
    assert_same_weights(work_dir, "on", "off")


def test_cache_in_use_by_earlier_stage_falls_back_to_uncached(
    work_dir: Path, cache: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--set", "stages.all.freeze=[conv1, stage2]", "--set", "stages.head.cache={views: all}")
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "350kB")  # one stage fits, two do not
    outcome = ftcli("train", "r.yaml", *settings, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert (
        "all: feature extraction, train: the features do not fit in the cache and are computed in each pass"
        in outcome.err.splitlines()
    )


@pytest.mark.parametrize("is_cached_first", [True, False])
def test_resumed_stage_gives_same_weights_if_cache_choice_changes(
    work_dir: Path, cache: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, is_cached_first: bool
) -> None:
    monkeypatch.setattr("ftcli.training.stage_data.ALWAYS_CACHE_BYTES", 0)
    monkeypatch.setattr(
        "ftcli.training.stage_data.estimate_cache_seconds", lambda *_: (2.0, 1.0) if is_cached_first else (1.0, 2.0)
    )
    arguments = ("train", "r.yaml", *HEAD_STAGE_ARGS, "--set", "stages.head.cache={views: 1}")
    assert ftcli(*arguments, "--out", "uninterrupted").code == 0

    def interrupt(_self: Any, row: EpochMetrics, _epochs: int, _best: bool) -> None:
        if row.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("ftcli.console.TerminalReporter.log_epoch", interrupt)
        assert ftcli(*arguments, "--out", "stopped").code == 130
    monkeypatch.setattr(
        "ftcli.training.stage_data.estimate_cache_seconds", lambda *_: (1.0, 2.0) if is_cached_first else (2.0, 1.0)
    )
    assert ftcli("train", "--resume", "stopped/last.pt").code == 0
    assert_same_weights(work_dir, "uninterrupted", "stopped")


def test_error_in_epoch_saves_pending_best_checkpoints(
    work_dir: Path, cache: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftcli.training.checkpointing.SAVE_INTERVAL_FACTOR", 1e6)
    monkeypatch.setattr("ftcli.caching.store.MEMORY_BYTES", 0)

    def truncate_cache(_self: Any, row: EpochMetrics, _epochs: int, _best: bool) -> None:
        if row.epoch == 1:
            for path in cache.glob("*/*/*.sqlite"):
                os.truncate(path, 0)

    with monkeypatch.context() as patch:
        patch.setattr("ftcli.console.TerminalReporter.log_epoch", truncate_cache)
        assert ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, "--out", "run").code == 1
    assert [row["epoch"] for row in read_rows(work_dir / "run")] == [0, 1]
    resumed = ftcli("train", "--resume", "run/last.pt")
    assert resumed.code == 0, resumed.err
    assert ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, "--out", "uninterrupted").code == 0
    assert_same_weights(work_dir, "uninterrupted", "run")


def test_compile_time_is_reported_as_bottleneck(work_dir: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[ForwardFn]()

    def compile_slowly(forward: ForwardFn, *_: object) -> ForwardFn:
        compiled.append(forward)
        return forward

    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 5000.0 * len(compiled))
    monkeypatch.setattr("ftcli.training.profiler.time", clock)
    monkeypatch.setattr("ftcli.training.stage_data.compile_forward", compile_slowly)
    monkeypatch.setattr("ftcli.training.setup.check_compiler", lambda *_: None)
    outcome = ftcli("train", "r.yaml", "--set", "compile=true", "--json")
    assert outcome.code == 0, outcome.err
    for stage in outcome.json["stages"]:  # the features of the first are cached, the second has none
        assert 5000.0 <= stage["times"]["compiling"] < 5060.0
        assert sum(seconds for part, seconds in stage["times"].items() if part != "compiling") < 60.0
    assert outcome.json["bottleneck"].endswith("compiling the steps; train more epochs, or set compile: false")


@pytest.mark.parametrize("num_corrupt", [3, 8, 40])
def test_compile_uses_full_batch_with_corrupt_images(
    work_dir: Path, photo_folder: Path, ftcli: Ftcli, monkeypatch: pytest.MonkeyPatch, num_corrupt: int
) -> None:
    shutil.copytree(photo_folder, work_dir / "own")
    for image in sorted((work_dir / "own/train").rglob("*.jpg"))[:num_corrupt]:
        image.write_bytes(b"")
    shapes = list[int]()

    def record_batch_size(forward: ForwardFn, values: tuple[torch.Tensor, ...], *_: object) -> ForwardFn:
        shapes.append(len(values[0]))
        return forward

    monkeypatch.setattr("ftcli.training.stage_data.compile_forward", record_batch_size)
    monkeypatch.setattr("ftcli.training.setup.check_compiler", lambda *_: None)
    settings = ("compile=true", "data.root=own", "data.batch_size=8", "data.on_corrupt_image=skip")
    outcome = ftcli("train", "r.yaml", *(part for setting in settings for part in ("--set", setting)))
    if num_corrupt == 40:
        assert shapes == []
        assert outcome.errors == [
            "head 0 validation: none of 10 images can be read; the first: own/train/china/0.jpg: is empty (0 "
            "bytes); replace it, remove it, or set data.on_corrupt_image: skip"
        ]
    else:
        assert outcome.code == 0, outcome.err
        assert shapes == [8, 8]


def test_run_without_test_split_writes_all_files(work_dir: Path, photo_folder: Path, ftcli: Ftcli) -> None:
    shutil.copytree(photo_folder / "train", work_dir / "photos/train")
    outcome = ftcli("train", "r.yaml", *HEAD_STAGE_ARGS, "--set", "data.root=photos", "--out", "run", "--json")
    assert outcome.json["test"] is None
    assert len(read_rows(work_dir / "run")) == 3
    files = {str(path.relative_to(work_dir / "run")) for path in (work_dir / "run").rglob("*") if path.is_file()}
    assert files >= {"best_loss.pt", "last.pt", "stages/head.pt", "metrics.jsonl", "curves.png", "run.json"}
    assert ftcli("train", "--resume", "run/last.pt").code == 0  # prints the result again
