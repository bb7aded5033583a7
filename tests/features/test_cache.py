"""Tests of the feature cache: records are identified by everything that determines features, and nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from ftcli.data.batches import Batch
from ftcli.data.images import CorruptImageError
from ftcli.data.loader import ImageLoader, LoaderConfig
from ftcli.data.samples import Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError, StopRequestedError
from ftcli.features import fingerprint
from ftcli.features.cache import CacheFullError, FeatureCache, FeatureRequest
from ftcli.features.frozen_backbone import FrozenBackbone
from ftcli.features.loaders import CachedFeatureLoader
from ftcli.models.cut import ModelCut, cut_model
from ftcli.models.state_dict import hash_tensor
from ftcli.results import NullReporter, Preprocessing, Progress, ProgressTask, Reporter
from ftcli.runtime import RngKey

CPU = torch.device("cpu")
EXPECTED = Preprocessing(16, 20, "crop", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Return a list of the sizes of all batches computed with an initially empty cache."""
    counts: list[int] = []
    original = FrozenBackbone._compute

    def record(backbone: FrozenBackbone, images: torch.Tensor) -> Any:
        counts.append(len(images))
        return original(backbone, images)

    monkeypatch.setattr(FrozenBackbone, "_compute", record)
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FTCLI_CACHE_LIMIT", raising=False)
    return counts


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """Return a folder with forty photos of two classes."""
    return Path(shutil.copytree(photo_folder / "train", tmp_path / "photos"))


