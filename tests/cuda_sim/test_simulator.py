"""The simulator itself: it computes what a GPU would, and finds what is wrong on purpose."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import simulator
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("host_compiler")

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def probes(host_compiler: None) -> ctypes.CDLL:
    library = ctypes.CDLL(str(simulator.build(simulator.HERE / "probes.cpp", "-O1")))
    for name in ("reverse", "multiply", "load_and_multiply", "gelu", "round"):
        getattr(library, f"probe_{name}").restype = ctypes.c_char_p
    return library


def pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def reverse(probes: ctypes.CDLL, which: int, seed: int = 0) -> tuple[str | None, bool]:
    """The error, and whether the result is right."""
    x, y = torch.arange(256.0), torch.zeros(256)
    error = probes.probe_reverse(pointer(x), pointer(y), which, ctypes.c_uint(seed))
    return None if error is None else error.decode(), torch.equal(y, x.flip(0))


@pytest.mark.parametrize("seed", range(4))
def test_a_right_kernel_is_right_in_any_order(probes: ctypes.CDLL, seed: int) -> None:
    assert reverse(probes, 0, seed) == (None, True)


@pytest.mark.parametrize("seed", range(4))
def test_a_missing_barrier_shows(probes: ctypes.CDLL, seed: int) -> None:
    assert reverse(probes, 1, seed) == (None, False)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (2, "a barrier not all threads reach"),
        (3, "a barrier not all threads reach"),
        (4, "a warp waits for lanes that are elsewhere"),
    ],
)
def test_divergence_is_an_error(probes: ctypes.CDLL, which: int, message: str) -> None:
    assert reverse(probes, which)[0] == message


def matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """a [16, 16] and b [16, 8] behind it column by column, and their product."""
    a, b = torch.randn(16, 16).to(dtype).float(), torch.randn(16, 8).to(dtype).float()
    return torch.cat((a.flatten(), b.t().flatten())), (a.double() @ b.double())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("probe", "which"), [("multiply", 0), ("load_and_multiply", 0), ("load_and_multiply", 1)])
def test_products_and_matrix_loads(probes: ctypes.CDLL, dtype: torch.dtype, probe: str, which: int) -> None:
    x, expected = matrices(dtype)
    y = torch.full((16, 8), torch.nan)
    assert getattr(probes, f"probe_{probe}")(pointer(x), pointer(y), which, int(dtype == torch.bfloat16)) is None
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_wrong_fragment_shows(probes: ctypes.CDLL) -> None:
    x, expected = matrices(torch.float16)
    y = torch.full((16, 8), torch.nan)
    assert probes.probe_multiply(pointer(x), pointer(y), 1, 0) is None
    assert (y.double() - expected).abs().max() > 0.1


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_is_that_of_torch(probes: ctypes.CDLL, dtype: torch.dtype) -> None:
    x = torch.cat((torch.randn(2000) * 10.0 ** torch.randint(-9, 6, (2000,)), all_halves().abs().float() * 1.0005))
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65519.9, 65520.0, 2**-25, 3 * 2**-26]
    x = torch.cat((x, torch.tensor(special)))
    y = torch.empty_like(x)
    assert probes.probe_round(pointer(x), pointer(y), x.numel(), int(dtype == torch.bfloat16)) is None
    torch.testing.assert_close(y, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def all_halves() -> Tensor:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    return every[every.isfinite()]


# The largest absolute errors over all finite float16 numbers, as docs/gelu.md gives them.
FORMS, BOUNDS = ("tail", "bump9", "bump6", "tanh", "derivative"), (3e-7, 3.6e-5, 5.6e-4, 2.8e-5, 5e-7)


@pytest.mark.parametrize("form", range(5), ids=FORMS)
def test_gelu(probes: ctypes.CDLL, form: int) -> None:
    x = torch.cat((all_halves().float(), torch.tensor([torch.inf, -torch.inf, torch.nan])))
    y = torch.empty_like(x)
    assert probes.probe_gelu(pointer(x), pointer(y), x.numel(), form) is None
    finite, y_finite = x[:-3].double(), y[:-3].double()
    phi = torch.special.ndtr(finite)
    exact = finite * phi
    if FORMS[form] != "derivative":
        assert y[-3] == torch.inf and y[-1].isnan()
        if FORMS[form] != "tanh":  # infinity minus infinity, as in PyTorch
            assert y[-2].abs() < 1e-7  # fused multiply-adds leave 1.7e-8 where the bumps would be 0
    else:
        exact = phi + finite * (-0.5 * finite**2).exp() / (2 * torch.pi) ** 0.5
    near = finite.abs() < 100  # beyond, rounding the result to float32 counts for more
    assert (y_finite - exact)[near].abs().max() < BOUNDS[form]
    torch.testing.assert_close(y_finite[~near], exact[~near], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("source", ("sanitized.cpp", "sanitized_maps.cpp"))
def test_address_sanitizer_finds_nothing_and_finds_what_is_there(host_compiler: None, source: str) -> None:
    program = simulator.build(simulator.HERE / source, "-O1", "-fsanitize=address", shared=False)
    # The fibers' stacks lie on the heap, which the sanitizer need not know.
    environment = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)

    clean, wrong = run(), run("wrong")
    assert (clean.returncode, clean.stdout) == (0, "clean\n"), clean.stderr[-3000:]
    assert wrong.returncode != 0 and "heap-buffer-overflow" in wrong.stderr
