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
    plain = ("reverse", "copy", "multiply", "load_and_multiply", "gelu", "round")
    for name in (*plain, "round_tf32", "multiply_tf32", "lane_product", "pass", "count"):
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


@pytest.mark.parametrize("which", range(3))
def test_an_access_that_is_not_aligned_is_an_error(probes: ctypes.CDLL, which: int) -> None:
    x, y = torch.randn(136), torch.zeros(136)
    assert probes.probe_copy(pointer(x), pointer(y), which, 1) == b"an access that is not aligned"
    assert probes.probe_copy(pointer(x), pointer(y), which, 0) is None
    assert torch.equal(y[:32], x[:32])


def pass_on(probes: ctypes.CDLL, which: int, seed: int = 0) -> tuple[str | None, bool]:
    """The error, and whether the result is right."""
    x, y = torch.arange(256.0), torch.zeros(256)
    error = probes.probe_pass(pointer(x), pointer(y), which, ctypes.c_uint(seed))
    return None if error is None else error.decode(), torch.equal(y, x.view(4, 64).flip(1).flatten())


@pytest.mark.parametrize("seed", range(6))
def test_warps_wait_for_each_other_at_named_barriers(probes: ctypes.CDLL, seed: int) -> None:
    assert pass_on(probes, 0, seed) == (None, True)


def test_a_named_barrier_at_the_wrong_place_or_forgotten_shows(probes: ctypes.CDLL) -> None:
    assert (None, False) in [pass_on(probes, 1, seed) for seed in range(6)]
    errors = {pass_on(probes, 2, seed)[0] for seed in range(6)}
    assert "a warp comes to barrier 1 again before it opens" in errors


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (3, "barrier 1 is of 128 threads for some and of 96 for others"),
        (4, "the lanes of a warp do different things together"),
        (5, "the lanes of a warp come to different barriers"),
        (6, "barrier 1 never opens: 64 of 128 threads have come"),
        (7, "barrier 1 never opens: 96 of 128 threads have come"),
        (8, "barrier 2 never opens: 64 of 128 threads have come"),
        (9, "barrier 16 does not exist; take one of 1 to 15"),
        (10, "barrier 1 never opens: 64 of 128 threads have come"),
    ],
)
def test_wrong_named_barriers_are_errors(probes: ctypes.CDLL, which: int, message: str) -> None:
    assert pass_on(probes, which)[0] == message
    assert pass_on(probes, 0) == (None, True)  # nothing is left of the failure


def test_named_barriers_are_of_whole_warps_of_the_block(probes: ctypes.CDLL) -> None:
    assert probes.probe_count(64) is None and probes.probe_count(32) is None
    for threads in (0, 48, 96):
        expected = f"barrier 1 is of {threads} threads, not whole warps of the block's 64"
        assert probes.probe_count(threads).decode() == expected


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


def rounded_to_tf32(x: Tensor) -> Tensor:
    """Of finite numbers, to nearest with ties away from zero: an independent definition, in float64."""
    mantissa, exponent = x.double().abs().frexp()
    return (torch.sign(x.double()) * ((mantissa * 2**11 + 0.5).floor() / 2**11).ldexp(exponent)).float()


def test_rounding_to_tf32(probes: ctypes.CDLL) -> None:
    steps = 1 + torch.arange(-4.0, 5.0) * 2**-11  # ties among them
    x = torch.cat((torch.randn(4000) * 10.0 ** torch.randint(-30, 30, (4000,)), steps, -steps, torch.zeros(2)))
    y = torch.empty_like(x)
    assert probes.probe_round_tf32(pointer(x), pointer(y), x.numel()) is None
    assert torch.equal(y, rounded_to_tf32(x))
    special = torch.tensor([torch.inf, -torch.inf, torch.nan])
    y = torch.empty_like(special)
    assert probes.probe_round_tf32(pointer(special), pointer(y), 3) is None
    assert torch.equal(y[:2], special[:2]) and y[2].isnan()


def test_products_in_tf32_need_rounded_numbers(probes: ctypes.CDLL) -> None:
    """Just below numbers of TF32, rounding is nearly exact, and cutting off what is wrong by a unit shows."""
    a, b = (torch.randn(rows, 8).half().float() * (1 - 2**-20) for rows in (16, 8))
    expected = a.double() @ b.double().T
    memory = torch.cat((a.flatten(), b.flatten()))
    errors = []
    for which in range(4):
        y = torch.full((16, 8), torch.nan)
        assert probes.probe_multiply_tf32(pointer(memory), pointer(y), which) is None
        errors.append((y - expected).abs().max().item())
    assert errors[0] < 2e-5 and min(errors[1:3]) > 5e-4 and errors[3] > 0.1


@pytest.mark.parametrize("channels", (32, 58, 64, 7, 100))
@pytest.mark.parametrize("form", range(4), ids=("float32", "float16", "bfloat16", "tf32"))
def test_products_of_what_lanes_hold(probes: ctypes.CDLL, form: int, channels: int) -> None:
    """In TF32 of numbers that rounding hardly changes, and cutting off by a unit."""
    torch.manual_seed(channels)
    dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float16)[form]
    x, w = (torch.randn(rows, channels).to(dtype).float() * (1 - 2**-20 if form == 3 else 1) for rows in (16, 32))
    memory, y = torch.cat((x.flatten(), w.flatten())), torch.full((16, 32), torch.nan)
    assert probes.probe_lane_product(pointer(memory), pointer(y), channels, form) is None
    bound = (2**-18 if form == 3 else 2**-20) * (x.abs().double() @ w.abs().double().T)
    assert ((y - x.double() @ w.double().T).abs() <= bound).all()


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


@pytest.mark.parametrize("source", ("sanitized", "sanitized_conv", "sanitized_maps"))
def test_address_sanitizer_finds_nothing_and_finds_what_is_there(host_compiler: None, source: str) -> None:
    program = simulator.build(simulator.HERE / f"{source}.cpp", "-O1", "-fsanitize=address", shared=False)
    # The fibers' stacks lie on the heap, which the sanitizer need not know.
    environment = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)

    clean, wrong = run(), run("wrong")
    assert (clean.returncode, clean.stdout) == (0, "clean\n"), clean.stderr[-3000:]
    assert wrong.returncode != 0 and "heap-buffer-overflow" in wrong.stderr
