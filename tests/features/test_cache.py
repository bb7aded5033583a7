"""What the frozen part gives is found again by everything that it is made of, and by nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from ftcli.data.batches import Batch, Draw
from ftcli.data.images import BrokenImage
from ftcli.data.loading import Loader
from ftcli.data.reading import ImageFiles
from ftcli.data.sources import Sample
from ftcli.data.transforms import ImageTransform, build_eval_transform, build_train_transform
from ftcli.errors import DataError
from ftcli.features import identity
from ftcli.features.cache import FeatureCache, NoRoom, Sight, Source
from ftcli.features.feeds import ValueFeed
from ftcli.features.prefix import Prefix
from ftcli.models.cut import Cut, find_cut
from ftcli.models.states import digest_tensor
from ftcli.results import Preprocessing, Progress, Silent

CPU = torch.device("cpu")
EXPECTED = Preprocessing(16, 20, "crop", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many images each batch of a prefix had; an empty cache is in tmp_path."""
    counts: list[int] = []
    compute = Prefix._compute

    def count(prefix: Prefix, images: torch.Tensor) -> Any:
        counts.append(len(images))
        return compute(prefix, images)

    monkeypatch.setattr(Prefix, "_compute", count)
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FTCLI_CACHE_LIMIT", raising=False)
    return counts


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """Forty photographs of two classes."""
    return Path(shutil.copytree(photo_folder / "train", tmp_path / "photos"))


def build() -> nn.Sequential:
    """A network whose last layer is its head."""
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


def cut_before(network: nn.Module, number: int, size: int = 16) -> Cut:
    """The cut before a layer of a network that is a row of them."""
    frozen = {name for name, _ in network.named_parameters() if int(name.split(".")[0]) < number}
    still = {name for name, _ in network.named_modules() if not name or int(name.split(".")[0]) < number}
    cut = find_cut(network, frozen, still, size)
    assert cut is not None
    return cut


def list_photos(root: Path) -> tuple[Sample, ...]:
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    return tuple(Sample(path, int("flower" in path), 1 + number) for number, path in enumerate(paths))


def load(
    root: Path, samples: tuple[Sample, ...], transform: ImageTransform, batch_size: int, bad: Literal["error", "skip"]
) -> Loader:
    return Loader(samples, transform, batch_size, ImageFiles(root, bad, 0))


def open_cache(
    network: nn.Module | None = None, pre: Preprocessing = EXPECTED, precision: str = "float32", number: int = 5
) -> FeatureCache:
    return FeatureCache(cut_before(network or build(), number, pre.image_size), pre, CPU, precision)


def see(
    root: Path,
    cache: FeatureCache | None = None,
    transform: ImageTransform | None = None,
    draw: Draw | None = None,
    **reading: Any,
) -> ValueFeed:
    """The values of all photographs in one sight."""
    source = Source(root, **{"on_corrupt_image": "error", "num_workers": 0, **reading})
    sights = [Sight(transform or build_eval_transform(EXPECTED), draw)]
    feed = (cache or open_cache()).gather(list_photos(root), sights, 8, source, Silent(), "computing")
    assert feed is not None
    return feed


def join(feed: ValueFeed, draw: Draw | None = None, order: list[int] | None = None) -> torch.Tensor:
    return torch.cat([batch.values[0] for batch in feed.batches(order, draw)])


def test_warm_values_are_the_cold_ones_and_cost_no_pass(photos: Path, computed: list[int]) -> None:
    cold = join(see(photos))
    assert computed == [16, 16, 8]
    warm = join(see(photos))
    assert sum(computed) == 40
    assert torch.equal(cold, warm)
    network = build().eval()
    loader = load(photos, list_photos(photos), build_eval_transform(EXPECTED), 40, "error")
    pixels = next(iter(loader.batches())).images.float() / 255
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (EXPECTED.mean, EXPECTED.std))
    with torch.no_grad():
        torch.testing.assert_close(warm, network[:5]((pixels - mean) / std), rtol=1e-5, atol=1e-5)


def test_a_feed_gives_what_a_loader_gives_beside_the_images(photos: Path) -> None:
    feed = see(photos)
    with load(photos, feed.samples, build_eval_transform(EXPECTED), 8, "error") as loader:
        for order, start, merge_last in ((None, 0, False), ([7, 3, *range(20, 35)], 1, True), ([], 0, False)):
            ours, theirs = (list(each.batches(order, None, start, merge_last)) for each in (feed, loader))
            assert [batch.paths for batch in ours] == [batch.paths for batch in theirs]
            for own, other in zip(ours, theirs, strict=True):
                assert torch.equal(own.labels, other.labels)
                assert torch.equal(own.weights, other.weights)
                assert own.weights.dtype == torch.float64
        assert feed.count_batches() == loader.count_batches() == 5
        assert feed.count_batches(merge_last=True) == loader.count_batches(merge_last=True)
    order = list(range(39, -1, -1))
    assert torch.equal(join(feed, order=order), join(feed).flip(0))


