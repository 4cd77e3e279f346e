"""freeze(cuda_graph=True): which calls share a recording, without a GPU. tests/gpu/test_gpu_graphs.py has real ones."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from typing import Any, ClassVar

import pytest
import torch
from test_models_cpu import image, network
from torch import Tensor

import fastsr
from fastsr import _graphs
from fastsr.freeze import FrozenNet


class FakeTurns:
    def __init__(self, device: torch.device) -> None:
        self.lock = threading.Lock()

    def __enter__(self) -> FakeTurns:
        self.lock.acquire()
        return self

    def __exit__(self, *error: Any) -> None:
        self.lock.release()

    def wait(self) -> None:
        assert self.lock.locked()
        FakeCapture.events.append("wait")


class FakeCapture:
    """Like a graph it has one buffer for the image and one for the result, and runs the function without gradients."""

    made: ClassVar[list[tuple[int, ...]]] = []
    events: ClassVar[list[str]] = []  # those that concern the memory of graphs

    def __init__(self, function: _graphs.Call, x: Tensor, turns: FakeTurns) -> None:
        assert turns.lock.locked()
        FakeCapture.made.append(tuple(x.shape))
        self.function = function
        with torch.inference_mode(False), torch.no_grad():
            self.x = torch.zeros_like(x)
            self.y = function(self.x)

    def __del__(self) -> None:
        FakeCapture.events.append("freed")

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.x.copy_(x)
            self.y.copy_(self.function(self.x))
        return self.y.clone()


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graphs, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(_graphs, "Turns", FakeTurns)
    monkeypatch.setattr(_graphs, "Capture", FakeCapture)
    monkeypatch.setattr(FakeCapture, "made", [])
    monkeypatch.setattr(FakeCapture, "events", [])


def frozen(**options: Any) -> FrozenNet:
    return fastsr.freeze(network("mlrn"), cuda_graph=True, **options)


def random_image(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(sum(size)))


def test_results_are_those_of_the_network_and_the_callers_own() -> None:
    net, plain = frozen(), fastsr.freeze(network("mlrn"))
    images = [image(), 1 - image(), random_image(1, 3, 17, 16)]
    results = [net(x) for x in images]
    for x, y in zip(images, results, strict=True):
        assert torch.equal(y, plain(x))
    assert FakeCapture.made == [(2, 3, 21, 26), (1, 3, 17, 16)]


def test_shape_layout_dtype_autocast_and_backend_are_recorded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    net = frozen()
    x = image()
    net(x)
    net(x.contiguous(memory_format=torch.channels_last))
    with torch.autocast("cpu", torch.bfloat16):
        net(x)
    with fastsr.backend("reference"):
        net(x)
    with fastsr.set_gelu("exact"):
        net(x)
    net(x[:1])
    with monkeypatch.context() as patch:
        patch.setattr(_graphs._device, "allows_tf32", lambda x: True)
        net(x)
    assert len(FakeCapture.made) == 7
    net(x)
    assert len(FakeCapture.made) == 7


def test_the_least_recently_used_goes_first() -> None:
    net = frozen(max_graphs=2)
    for side in (16, 17, 16, 18, 16, 17):
        net(random_image(1, 3, side, side))
    assert [size[-1] for size in FakeCapture.made] == [16, 17, 18, 17]


def test_memory_of_a_graph_is_freed_when_the_last_call_has_run() -> None:
    net = frozen(max_graphs=2)
    for side in (16, 17, 18):
        net(random_image(1, 3, side, side))
    assert FakeCapture.events == ["wait", "freed"]
    net.to(torch.bfloat16)
    assert FakeCapture.events == ["wait", "freed", "wait", "freed", "freed"]


def test_a_network_that_is_dropped_waits_for_its_last_call() -> None:
    net = frozen()
    for side in (16, 17):
        net(random_image(1, 3, side, side))
    del net
    gc.collect()
    assert FakeCapture.events == ["wait", "freed", "freed"]


def test_the_image_may_be_given_by_name() -> None:
    class Renaming(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network("mlrn")

        def forward(self, flipped: bool = False, *, picture: Tensor) -> Tensor:
            y: Tensor = self.inner(x=picture.flip(-1) if flipped else picture)
            return y

    net, plain = frozen(), fastsr.freeze(network("mlrn"))
    foreign = fastsr.freeze(Renaming(), cuda_graph=True)
    for x in (image(), 1 - image()):
        assert torch.equal(net(x=x), plain(x)) and torch.equal(foreign(picture=x), plain(x))
    assert len(FakeCapture.made) == 2
    assert torch.equal(foreign(True, picture=image()), plain(image().flip(-1)))
    assert len(FakeCapture.made) == 2
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        net(y=3)


def test_calls_that_cannot_be_recorded_are_passed_on() -> None:
    net, x = frozen(), image()
    x.requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert net(x.detach()[:0]).shape == (0, 3, 42, 52)
    assert torch.func.jvp(net, (image(),), (image(),))[1].abs().sum() > 0
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(image()), net.net(image()), atol=1e-6)
    assert not FakeCapture.made
    with pytest.raises(fastsr.InputError, match="pass a tensor"):
        net("image")


def test_hooks_are_called() -> None:
    """Those that come when there are graphs already, and global ones."""
    net, calls = frozen(), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    expected = net(image())
    for register in (
        net.net.register_forward_hook,
        net.net.block_1.register_forward_pre_hook,
        torch.nn.modules.module.register_module_forward_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
    ):
        before, handle = calls, register(count)
        try:
            for _ in range(2):
                assert torch.allclose(net(image()), expected, atol=1e-6)
            assert calls >= before + 2
        finally:
            handle.remove()
        with_hook = calls
        assert torch.equal(net(image()), expected) and calls == with_hook
    assert len(FakeCapture.made) == 1
    other = copy.deepcopy(net)
    other.net.block_1.register_forward_hook(count)
    before = calls
    other(image())
    assert calls == before + 1 and len(FakeCapture.made) == 1


def test_moved_weights_are_recorded_anew() -> None:
    net = frozen()
    net(image())
    half = net.to(torch.bfloat16)
    assert half(image(torch.bfloat16)).dtype == torch.bfloat16
    net.float()(image())
    assert len(FakeCapture.made) == 3


@pytest.mark.parametrize("duplicate", (copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))))
def test_copies_have_graphs_of_their_own(duplicate: Any) -> None:
    net = frozen()
    expected = net(image())
    other = duplicate(net)
    assert other.graphs is not net.graphs and other.graphs.function is other.net
    assert torch.equal(other(image()), expected)
    assert len(FakeCapture.made) == 2


def test_threads_take_turns() -> None:
    net, plain = frozen(max_graphs=2), fastsr.freeze(network("mlrn"))
    images = [random_image(1, 3, 16 + i % 3, 16) * (i + 1) / 12 for i in range(12)]
    results: dict[int, Tensor] = {}

    def work(first: int) -> None:
        for i in range(first, len(images), 4):
            results[i] = net(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], plain(x)) for i, x in enumerate(images))


def test_inference_mode_may_come_and_go() -> None:
    net = frozen()
    with torch.inference_mode():
        first = net(image())
    assert torch.equal(net(image()), first) and len(FakeCapture.made) == 1


def test_failures_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(FakeCapture):
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    net = frozen()
    with pytest.raises(fastsr.InputError, match="at least"):
        net(random_image(1, 3, 4, 4))
    monkeypatch.setattr(_graphs, "Capture", Failing)
    with pytest.raises(fastsr.BackendError, match=r"image \[2, 3, 21, 26\] on cpu.*freeze without cuda_graph"):
        net(image())
    with pytest.raises(fastsr.InputError, match="max_graphs is 0"):
        frozen(max_graphs=0)
    hooked = network("mlrn")
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(fastsr.InputError, match="forward hooks"):
        fastsr.freeze(hooked, cuda_graph=True)


def test_has_no_effect_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graphs, "DEVICES", ("cuda",))
    assert torch.equal(frozen()(image()), fastsr.freeze(network("mlrn"))(image()))
    assert not FakeCapture.made