def make_network() -> nn.Sequential:
    """Return a network whose last layer is its head."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 2),
    )
    return network.to(memory_format=torch.channels_last)


def cut_before(network: nn.Module, number: int, size: int = 16) -> ModelCut:
    """Cut a Sequential before one of its layers."""
    frozen = {name for name, _ in network.named_parameters() if int(name.split(".")[0]) < number}
    eval_modules = {name for name, _ in network.named_modules() if not name or int(name.split(".")[0]) < number}
    cut = cut_model(network, frozen, eval_modules, size)
    assert cut is not None
    return cut


def list_photos(root: Path) -> tuple[Sample, ...]:
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    return tuple(Sample(path, int("flower" in path), 1 + number) for number, path in enumerate(paths))


def open_loader(
    root: Path,
    samples: tuple[Sample, ...],
    transform: ImageTransform,
    batch_size: int,
    on_corrupt_image: Literal["error", "skip"],
) -> ImageLoader:
    return ImageLoader(samples, transform, batch_size, LoaderConfig(root, on_corrupt_image, 0))


def open_cache(
    network: nn.Module | None = None, pre: Preprocessing = EXPECTED, precision: str = "float32", number: int = 5
) -> FeatureCache:
    return FeatureCache(cut_before(network or make_network(), number, pre.image_size), pre, CPU, precision)


def make_request(
    root: Path,
    transform: ImageTransform,
    rng_keys: Sequence[RngKey | None] = (None,),
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FeatureRequest:
    """Return a request for all photos of a folder."""
    task = ProgressTask("computing", reporter or NullReporter(), should_stop)
    return FeatureRequest(list_photos(root), transform, rng_keys, task)


def compute_features(
    root: Path,
    cache: FeatureCache | None = None,
    transform: ImageTransform | None = None,
    rng_key: RngKey | None = None,
    **config: Any,
) -> CachedFeatureLoader:
    """Return a loader of the features of all photos in one view."""
    loader_config = LoaderConfig(root, **{"on_corrupt_image": "error", "num_workers": 0, **config})
    request = make_request(root, transform or build_eval_transform(EXPECTED), [rng_key])
    return (cache or open_cache()).get_or_compute(request, 8, loader_config)


def concat_values(
    loaded: CachedFeatureLoader, rng_key: RngKey | None = None, order: list[int] | None = None
) -> torch.Tensor:
    return torch.cat([batch.inputs[0] for batch in loaded.batches(order, rng_key)])


def test_get_or_compute_warm_equals_cold_without_forward(photos: Path, computed: list[int]) -> None:
    cold = concat_values(compute_features(photos))
    assert computed == [16, 16, 8]
    warm = concat_values(compute_features(photos))
    assert sum(computed) == 40
    assert torch.equal(cold, warm)
    network = make_network().eval()
    loader = open_loader(photos, list_photos(photos), build_eval_transform(EXPECTED), 40, "error")
    pixels = next(iter(loader.batches())).images.float() / 255
    mean, std = (torch.tensor(stats).view(1, 3, 1, 1) for stats in (EXPECTED.mean, EXPECTED.std))
    with torch.no_grad():
        torch.testing.assert_close(warm, network[:5]((pixels - mean) / std), rtol=1e-5, atol=1e-5)


def test_cached_feature_loader_matches_image_loader_metadata(photos: Path) -> None:
    loaded = compute_features(photos)
    with open_loader(photos, loaded.samples, build_eval_transform(EXPECTED), 8, "error") as loader:
        for order, start, merge_last in ((None, 0, False), ([7, 3, *range(20, 35)], 1, True), ([], 0, False)):
            actual, expected = (list(source.batches(order, None, start, merge_last)) for source in (loaded, loader))
            assert [batch.paths for batch in actual] == [batch.paths for batch in expected]
            for actual_batch, expected_batch in zip(actual, expected, strict=True):
                assert torch.equal(actual_batch.labels, expected_batch.labels)
                assert torch.equal(actual_batch.weights, expected_batch.weights)
                assert actual_batch.weights.dtype == torch.float64
        assert loaded.count_batches() == loader.count_batches() == 5
        assert loaded.count_batches(merge_last=True) == loader.count_batches(merge_last=True)
    order = list(range(39, -1, -1))
    assert torch.equal(concat_values(loaded, order=order), concat_values(loaded).flip(0))


def _set_bit(network: nn.Sequential, name: str) -> nn.Sequential:
    bits = network.state_dict()[name].view(torch.int32)
    bits[(0,) * bits.ndim] ^= 1
    return network


def _with_changes(network: nn.Module | None = None, **changes: Any) -> Callable[[Path], CachedFeatureLoader]:
    pre = dataclasses.replace(EXPECTED, **{key: value for key, value in changes.items() if key != "precision"})
    precision = changes.get("precision", "float32")
    return lambda root: compute_features(root, open_cache(network, pre, precision), build_eval_transform(pre))


FINGERPRINT_CHANGES: dict[str, Callable[[Path], CachedFeatureLoader]] = {
    "a bit of a weight": lambda root: _with_changes(_set_bit(make_network(), "0.weight"))(root),
    "a bit of a statistic": lambda root: _with_changes(_set_bit(make_network(), "1.running_var"))(root),
    "a setting of a layer": lambda root: _with_changes(_set_eps(make_network()))(root),
    "the boundary": lambda root: compute_features(root, open_cache(number=1)),
    "mean": _with_changes(mean=(0.5, 0.4, 0.31)),
    "std": _with_changes(std=(0.2, 0.25, 0.31)),
    "image_size": _with_changes(image_size=18),
    "resize": _with_changes(resize="squash"),
    "resize_size": _with_changes(resize_size=21),
    "interpolation": _with_changes(interpolation="bicubic"),
    "precision": _with_changes(precision="bfloat16"),
    "augmentation": lambda root: compute_features(
        root, transform=build_train_transform(EXPECTED, "flips"), rng_key=(0, "head", 0)
    ),
}


def _set_eps(network: nn.Sequential) -> nn.Sequential:
    network.get_submodule("1").eps = 1e-3  # type: ignore[assignment]
    return network


@pytest.mark.parametrize("change", FINGERPRINT_CHANGES)
def test_get_or_compute_recomputes_when_fingerprint_changes(change: str, photos: Path, computed: list[int]) -> None:
    first = concat_values(compute_features(photos))
    computed.clear()
    FINGERPRINT_CHANGES[change](photos)
    assert sum(computed) == 40, change
    computed.clear()
    FINGERPRINT_CHANGES[change](photos)
    assert torch.equal(concat_values(compute_features(photos)), first)
    assert not computed


def test_get_or_compute_separates_rng_keys_and_file_names(photos: Path, computed: list[int]) -> None:
    transforms = {name: build_train_transform(EXPECTED, name) for name in ("flips", "standard")}
    cases = [("flips", (0, "head", 0)), ("flips", (1, "head", 0)), ("flips", (0, "all", 0)), ("flips", (0, "head", 1)),
             ("standard", (0, "head", 0))]  # fmt: skip
    for name, rng_key in cases:
        computed.clear()
        loaded = compute_features(photos, transform=transforms[name], rng_key=rng_key)
        assert sum(computed) == 40, (name, rng_key)
        with open_loader(photos, loaded.samples, transforms[name], 40, "error") as loader:
            view_images = next(iter(loader.batches(rng_key=rng_key))).images
        backbone = FrozenBackbone(cut_before(make_network(), 5), EXPECTED, CPU, "float32")
        expected = [
            torch.from_numpy(backbone.compute(batch_images).view(np.float32))
            for batch_images in torch.split(view_images, 16)
        ]
        assert torch.equal(concat_values(loaded, rng_key), torch.cat(expected))
    computed.clear()
    (photos / "china/0.jpg").rename(photos / "china/zero.jpg")
    compute_features(photos, transform=transforms["flips"], rng_key=(0, "head", 0))
    assert computed == [1]
    with pytest.raises(ValueError, match="were not requested"):
        next(loaded.batches(rng_key=(5, "head", 0)))


def test_get_or_compute_ignores_rng_key_without_randomness(photos: Path, computed: list[int]) -> None:
    first = concat_values(compute_features(photos))
    computed.clear()
    plain = build_train_transform(EXPECTED, "none")
    loaded = compute_features(photos, transform=plain, rng_key=(0, "head", 0))
    assert torch.equal(concat_values(loaded, (3, "other", 9)), first)
    (photos / "china/0.jpg").rename(photos / "china/00.jpg")  # its position in the order is the same
    assert torch.equal(concat_values(compute_features(photos)), first)
    assert not computed


def test_get_or_compute_ignores_irrelevant_changes(photos: Path, computed: list[int], tmp_path: Path) -> None:
    first = concat_values(compute_features(photos))
    computed.clear()
    expected_batch = make_network()
    nn.init.normal_(expected_batch.get_submodule("5").weight)  # type: ignore[arg-type]
    expected_batch[5] = nn.Sequential(nn.Linear(32, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 7))
    assert torch.equal(concat_values(compute_features(photos, open_cache(expected_batch.train()))), first)
    assert torch.equal(
        concat_values(compute_features(photos, on_corrupt_image="skip", num_workers=2, rehash=True)), first
    )
    for batch_size in (1, 40):
        request = make_request(photos, build_eval_transform(EXPECTED))
        reversed_request = dataclasses.replace(request, samples=request.samples[::-1])
        loaded = open_cache().get_or_compute(reversed_request, batch_size, LoaderConfig(photos, "error", 0))
        assert torch.equal(concat_values(loaded), first.flip(0))
    photos.rename(tmp_path / "elsewhere")
    assert torch.equal(concat_values(compute_features(tmp_path / "elsewhere")), first)
    assert not computed


def test_get_or_compute_computes_new_images_once(photos: Path, computed: list[int], photo_folder: Path) -> None:
    compute_features(photos)
    computed.clear()
    for number in (20, 21):
        shutil.copy(photo_folder / f"test/china/{number}.jpg", photos / "china")
    for twin in range(3):
        shutil.copy(photo_folder / "test/china/22.jpg", photos / f"china/22-{twin}.jpg")
    values = concat_values(compute_features(photos))
    assert computed == [3]
    names = [Path(sample.path).name for sample in list_photos(photos)]
    first, second = (values[names.index(f"22-{twin}.jpg")] for twin in (0, 2))
    assert torch.equal(first, second)


def test_get_or_compute_notices_changed_bytes(photos: Path, computed: list[int]) -> None:
    before = concat_values(compute_features(photos))
    computed.clear()
    path = photos / "china/0.jpg"
    file_stat, data = path.stat(), bytearray(path.read_bytes())
    with Image.open(path) as image:
        pixels = np.asarray(image).copy()
    for end in range(2, 400):  # a bit that leaves the image readable
        changed = data.copy()
        changed[-end] ^= 1
        path.write_bytes(changed)
        with Image.open(path) as image:
            if not np.array_equal(np.asarray(image), pixels):
                break
    os.utime(path, ns=(file_stat.st_atime_ns, file_stat.st_mtime_ns))
    assert path.stat().st_size == file_stat.st_size
    after = concat_values(compute_features(photos))
    assert computed == [1]
    assert (before != after).any(1).nonzero().flatten().tolist() == [0]


def test_get_or_compute_separates_libraries_and_devices(
    photos: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_features(photos)
    for library in (torch, torchvision):
        computed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "1.2.3")
            transform = build_eval_transform(EXPECTED)
            compute_features(photos, transform=transform)
        assert sum(computed) == 40
    keys = []
    for device_type in ("cpu", "meta"):  # any other available device
        cache = FeatureCache(cut_before(make_network(), 5), EXPECTED, torch.device(device_type), "float32")
        keys.append(cache._store.folder)
    assert keys[0] != keys[1]


def test_fingerprint_backbone_uses_known_digests() -> None:
    cut = cut_before(make_network(), 5)
    plain = fingerprint.fingerprint_backbone(cut, EXPECTED, {})
    tensors = [*cut.prefix.parameters(), *cut.prefix.buffers()]
    known = {id(tensor): hash_tensor(tensor) for tensor in tensors}
    assert fingerprint.fingerprint_backbone(cut, EXPECTED, known) == plain
    for tensor in tensors:
        changed = fingerprint.fingerprint_backbone(cut, EXPECTED, known | {id(tensor): "another"})
        assert {key for key in plain if plain[key] != changed[key]} == {"tensors"}


def test_fingerprint_backbone_includes_timm_version_for_timm_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftcli.models.factory import create_model

    network = create_model("timm/resnet10t", meta=False, image_size=32)
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("fc.")}
    eval_modules = {name for name, _ in network.named_modules() if name != "fc"}
    cut = cut_model(network, frozen, eval_modules, 32)
    assert cut is not None
    known = fingerprint.fingerprint_backbone(cut, EXPECTED, {})
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0")
    changed = fingerprint.fingerprint_backbone(cut, EXPECTED, {})
    assert {key for key in known if known[key] != changed[key]} == {"timm"}
    assert "timm" not in fingerprint.fingerprint_backbone(cut_before(make_network(), 5), EXPECTED, {})


def test_get_or_compute_skips_corrupt_images_like_image_loader(photos: Path, computed: list[int]) -> None:
    for name in ("china/0.jpg", "china/7.jpg", "flower/3.jpg"):
        (photos / name).write_bytes(b"no image")
    (photos / "flower/5.jpg").chmod(0)
    (photos / "flower/5.jpg").unlink()
    (photos / "flower/5.jpg").mkdir()
    samples = tuple(sorted((*list_photos(photos),), key=lambda sample: sample.path))
    for _ in range(2):
        loaded = compute_features(photos, on_corrupt_image="skip")
        with open_loader(photos, samples, build_eval_transform(EXPECTED), 8, "skip") as loader:
            for _ in range(2):
                actual, expected = list(loaded.batches()), list(loader.batches())
                assert [batch.skipped for batch in actual] == [batch.skipped for batch in expected]
                assert [batch.paths for batch in actual] == [batch.paths for batch in expected]
                assert [len(batch.inputs[0]) for batch in actual] == [len(batch.paths) for batch in expected]
    assert sum(computed) == 36
    with pytest.raises(CorruptImageError) as error:
        compute_features(photos)
    with (
        open_loader(photos, samples, build_eval_transform(EXPECTED), 8, "error") as loader,
        pytest.raises(CorruptImageError) as known,
    ):
        list(loader.batches())
    assert str(error.value) == str(known.value)


def test_cached_feature_loader_gives_empty_batch_for_corrupt_images(photos: Path) -> None:
    for name in range(20):
        (photos / f"china/{name}.jpg").write_bytes(b"no image")
    first = next(compute_features(photos, on_corrupt_image="skip").batches())
    assert first.inputs[0].shape == (0, 32)
    assert first.paths == ()
    assert len(first.skipped) == 8


def test_get_or_compute_caches_partial_results_when_stopped(
    photos: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # otherwise batches computed in parallel would be dropped
    reported: list[Progress] = []

    class Listener(NullReporter):
        def update_progress(self, progress: Progress) -> None:
            reported.append(progress)

    transform, rng_keys = build_train_transform(EXPECTED, "flips"), [(0, "head", view) for view in range(2)]
    loader_config = LoaderConfig(photos, "error", 0)
    with pytest.raises(StopRequestedError):
        open_cache().get_or_compute(
            make_request(photos, transform, rng_keys, Listener(), lambda: len(reported) == 4), 8, loader_config
        )
    assert [(progress.done, progress.total) for progress in reported] == [(16, 80), (32, 80), (40, 80), (56, 80)]
    loaded = open_cache().get_or_compute(make_request(photos, transform, rng_keys, Listener()), 8, loader_config)
    assert sum(computed) == 80
    assert (reported[-1].done, reported[-1].total, reported[-1].unit) == (24, 24, "images")
    assert not torch.equal(concat_values(loaded, (0, "head", 0)), concat_values(loaded, (0, "head", 1)))


def test_get_or_compute_does_not_cache_file_changed_during_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FrozenBackbone._compute

    def overwrite(backbone: FrozenBackbone, images: torch.Tensor) -> Any:
        (photos / "china/0.jpg").write_bytes((photos / "china/1.jpg").read_bytes())
        return original(backbone, images)

    with monkeypatch.context() as patch:
        patch.setattr(FrozenBackbone, "_compute", overwrite)
        with pytest.raises(DataError, match=r"china/0\.jpg: changed while it was read; run again when it no"):
            compute_features(photos)
    assert torch.equal(concat_values(compute_features(photos))[0], concat_values(compute_features(photos))[1])


def test_get_or_compute_raises_cache_full_before_computing(
    photos: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "5 kB")
    with pytest.raises(CacheFullError) as error:
        compute_features(photos)
    assert str(error.value) == (
        "computing: the features of 40 images, 0.0 MB, do not fit in the cache; raise FTCLI_CACHE_LIMIT, free disk "
        "space, or set cache: off"
    )
    assert not computed


def test_cached_feature_loader_gives_writable_channels_last_maps(photos: Path) -> None:
    loaded = compute_features(photos, open_cache(number=1))
    batch = next(loaded.batches())
    assert batch.inputs[0].shape == (8, 8, 7, 7)
    assert batch.inputs[0].is_contiguous(memory_format=torch.channels_last)
    known = batch.inputs[0].clone()
    batch.inputs[0].zero_()
    again: Batch = next(loaded.batches())
    assert torch.equal(again.inputs[0], known)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.features.test_cache import *
count = 0
def stop():
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return False
from ftcli.caching import store as store_module
store_module.COMMIT_SECONDS = 0.0
root = Path(sys.argv[1])
request = make_request(root, build_eval_transform(EXPECTED), should_stop=stop)
open_cache().get_or_compute(request, 8, LoaderConfig(root, "error", 0))
"""


def test_get_or_compute_resumes_after_kill_with_same_bits(
    photos: Path, computed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(photos)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rebuilt = concat_values(compute_features(photos))
    assert 0 < sum(computed) < 40
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "other"))
    assert torch.equal(concat_values(compute_features(photos)), rebuilt)
