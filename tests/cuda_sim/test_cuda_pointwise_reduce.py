"""pointwise_reduce in CUDA C++ against float64: simulated, or on the GPU if there is one. Inference: no gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_pointwise import case
from test_cuda_tf32 import tf32
from tf32_checks import PAIR, convolve, just_below
from torch import Tensor
from torch.nn import functional as F

import fastsr
from fastsr import ops
from fastsr.errors import BackendError

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")

# Channels of the inputs, K, inner channels, batch, height, width: the networks' widths, then maps of several widths,
# one block of channels out, many channels in, the most inside, one pixel.
CASES: tuple[tuple[tuple[int, ...], int, int, int, int, int], ...] = (
    ((52,), 52, 16, 1, 17, 18),
    ((32, 32, 32, 32), 64, 16, 1, 9, 33),
    ((48,), 46, 16, 2, 9, 7),
    ((7, 1, 33), 33, 5, 3, 1, 9),
    ((130, 3), 20, 20, 1, 9, 1),
    ((12,), 7, 32, 2, 1, 1),
)


def run(packed: bool = False) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(w: Tensor, b: Tensor, w1: Tensor, b1: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and conv1 of it without the padding."""
        given = ops.pack_pointwise_reduce(w, b, w1, b1, [x.shape[1] for x in maps]) if packed else None
        y, reduced = ops.pointwise_reduce(maps, w, b, w1, b1, packed=given)
        return y, F.conv2d(y, w1, b1) if reduced is None else reduced[:, : w1.shape[0]]

    return call


def reducing(
    channels: Sequence[int],
    k: int,
    inner: int,
    n: int,
    h: int,
    w: int,
    dtype: torch.dtype = FLOAT,
    layout: str = "nhwc",
) -> list[Tensor]:
    """Both weights and biases, then the maps."""
    weight, bias, *maps = case(channels, k, n, h, w, layout, dtype)
    conv1 = [kc.weight(inner, k, 1, 1, seed=20, dtype=dtype), kc.weight(inner, seed=21, gain=0.3, dtype=dtype)]
    return [weight, bias, *conv1, *maps]