def _set_bit(network: nn.Sequential, name: str) -> nn.Sequential:
    bits = network.state_dict()[name].view(torch.int32)
    bits[(0,) * bits.ndim] ^= 1
    return network


def _new(network: nn.Module | None = None, **changes: Any) -> Callable[[Path], ValueFeed]:
    pre = dataclasses.replace(EXPECTED, **{key: value for key, value in changes.items() if key != "precision"})
    precision = changes.get("precision", "float32")
    return lambda root: see(root, open_cache(network, pre, precision), build_eval_transform(pre))


MISSES: dict[str, Callable[[Path], ValueFeed]] = {
    "a bit of a weight": lambda root: _new(_set_bit(build(), "0.weight"))(root),
    "a bit of a statistic": lambda root: _new(_set_bit(build(), "1.running_var"))(root),
    "a setting of a layer": lambda root: _new(_set_eps(build()))(root),
    "the boundary": lambda root: see(root, open_cache(number=1)),
    "mean": _new(mean=(0.5, 0.4, 0.31)),
    "std": _new(std=(0.2, 0.25, 0.31)),
    "image_size": _new(image_size=18),
    "resize": _new(resize="squash"),
    "resize_size": _new(resize_size=21),
    "interpolation": _new(interpolation="bicubic"),
    "precision": _new(precision="bfloat16"),
    "augmentation": lambda root: see(root, transform=build_train_transform(EXPECTED, "flips"), draw=(0, "head", 0)),
}


def _set_eps(network: nn.Sequential) -> nn.Sequential:
    network.get_submodule("1").eps = 1e-3  # type: ignore[assignment]
    return network


@pytest.mark.parametrize("change", MISSES)
def test_whatever_decides_a_value_makes_another_record(change: str, photos: Path, computed: list[int]) -> None:
    first = join(see(photos))
    computed.clear()
    MISSES[change](photos)
    assert sum(computed) == 40, change
    computed.clear()
    MISSES[change](photos)
    assert torch.equal(join(see(photos)), first)
    assert not computed


def test_every_part_of_a_draw_makes_another_view_and_so_does_the_files_name(photos: Path, computed: list[int]) -> None:
    views = {name: build_train_transform(EXPECTED, name) for name in ("flips", "standard")}
    kinds = [("flips", (0, "head", 0)), ("flips", (1, "head", 0)), ("flips", (0, "all", 0)), ("flips", (0, "head", 1)),
             ("standard", (0, "head", 0))]  # fmt: skip
    for name, draw in kinds:
        computed.clear()
        feed = see(photos, transform=views[name], draw=draw)
        assert sum(computed) == 40, (name, draw)
        with load(photos, feed.samples, views[name], 40, "error") as loader:
            seen = next(iter(loader.batches(draw=draw))).images
        prefix = Prefix(cut_before(build(), 5), EXPECTED, CPU, "float32")
        expected = [torch.from_numpy(prefix.compute(part).view(np.float32)) for part in torch.split(seen, 16)]
        assert torch.equal(join(feed, draw), torch.cat(expected))
    computed.clear()
    (photos / "china/0.jpg").rename(photos / "china/zero.jpg")
    see(photos, transform=views["flips"], draw=(0, "head", 0))
    assert computed == [1]
    with pytest.raises(ValueError, match="were not gathered"):
        next(feed.batches(draw=(5, "head", 0)))


def test_without_chance_draws_and_names_and_training_make_no_difference(photos: Path, computed: list[int]) -> None:
    first = join(see(photos))
    computed.clear()
    plain = build_train_transform(EXPECTED, "none")
    feed = see(photos, transform=plain, draw=(0, "head", 0))
    assert torch.equal(join(feed, (3, "other", 9)), first)
    (photos / "china/0.jpg").rename(photos / "china/00.jpg")  # whose place is the same
    assert torch.equal(join(see(photos)), first)
    assert not computed


