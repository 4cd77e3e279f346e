"""What fastsr does on its own account in one thread, others do not see."""

from __future__ import annotations

import threading
from collections.abc import Callable

import plain_nets as plain
import pytest
import torch
from torch import Tensor, nn

import fastsr

SEEN: dict[str, set[tuple[str, int]]] = {}


def note(where: str) -> None:
    SEEN[where].add((fastsr.current_backend(), torch.get_num_threads()))


def elsewhere(run: Callable[[], object]) -> None:
    """Run this in another thread, to its end."""
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


class Spying(plain.SeparableConv):
    """A part whose forward notes the backend and the number of PyTorch's threads, here and in another thread."""

    def forward(self, fea: Tensor) -> Tensor:
        note("here")
        elsewhere(lambda: note("there"))
        return super().forward(fea)


@pytest.fixture
def spying() -> Spying:
    SEEN.update(here=set(), there=set())
    return Spying(6, 6)


def test_accelerate_forces_its_own_thread_only(spying: Spying) -> None:
    assert fastsr.accelerate(spying).swapped == {"": "BSConvU"}
    assert SEEN["here"] == {("reference", 1)}
    note("there")
    assert SEEN["there"] == {("auto", torch.get_num_threads())}


def test_complexity_forces_its_own_thread_only(spying: Spying) -> None:
    fastsr.complexity(nn.Sequential(nn.Conv2d(3, 6, 1), spying), 8, 8)
    assert {backend for backend, _ in SEEN["here"]} == {"reference"}
    assert {backend for backend, _ in SEEN["there"]} == {"auto"}
    assert fastsr.current_backend() == "auto"


def test_threads_that_accelerate_take_turns() -> None:
    """What is random in a forward is seeded, and the process has one such state."""
    begun = threading.Event()

    class Second(plain.SeparableConv):
        def forward(self, fea: Tensor) -> Tensor:
            begun.set()
            return super().forward(fea)

    done: list[fastsr.AccelerateReport] = []
    second = threading.Thread(target=lambda: done.append(fastsr.accelerate(Second(6, 6))))
    overtaken: list[bool] = []

    class First(plain.SeparableConv):
        def forward(self, fea: Tensor) -> Tensor:
            if not overtaken:
                second.start()
                overtaken.append(begun.wait(1))
            return super().forward(fea)

    assert fastsr.accelerate(First(6, 6)).swapped == {"": "BSConvU"}
    second.join()
    assert overtaken == [False]
    assert [report.swapped for report in done] == [{"": "BSConvU"}]
