"""What every operator owes on a GPU, by both kinds of kernels. Needs a GPU: `pytest tests/gpu`.

Layouts, opcheck, repeated runs beside other work, streams and devices, torch.compile, CUDA graphs of forward and
backward, and maps of more than 2^31 elements. The operators' own files beside this one hold more sizes and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_checks import assert_twice_rule, float32_precision, results
from operator_cases import BUILDERS, build
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import fastsr

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
IMAGE = (1, 58, 181, 317)  # odd sizes, channels that are no power of two
GIB = 2**30


@pytest.fixture(params=("cuda", "triton"))
def backend(request: pytest.FixtureRequest) -> str:
    name = request.getfixturevalue("name").removesuffix("_plain").removesuffix("_blueprint")
    reason = fastsr.can_run(name, request.param, torch.empty(1, 64, 16, 16, device="cuda"))
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


by_operator = pytest.mark.parametrize("name", BUILDERS)


def case(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str = "nhwc"
) -> tuple[Callable[..., Any], list[Tensor]]:
    function, tensors, _ = build(name, shape, layout, dtype)
    return function, [t.cuda() if layout == "nhwc" else t for t in tensors.values()]


@by_operator
@pytest.mark.parametrize("layout", ("nchw", "channel_slice", "pixel_slice"))
def test_layouts_at_an_images_size(name: str, layout: str, backend: str) -> None:
    assert_twice_rule(*case(name, IMAGE, HALF, layout), backend)


@pytest.mark.parametrize("name", ("bsconv",))
@pytest.mark.parametrize("shape", ((16, 64, 48, 48), IMAGE), ids=("patches", "image"))
@pytest.mark.parametrize("dtype", (FLOAT, HALF, BFLOAT), ids=str)
def test_twice_rule(name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, backend: str) -> None:
    with float32_precision("ieee"):
        assert_twice_rule(*case(name, shape, dtype), backend)


class _Calls(TorchDispatchMode):
    """Records the calls of fastsr's public operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("fastsr::") and "::_" not in func.name():
            self.calls[func.name().split(".")[0]] = (func, args)
        return func(*args, **(kwargs or {}))


@by_operator
def test_opcheck(name: str, backend: str) -> None:
    function, inputs = case(name, (2, 16, 17, 19), FLOAT)
    with _Calls() as recorded:
        results(function, inputs, backend)
    forward = [call for op, call in recorded.calls.items() if not op.endswith("_backward")]
    backward = [call for op, call in recorded.calls.items() if op.endswith("_backward")]
    assert len(forward) == len(backward) == 1

    def leaf(value: Any) -> Any:
        return value.detach().clone().requires_grad_() if isinstance(value, Tensor) else value

    with fastsr.backend(backend):
        (operator, arguments), (adjoint, its_arguments) = forward[0], backward[0]
        torch.library.opcheck(operator, tree_map(leaf, arguments))
        its_arguments = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, its_arguments)
        torch.library.opcheck(adjoint, its_arguments, test_utils=("test_schema", "test_faketensor"))


@by_operator
@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_twenty_runs_beside_other_work_are_bit_equal(name: str, dtype: torch.dtype, backend: str) -> None:
    """A race would show: the other stream's products change which programs run together."""
    function, inputs = case(name, (3, 64, 97, 131), dtype)
    noise, busy = torch.randn(1024, 1024, device="cuda"), torch.cuda.Stream()
    first = results(function, inputs, backend)
    for run in range(20):
        with torch.cuda.stream(busy):
            for _ in range(run % 5):
                noise = (noise @ noise).tanh()
        assert all(torch.equal(a, b) for a, b in zip(first, results(function, inputs, backend), strict=True))


@by_operator
def test_streams(name: str, backend: str) -> None:
    """Several at once: each call runs on the stream that is current, its scratch memory is its own."""
    cases = [case(name, (1, 64, 61 + i, 79), HALF) for i in range(4)]
    expected = [results(*c, backend) for c in cases]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in cases], []
    for stream, c in zip(streams, cases, strict=True):
        with torch.cuda.stream(stream):
            found.append(results(*c, backend))
    torch.cuda.synchronize()
    for want, have in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(want, have, strict=True))