def test_what_decides_nothing_makes_no_other_record(photos: Path, computed: list[int], tmp_path: Path) -> None:
    first = join(see(photos))
    computed.clear()
    other = build()
    nn.init.normal_(other.get_submodule("5").weight)  # type: ignore[arg-type]
    other[5] = nn.Sequential(nn.Linear(32, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 7))
    assert torch.equal(join(see(photos, open_cache(other.train()))), first)
    assert torch.equal(join(see(photos, on_corrupt_image="skip", num_workers=2, verify=True)), first)
    for batch_size in (1, 40):
        feed = open_cache().gather(
            list_photos(photos)[::-1], [Sight(build_eval_transform(EXPECTED), None)], batch_size,
            Source(photos, "error", 0), Silent(), "computing",
        )  # fmt: skip
        assert feed is not None
        assert torch.equal(join(feed), first.flip(0))
    photos.rename(tmp_path / "elsewhere")
    assert torch.equal(join(see(tmp_path / "elsewhere")), first)
    assert not computed


def test_added_images_alone_are_computed_and_twins_once(photos: Path, computed: list[int], photo_folder: Path) -> None:
    see(photos)
    computed.clear()
    for number in (20, 21):
        shutil.copy(photo_folder / f"test/china/{number}.jpg", photos / "china")
    for twin in range(3):
        shutil.copy(photo_folder / "test/china/22.jpg", photos / f"china/22-{twin}.jpg")
    values = join(see(photos))
    assert computed == [3]
    names = [Path(sample.path).name for sample in list_photos(photos)]
    first, second = (values[names.index(f"22-{twin}.jpg")] for twin in (0, 2))
    assert torch.equal(first, second)


def test_changed_bytes_are_noticed_though_name_size_and_date_are_as_before(photos: Path, computed: list[int]) -> None:
    before = join(see(photos))
    computed.clear()
    path = photos / "china/0.jpg"
    found, data = path.stat(), bytearray(path.read_bytes())
    with Image.open(path) as image:
        pixels = np.asarray(image).copy()
    for end in range(2, 400):  # a bit of the picture, such that it is still one
        changed = data.copy()
        changed[-end] ^= 1
        path.write_bytes(changed)
        with Image.open(path) as image:
            if not np.array_equal(np.asarray(image), pixels):
                break
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert path.stat().st_size == found.st_size
    after = join(see(photos))
    assert computed == [1]
    assert (before != after).any(1).nonzero().flatten().tolist() == [0]


def test_other_libraries_and_devices_make_other_records(
    photos: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    see(photos)
    for owner in (torch, torchvision):
        computed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(owner, "__version__", "1.2.3")
            transform = build_eval_transform(EXPECTED)
            see(photos, transform=transform)
        assert sum(computed) == 40
    keys = []
    for kind in ("cpu", "meta"):  # any other device that is here
        cache = FeatureCache(cut_before(build(), 5), EXPECTED, torch.device(kind), "float32")
        keys.append(cache._store.folder)
    assert keys[0] != keys[1]


def test_digests_that_are_known_stand_for_the_tensors_that_they_are_of() -> None:
    cut = cut_before(build(), 5)
    plain = identity.identify_prefix(cut, EXPECTED, {})
    tensors = [*cut.prefix.parameters(), *cut.prefix.buffers()]
    known = {id(tensor): digest_tensor(tensor) for tensor in tensors}
    assert identity.identify_prefix(cut, EXPECTED, known) == plain
    for tensor in tensors:
        changed = identity.identify_prefix(cut, EXPECTED, known | {id(tensor): "another"})
        assert {key for key in plain if plain[key] != changed[key]} == {"tensors"}


def test_timms_version_counts_for_its_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftcli.models.zoo import build_network

    network = build_network("timm/resnet10t", meta=False, image_size=32)
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("fc.")}
    still = {name for name, _ in network.named_modules() if name != "fc"}
    cut = find_cut(network, frozen, still, 32)
    assert cut is not None
    known = identity.identify_prefix(cut, EXPECTED, {})
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0")
    changed = identity.identify_prefix(cut, EXPECTED, {})
    assert {key for key in known if known[key] != changed[key]} == {"timm"}
    assert "timm" not in identity.identify_prefix(cut_before(build(), 5), EXPECTED, {})


