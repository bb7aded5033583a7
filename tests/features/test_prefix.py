"""The frozen part made fast gives what the network's own gives, but for rounding, and leaves the network alone."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torchvision.ops import FrozenBatchNorm2d

from ftcli.data.batches import Batch
from ftcli.data.transforms import Normalizer
from ftcli.features.fusing import fuse_norms
from ftcli.features.prefix import BATCHES, Prefix, choose_batch
from ftcli.models.anatomy import examine, find_head
from ftcli.models.cut import Cut, find_cut
from ftcli.models.freezing import Freezing, set_modes
from ftcli.models.trunk import Trunk
from ftcli.models.zoo import build_network
from ftcli.results import Preprocessing

CPU = torch.device("cpu")
FAMILIES = {
    "densenet121": (32, True),  # its norms come before the convolutions, all but a third of them
    "mobilenet_v3_small": (32, False),
    "resnet18": (32, False),
    "timm/efficientnet_lite0": (32, False),
}


def _expect(size: int) -> Preprocessing:
    return Preprocessing(size, size, "squash", "bilinear", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def _cut(network: nn.Module, path: str, size: int) -> Cut:
    """A cut before the modules whose names begin so."""
    frozen = {name for name, _ in network.named_parameters() if not name.startswith(path)}
    still = {name for name, _ in network.named_modules() if not name.startswith(path)}
    cut = find_cut(network, frozen, still, size)
    assert cut is not None
    return cut


def _batch(images: torch.Tensor) -> Batch:
    return Batch((images,), torch.zeros(0), torch.zeros(0), ())


def _unsettle(network: nn.Module) -> None:
    """Give norms statistics and weights as training would leave them."""
    for layer in network.modules():
        if isinstance(layer, (nn.BatchNorm2d, FrozenBatchNorm2d)) and isinstance(layer.running_mean, torch.Tensor):
            nn.init.normal_(layer.running_mean, std=0.1)
            assert isinstance(layer.running_var, torch.Tensor)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            if isinstance(layer.weight, torch.Tensor):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.1)


def _count_norms(graph: nn.Module) -> int:
    assert isinstance(graph, fx.GraphModule)
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    return sum(isinstance(graph.get_submodule(name), nn.BatchNorm2d) for name in called)


@pytest.mark.parametrize(("name", "size", "left"), [(name, *rest) for name, rest in FAMILIES.items()])
def test_a_family_gives_close_values_and_the_same_class_with_its_norms_folded(name: str, size: int, left: bool) -> None:
    torch.manual_seed(0)
    network = build_network(name, meta=False, image_size=size)
    _unsettle(network)
    network.train()
    before = copy.deepcopy(network.state_dict())
    places = {key: tensor.data_ptr() for key, tensor in network.state_dict().items()}
    cut = _cut(network, find_head(network, examine(network, size)).path, size)
    prefix = Prefix(cut, _expect(size), CPU, "float32")
    images = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    (values,) = prefix.split_rows(prefix.compute(images))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert {key: tensor.data_ptr() for key, tensor in network.state_dict().items()} == places

    network.eval()
    with torch.no_grad():
        plain = Normalizer(_expect(size), CPU)(images)
        (expected,) = cut.prefix(plain)
        logits = network(plain)
        assert torch.equal(cut.suffix(values).argmax(1), logits.argmax(1))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert isinstance(cut.prefix, fx.GraphModule)
    assert (_count_norms(fuse_norms(cut.prefix)) > 0) is left


class _Standardised(nn.Conv2d):
    """A convolution that does more with its weights than to convolve, and is a call of its own in a graph."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        share = 0.5 if self.training else 1.0
        weight = self.weight - share * self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(values, weight, self.bias)