def on_device(tensors: list[Tensor]) -> list[Tensor]:
    return [kc.moved(t, DEVICE) for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", (False, True), ids=("unpacked", "packed"))
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_twice_rule(sizes: tuple, packed: bool, dtype: torch.dtype) -> None:
    kc.assert_twice_rule(run(packed), reducing(*sizes, dtype), "cuda", gradients=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize("channels", ((7, 10), (16, 24)), ids=str)
def test_layouts(channels: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    """Channels one, two and 16 bytes at a time."""
    kc.assert_twice_rule(run(), reducing(channels, 20, 6, 2, 9, 11, dtype, layout), "cuda", gradients=False)


@pytest.mark.parametrize("allowed", (False, True), ids=("ieee", "tf32"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_map_is_that_of_pointwise(dtype: torch.dtype, allowed: bool) -> None:
    """Bit by bit; and packing beforehand changes nothing, whatever is allowed then."""
    w, b, w1, b1, *maps = on_device(reducing((32, 20, 5), 52, 16, 1, 19, 21, dtype))
    with fastsr.backend("cuda"), torch.no_grad():
        packed = ops.pack_pointwise_reduce(w, b, w1, b1, [32, 20, 5])
        assert packed is not None and packed.dtype == torch.uint8
        with tf32(allowed):
            y, reduced = ops.pointwise_reduce(maps, w, b, w1, b1)
            again = ops.pointwise_reduce(maps, w, b, w1, b1, packed=packed)
            assert torch.equal(y, ops.pointwise(maps, w, b))
    assert reduced is not None and again[1] is not None
    assert torch.equal(y, again[0]) and torch.equal(reduced, again[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_reduced_is_the_map_as_it_was_rounded(dtype: torch.dtype) -> None:
    w, b, w1, b1, *maps = on_device(reducing((32, 20), 52, 16, 1, 9, 21, dtype))
    with fastsr.backend("cuda"), torch.no_grad():
        y, reduced = ops.pointwise_reduce(maps, w, b, w1, b1)
    assert reduced is not None
    exact = F.conv2d(y.double(), w1.double(), b1.double())
    roundings = 8 if dtype == FLOAT else 0.5  # sums of float32 round at every step
    assert (reduced - exact).abs().max() < roundings * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("packed", (False, True), ids=("unpacked", "packed"))
@pytest.mark.parametrize("rounds", (True, False))
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_errors_in_tf32_are_what_rounding_the_operands_allows(sizes: tuple, rounds: bool, packed: bool) -> None:
    """Of conv1 given y; without `rounds` of weights that rounding hardly changes, and y of numbers of TF32."""
    w, b, w1, b1, *maps = reducing(*sizes)
    if not rounds:
        b, maps[1:] = torch.zeros_like(b), [torch.zeros_like(x) for x in maps[1:]]
        w = torch.eye(*w.shape[:2])[..., None, None]
        w1 = just_below(w1.shape, 20)
    tensors = on_device([w, b, w1, b1, *maps])
    with fastsr.backend("cuda"), tf32(True), torch.no_grad():
        y, reduced = (t.cpu().double() for t in run(packed)(*tensors))
    share = PAIR if rounds else 2**-18
    expected = convolve(y, w1.double()) + b1.double().view(1, -1, 1, 1)
    allowed = share * convolve(y.abs(), w1.double().abs()) + 2**-20 * (1 + expected.abs())
    error = (reduced - expected).abs()
    assert (error <= allowed).all() and (not rounds or error.max() > allowed.max() / 100)


def test_the_padding_is_zero() -> None:
    with fastsr.backend("cuda"), torch.no_grad():
        for dtype in DTYPES:
            for inner, padded in ((5, 16), (20, 32)):
                w, b, w1, b1, *maps = on_device(reducing((12,), 40, inner, 2, 5, 20, dtype))
                _, reduced = ops.pointwise_reduce(maps, w, b, w1, b1)
                assert reduced is not None and reduced.shape == (2, padded, 5, 20) and not reduced[:, inner:].any()
                assert reduced.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ("ieee", "tf32", "half"))
def test_repeats_are_bit_equal_whatever_the_order_of_threads(precision: str) -> None:
    tensors = on_device(reducing((40, 18), 58, 16, 2, 18, 17, HALF if precision == "half" else FLOAT))
    with tf32(precision == "tf32"):
        first = kc.results(run(), tensors, "cuda", gradients=False)
        try:
            for simulator.seed in (1, 2):
                again = kc.results(run(), tensors, "cuda", gradients=False)
                assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        finally:
            simulator.seed = 0


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_nan_and_inf_stay_where_they_belong(dtype: torch.dtype, value: float) -> None:
    tensors = on_device(reducing((30, 28), 52, 16, 1, 12, 30, dtype))
    tensors[5][0, 27, 7, 15] = value
    with fastsr.backend("cuda"), torch.no_grad():
        results = run()(*tensors)
    elsewhere = torch.ones(12, 30, dtype=torch.bool)
    elsewhere[7, 15] = False
    for result in results:
        assert not result[:, :, 7, 15].isfinite().any() and result[:, :, elsewhere].isfinite().all()


@pytest.mark.parametrize("packed", (False, True), ids=("unpacked", "packed"))
@pytest.mark.parametrize("size", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_empty(size: tuple[int, int, int], packed: bool) -> None:
    y, reduced = kc.results(run(packed), on_device(reducing((5, 11), 8, 16, *size)), "cuda", gradients=False)
    assert y.shape == (size[0], 8, *size[1:]) and reduced.shape == (size[0], 16, *size[1:])


def test_float32_weights_beside_a_half_map() -> None:
    """As under autocast; what is packed for float32 maps is not taken."""
    w, b, w1, b1, x = on_device(reducing((16,), 20, 8, 1, 6, 7))
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF), torch.no_grad():
        packed = ops.pack_pointwise_reduce(w, b, w1, b1, [16])
        y, reduced = ops.pointwise_reduce((x.half(),), w, b, w1, b1, packed=packed)
    assert reduced is not None and y.dtype == reduced.dtype == HALF
    expected = F.conv2d(y.float(), w1, b1)
    assert (reduced[:, :8] - expected).abs().max() < 2e-3 * expected.abs().max()


def test_what_does_not_fit_is_pointwise() -> None:
    """More than 64 channels, more than 32 inside the ESA, autograd, the reference."""
    for k, inner in ((65, 8), (8, 33)):
        w, b, w1, b1, *maps = on_device(reducing((8, 4), k, inner, 1, 5, 6))
        with fastsr.backend("cuda"), torch.no_grad():
            assert ops.pack_pointwise_reduce(w, b, w1, b1, [8, 4]) is None
            assert ops.pointwise_reduce(maps, w, b, w1, b1)[1] is None
    kc.assert_twice_rule(run(), reducing((12, 3), 12, 5, 1, 9, 7), "cuda")
    w, b, w1, b1, *maps = on_device(reducing((1,) * 17, 8, 8, 1, 5, 6))
    with fastsr.backend("reference"):
        assert ops.pack_pointwise_reduce(w, b, w1, b1, [1] * 17) is None
        assert ops.pointwise_reduce(maps, w, b, w1, b1)[1] is None
    with fastsr.backend("cuda"), torch.no_grad(), pytest.raises(BackendError, match="17 inputs exceed 16"):
        ops.pointwise_reduce(maps, w, b, w1, b1)


def test_wrong_arguments_are_named() -> None:
    w, b, w1, b1, x, y = on_device(reducing((12, 3), 10, 5, 1, 5, 6))
    weights = {"weight": w, "bias": b, "conv1_weight": w1, "conv1_bias": b1}
    with fastsr.backend("cuda"), torch.no_grad():
        for name, value in weights.items():
            given = {**weights, name: value[..., :0]}.values()
            with pytest.raises(fastsr.InputError, match=f"^pointwise_reduce: {name} has shape"):
                ops.pointwise_reduce((x, y), *given)
            with pytest.raises(fastsr.InputError, match=f"^pack_pointwise_reduce: {name} has shape"):
                ops.pack_pointwise_reduce(*given, [12, 3])
        with pytest.raises(fastsr.InputError, match=r"^pointwise_reduce: inputs\[1\] has shape"):
            ops.pointwise_reduce((x, y[:, :, 1:]), w, b, w1, b1)
        with pytest.raises(fastsr.InputError, match=r"channels is \[15, 0\]"):
            ops.pack_pointwise_reduce(w, b, w1, b1, [15, 0])
        with pytest.raises(fastsr.InputError, match="weight has shape"):
            ops.pack_pointwise_reduce(w, b, w1, b1, [12, 4])


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_fakes_and_layouts(layout: str) -> None:
    w, b, w1, b1, *maps = on_device(reducing((10, 3), 12, 7, 2, 3, 5, HALF, layout))
    names = torch.ops.fastsr
    with fastsr.backend("cuda"):
        packed = names.pointwise_reduce_pack(w, b, w1, b1, [10, 3])
        calls = ((names.pointwise_reduce, (maps, w, b, w1, b1)), (names.pointwise_reduce_packed, (maps, packed, 12, 7)))
        for operator, arguments in calls:
            torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))
            y, _ = operator(*arguments)
            memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
            assert y.is_contiguous(memory_format=memory_format)


def test_the_private_operators_know_tf32() -> None:
    """Behind the accuracy of GELU, which they have no use for."""
    for name in ("_cuda_pointwise_reduce", "_cuda_pointwise_reduce_packed"):
        schema = getattr(torch.ops.fastsr, name).default._schema
        assert [a.name for a in schema.arguments[-2:]] == ["accuracy", "tf32"]