def test_broken_images_are_left_out_as_a_loader_leaves_them_out(photos: Path, computed: list[int]) -> None:
    for name in ("china/0.jpg", "china/7.jpg", "flower/3.jpg"):
        (photos / name).write_bytes(b"no image")
    (photos / "flower/5.jpg").chmod(0)
    (photos / "flower/5.jpg").unlink()
    (photos / "flower/5.jpg").mkdir()
    samples = tuple(sorted((*list_photos(photos),), key=lambda sample: sample.path))
    for _ in range(2):
        feed = see(photos, on_corrupt_image="skip")
        with load(photos, samples, build_eval_transform(EXPECTED), 8, "skip") as loader:
            for _ in range(2):
                ours, theirs = list(feed.batches()), list(loader.batches())
                assert [batch.left_out for batch in ours] == [batch.left_out for batch in theirs]
                assert [batch.paths for batch in ours] == [batch.paths for batch in theirs]
                assert [len(batch.values[0]) for batch in ours] == [len(batch.paths) for batch in theirs]
    assert sum(computed) == 36
    with pytest.raises(BrokenImage) as error:
        see(photos)
    with (
        load(photos, samples, build_eval_transform(EXPECTED), 8, "error") as loader,
        pytest.raises(BrokenImage) as known,
    ):
        list(loader.batches())
    assert str(error.value) == str(known.value)


def test_a_batch_of_broken_images_alone_is_empty(photos: Path) -> None:
    for name in range(20):
        (photos / f"china/{name}.jpg").write_bytes(b"no image")
    first = next(see(photos, on_corrupt_image="skip").batches())
    assert first.values[0].shape == (0, 32)
    assert first.paths == ()
    assert len(first.left_out) == 8


def test_stopping_keeps_what_was_computed(photos: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # or what is under way beside it would be dropped
    told: list[Progress] = []

    class Listener(Silent):
        def advance(self, progress: Progress) -> None:
            told.append(progress)

    sights = [Sight(build_train_transform(EXPECTED, "flips"), (0, "head", view)) for view in range(2)]
    source = Source(photos, "error", 0)
    arguments = (list_photos(photos), sights, 8, source, Listener(), "computing")
    assert open_cache().gather(*arguments, lambda: len(told) == 4) is None
    assert [(progress.done, progress.total) for progress in told] == [(16, 80), (32, 80), (40, 80), (56, 80)]
    feed = open_cache().gather(*arguments)
    assert feed is not None
    assert sum(computed) == 80
    assert (told[-1].done, told[-1].total, told[-1].unit) == (24, 24, "images")
    assert not torch.equal(join(feed, (0, "head", 0)), join(feed, (0, "head", 1)))


def test_a_file_that_changes_while_it_is_read_is_not_kept(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Prefix._compute

    def meddle(prefix: Prefix, images: torch.Tensor) -> Any:
        (photos / "china/0.jpg").write_bytes((photos / "china/1.jpg").read_bytes())
        return compute(prefix, images)

    with monkeypatch.context() as patch:
        patch.setattr(Prefix, "_compute", meddle)
        with pytest.raises(DataError, match=r"china/0\.jpg: changed while it was read; run again when it stays"):
            see(photos)
    assert torch.equal(join(see(photos))[0], join(see(photos))[1])


def test_where_there_is_no_room_it_is_told_before_anything_is_computed(
    photos: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTCLI_CACHE_LIMIT", "5 kB")
    with pytest.raises(NoRoom) as error:
        see(photos)
    assert str(error.value) == (
        "computing: 0.0 MB of the cache are needed for 40 images, more than there is room for; raise "
        "FTCLI_CACHE_LIMIT, free some of the disk, or set cache: off"
    )
    assert not computed


def test_a_map_is_given_back_in_channels_last_and_may_be_written_into(photos: Path) -> None:
    feed = see(photos, open_cache(number=1))
    batch = next(feed.batches())
    assert batch.values[0].shape == (8, 8, 7, 7)
    assert batch.values[0].is_contiguous(memory_format=torch.channels_last)
    known = batch.values[0].clone()
    batch.values[0].zero_()
    again: Batch = next(feed.batches())
    assert torch.equal(again.values[0], known)


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
from ftcli.caching import filling
filling.CHUNK_SECONDS = 0.0
root = Path(sys.argv[1])
open_cache().gather(list_photos(root), [Sight(build_eval_transform(EXPECTED), None)], 8,
                    Source(root, "error", 0), Silent(), "computing", stop)
"""


def test_a_killed_process_leaves_what_is_whole_and_the_rest_is_computed_to_the_same_bits(
    photos: Path, computed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(photos)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rebuilt = join(see(photos))
    assert 0 < sum(computed) < 40
    monkeypatch.setenv("FTCLI_CACHE", str(tmp_path / "other"))
    assert torch.equal(join(see(photos)), rebuilt)