@by_operator
def test_other_device(name: str, backend: str) -> None:
    """The kernels run on the device of their maps, whatever the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    function, inputs = case(name, (2, 64, 33, 37), HALF)
    expected = results(function, inputs, backend)
    found = results(function, [t.to("cuda:1") for t in inputs], backend)
    assert all(torch.equal(a, b.to("cuda:0")) for a, b in zip(expected, found, strict=True))


@by_operator
def test_compiles_in_one_graph_for_any_size(name: str, backend: str) -> None:
    torch._dynamo.reset()
    function, inputs = case(name, (2, 16, 24, 27), HALF)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    results(compiled, inputs, backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((3, 16, 31, 25), (2, 16, 40, 52)):
            inputs = case(name, shape, HALF)[1]
            pairs = zip(results(function, inputs, backend), results(compiled, inputs, backend), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@by_operator
def test_graph_of_forward_and_backward_replays_on_changed_inputs(name: str, backend: str) -> None:
    function, inputs = case(name, (4, 64, 48, 48), HALF)
    leaves = [t.detach().requires_grad_() for t in inputs]

    def step() -> tuple[Tensor, ...]:
        out = function(*leaves)
        outputs = out if isinstance(out, tuple) else (out,)
        return (*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs]))

    with fastsr.backend(backend):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            leaves[0].copy_(torch.randn_like(leaves[0]))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def within_roundings(a: Tensor, b: Tensor) -> bool:
    """Equal to a few roundings of their dtype at the results' scale."""
    return bool((a.float() - b.float()).abs().max() <= 8 * torch.finfo(a.dtype).eps * b.float().abs().max())


def skip_unless_free(gib: int) -> None:
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} are free")


@by_operator
def test_more_elements_than_32_bits_count(name: str, backend: str) -> None:
    """Output and gradient of the last image of a large batch are those of the image alone."""
    skip_unless_free(70)
    side = 968
    function, tensors, maps = build(name, (1, 64, side, side), "nhwc", HALF)
    count = 2**31 // (64 * side * side) + 1
    alone = {key: t.cuda() for key, t in tensors.items()}
    batch = {key: t.repeat(count, 1, 1, 1) if key in maps else t for key, t in alone.items()}
    assert batch["x"].numel() > 2**31
    found = []
    for given in (alone, batch):
        x = given["x"].contiguous(memory_format=torch.channels_last).requires_grad_()
        with fastsr.backend(backend):
            out = function(x, *(t for key, t in given.items() if key != "x"))
            first = out[0] if isinstance(out, tuple) else out
            (dx,) = torch.autograd.grad(first, x, torch.ones_like(first))
        found.append((first[-1].detach().clone(), dx[-1].clone()))
        del out, first, dx, x
    assert all(within_roundings(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    "name", ("alk_conv", "alk_stage", "bsconv", "conv3x3_gelu", "conv_mix", "pixel_norm", "pointwise")
)
def test_more_elements_than_32_bits_count_in_one_image(name: str, backend: str) -> None:
    """The last rows of an image are those of the rows alone."""
    skip_unless_free(40)
    function, tensors, maps = build(name, (1, 64, 64, 1_001), "nhwc", HALF)
    end = {key: t.cuda() for key, t in tensors.items()}
    tall = {}
    for key, t in end.items():
        tall[key] = t
        if key in maps:
            shape = (1, t.shape[1], 33_600, 1_001)
            tall[key] = torch.zeros(shape, dtype=HALF, device="cuda").to(memory_format=torch.channels_last)
            tall[key][:, :, -64:] = t
    assert tall["x"].numel() > 2**31
    with torch.no_grad(), fastsr.backend(backend):
        a, b = (function(*given.values()) for given in (tall, end))
    a, b = ((out[0] if isinstance(out, tuple) else out)[:, :, -48:] for out in (a, b))
    assert within_roundings(a, b)