class _Residual(nn.Module):
    """A convolution whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        given = self.conv(values)
        output: torch.Tensor = self.norm(given) + given
        return output


def _close_up(*layers: nn.Module) -> tuple[nn.Module, Cut]:
    torch.manual_seed(0)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    _unsettle(network)
    return network.eval(), _cut(network, f"{len(layers) + 2}", 8)


@pytest.mark.parametrize(
    ("layers", "norms"),
    [
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()), 0),
        ((nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), 0),
        ((nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU()), 0),
        ((nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 1),
        ((_Standardised(3, 4, 3), nn.BatchNorm2d(4)), 1),
        ((nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
        ((nn.Conv2d(3, 4, 3), _Residual()), 1),
    ],
)
def test_what_is_folded_and_what_is_not(layers: tuple[nn.Module, ...], norms: int) -> None:
    _, cut = _close_up(*layers)
    assert isinstance(cut.prefix, fx.GraphModule)
    images = torch.randn(3, 3, 8, 8)
    fused = fuse_norms(cut.prefix)
    assert _count_norms(fused) == norms
    if isinstance(layers[1], FrozenBatchNorm2d):  # which is no layer of the graph, but arithmetic with constants
        assert [node.op for node in cut.prefix.graph.nodes].count("get_attr") == 2
        assert not any(node.op == "get_attr" for node in fused.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(fused(images)[0], cut.prefix(images)[0], rtol=1e-5, atol=1e-6)


def test_a_norm_in_train_mode_is_not_folded() -> None:
    _, cut = _close_up(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert isinstance(cut.prefix, fx.GraphModule)
    cut.prefix.get_submodule("1").train()
    assert _count_norms(fuse_norms(cut.prefix)) == 1


def test_a_layer_that_is_called_twice_is_not_folded() -> None:
    conv = nn.Conv2d(4, 4, 1)
    _, cut = _close_up(nn.Conv2d(3, 4, 3), conv, nn.BatchNorm2d(4), conv)
    assert isinstance(cut.prefix, fx.GraphModule)
    assert _count_norms(fuse_norms(cut.prefix)) == 1


def test_an_images_bits_are_the_same_in_every_company() -> None:
    network = build_network("mobilenet_v3_small", meta=False, image_size=32)
    prefix = Prefix(_cut(network, "classifier.3", 32), _expect(32), CPU, "float32")
    images = torch.randint(0, 256, (BATCHES["cpu"], 3, 32, 32), dtype=torch.uint8)
    whole = prefix.compute(images)
    assert whole.shape == (BATCHES["cpu"], prefix.row_bytes)
    assert np.array_equal(prefix.compute(images[3:8]), whole[3:8])
    assert np.array_equal(prefix.compute(images[5:6]), whole[5:6])
    assert np.array_equal(prefix.compute(images.flip(0)), whole[::-1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batches_computed_beside_one_another_have_the_bits_of_each_alone(threads: int) -> None:
    network = build_network("mobilenet_v3_small", meta=False, image_size=32).train()
    prefix = Prefix(_cut(network, "classifier.3", 32), _expect(32), CPU, "float32")
    images = torch.randint(0, 256, (7, BATCHES["cpu"], 3, 32, 32), dtype=torch.uint8)
    batches = [_batch(each) for each in (*images, images[0][:5], images[0][:0])]
    alone = [prefix.compute(batch.images) for batch in batches]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = list(prefix.stream(batches))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(one is batch for (one, _), batch in zip(found, batches, strict=True))
    assert all(np.array_equal(rows, known) for (_, rows), known in zip(found, alone, strict=True))
    assert prefix.computed == 7 * BATCHES["cpu"] + 5
    assert all(module.training for module in network.modules())


def test_as_many_batches_are_computed_at_once_as_torch_has_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("resnet18", meta=False, image_size=32)
    cut = _cut(network, "fc", 32)
    together, places = threading.Barrier(3), set[int]()

    def wait(prefix: Prefix, images: torch.Tensor) -> NDArray[np.uint8]:
        together.wait(20.0)
        places.add(threading.get_ident())
        return np.empty((len(images), prefix.row_bytes), dtype=np.uint8)

    monkeypatch.setattr(Prefix, "_compute", wait)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    batches = [_batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))] * 6
    assert len(list(Prefix(cut, _expect(32), CPU, "float32").stream(batches))) == 6
    assert threading.get_ident() not in places
    assert len(list(Prefix(cut, _expect(32), CPU, "float32").stream(batches[:3]))) == 3
    together, places = threading.Barrier(1), set()
    whole = replace(cut, prefix=Trunk(network, "fc"))  # code that is no graph may remember what it computes
    assert len(list(Prefix(whole, _expect(32), CPU, "float32").stream(batches))) == 6
    assert places == {threading.get_ident()}


def test_batches_of_large_images_are_smaller_lest_they_fill_the_memory() -> None:
    sizes = (32, 320, 321, 384, 480, 600, 4000)
    assert [choose_batch(CPU, size) for size in sizes] == [16, 16, 8, 8, 4, 4, 1]
    assert [choose_batch(torch.device("cuda"), size) for size in sizes] == [256, 256, 128, 128, 64, 64, 1]


def test_a_batch_has_one_thread_and_torch_its_own_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("resnet18", meta=False, image_size=32)
    prefix = Prefix(_cut(network, "fc", 32), _expect(32), CPU, "float32")
    shares: list[tuple[bool, int]] = []

    def note(prefix: Prefix, images: torch.Tensor) -> NDArray[np.uint8]:
        shares.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return np.empty((len(images), prefix.row_bytes), dtype=np.uint8)

    monkeypatch.setattr(Prefix, "_compute", note)
    batches = [_batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))] * 5
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert prefix.beside == 3
        assert len(list(prefix.stream(batches))) == 5
        assert shares == [(False, 1)] * 5
        prefix.compute(batches[0].images)
        assert shares[5:] == [(True, 1)]
        stream = prefix.stream(batches)
        next(stream)
        stream.close()
        assert torch.get_num_threads() == 3
        torch.set_num_threads(32)
        assert prefix.beside == 16
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_a_sigmoid_has_the_same_bits_with_any_number_of_threads(threads: int) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(5 * 75 * 75, 2))
    prefix = Prefix(_cut(network, "3", 75), _expect(75), CPU, "float32")
    images = torch.randint(0, 256, (BATCHES["cpu"], 3, 75, 75), dtype=torch.uint8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = prefix.compute(images)
        torch.set_num_threads(threads)
        assert np.array_equal(prefix.compute(images), alone)
        for count in (1, 3, 5):
            assert all(np.array_equal(rows, alone) for _, rows in prefix.stream([_batch(images)] * count))
    finally:
        torch.set_num_threads(before)


def test_several_values_and_maps_come_back_as_they_were_and_can_be_trained_on() -> None:
    network = build_network("resnet18", meta=False, image_size=64)
    live = ("layer3.0.bn1", "layer3.0.conv2", "layer3.0.bn2", "layer3.0.downsample", "layer3.1", "layer4", "fc")
    parameters = {name for name, _ in network.named_parameters() if not name.startswith(live)}
    modules = {name for name, _ in network.named_modules() if not name.startswith(live)}
    cut = find_cut(network, parameters, modules, 64)
    assert cut is not None
    prefix = Prefix(cut, _expect(64), CPU, "float32")
    assert prefix.row_bytes == 4 * (128 * 8 * 8 + 256 * 4 * 4)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    values = prefix.split_rows(prefix.compute(images))
    set_modes(network, Freezing(frozenset(parameters), frozenset(modules)))
    with torch.no_grad():
        expected = cut.prefix(Normalizer(_expect(64), CPU)(images))
    for value, known in zip(values, expected, strict=True):
        assert value.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(value, known, rtol=1e-4, atol=1e-5)
    cut.training_suffix(*values).sum().backward()
    assert network.get_submodule("layer3.0.conv2").weight.grad is not None


def test_a_prefix_in_bfloat16_is_kept_in_float32_without_loss() -> None:
    network = build_network("mobilenet_v3_small", meta=False, image_size=32)
    prefix = Prefix(_cut(network, "classifier.3", 32), _expect(32), CPU, "bfloat16")
    (values,) = prefix.split_rows(prefix.compute(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)))
    assert values.dtype == torch.float32
    assert torch.equal(values, values.bfloat16().float())


def test_the_time_of_an_image_is_measured() -> None:
    network = build_network("mobilenet_v3_small", meta=False, image_size=32)
    state = torch.get_rng_state()
    assert 0 < Prefix(_cut(network, "classifier.3", 32), _expect(32), CPU, "float32").measure() < 1
    assert torch.equal(torch.get_rng_state(), state)
