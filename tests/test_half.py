"""Half precision is safe, where the official code returns NaN only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import ops, reference
from fastsr._dispatch import OPERATORS
from fastsr.imresize import imresize


def low_resolution(shared: Path, name: str, scale: int) -> Tensor:
    """The bicubic LR of a Set5 image as [1, 3, H, W] in 0..1."""
    pytest.importorskip("cv2", reason="needs opencv-python-headless")
    from fastsr.imageio import read_image

    hr = read_image(shared / "data" / "set5" / f"{name}.png").rgb
    height, width = (extent // scale * scale for extent in hr.shape[:2])
    lr = imresize(hr[:height, :width], size=(height // scale, width // scale))
    return torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("checkpoint", ("net_g_ALKDN_x4", "net_g_BSRN_x4", "rlfn_x4"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_official_networks_on_set5(shared: Path, checkpoint: str, dtype: torch.dtype) -> None:
    """float16 is within 1 grey level of float32; bfloat16, with 3 digits less, within 50 dB."""
    nets = [fastsr.load(shared / "weights" / f"{checkpoint}.pth", dtype=d) for d in (torch.float32, dtype)]
    for name in ("baby", "bird", "butterfly", "head", "woman"):
        outputs = []
        for net, precision in zip(nets, (torch.float32, dtype), strict=True):
            x = low_resolution(shared, name, 4) * net.input_range
            with torch.inference_mode():
                y = net(x.to(precision)).float() / net.input_range
            outputs.append((y.clamp(0, 1) * 255).round())
        difference = outputs[1] - outputs[0]
        if dtype == torch.float16:
            assert difference.abs().max() <= 1, name
        else:
            assert 10 * torch.log10(255**2 / difference.square().mean()) >= 50, name


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32, torch.float64))
@pytest.mark.parametrize("backend", ("auto", "reference"))
def test_cca_of_a_large_map_does_not_overflow(dtype: torch.dtype, backend: str) -> None:
    """The sum of squares of 128 x 128 values around 40 is far beyond float16."""
    x = (torch.randn(1, 8, 128, 128, dtype=torch.float64) + 40).to(dtype)
    w = [torch.randn(s, dtype=torch.float64).to(dtype) * 0.1 for s in ((2, 8, 1, 1), (2,), (8, 2, 1, 1), (8,))]
    with fastsr.backend(backend):
        y = ops.cca_norm(x, torch.zeros_like(x), *w)
    exact = reference.cca_norm(x.double(), torch.zeros_like(x).double(), *(t.double() for t in w))
    torch.testing.assert_close(y.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("backend", ("auto", "reference"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32, torch.float64))
def test_cca_gradient_of_a_constant_map_is_finite(dtype: torch.dtype, backend: str) -> None:
    x = torch.full((1, 8, 16, 16), 0.5, dtype=dtype)
    x[:, 1] = torch.rand(16, 16, dtype=torch.float64).to(dtype)  # one channel that varies
    x.requires_grad_()
    w = [
        torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in ((2, 8, 1, 1), (2,), (8, 2, 1, 1), (8,))
    ]
    with fastsr.backend(backend):
        ops.cca_norm(x, torch.zeros_like(x), *w).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad[:, 1].any()
    assert all(t.grad is not None and t.grad.isfinite().all() for t in w)


def test_whole_network_trains_on_a_constant_image() -> None:
    net = fastsr.create_model("alkdnet", num_block=2, num_feat=16)
    net(torch.full((1, 3, 16, 16), 0.25)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", ("alkdnet", "bsrn", "mlrn", "rlfn"))
def test_autocast_reaches_the_whole_network(cpu_kernels: None, name: str, dtype: torch.dtype) -> None:
    """Maps inside have autocast's dtype, the result that of plain PyTorch, the weights float32 gradients."""
    net = fastsr.create_model(name, scale=2, num_feat=16, num_block=2)
    x = torch.rand(1, 3, 20, 21)
    exact = net.double()(x.double()).detach()
    net.float()
    seen = []
    handle = next(m for path, m in net.named_modules() if path in ("B2", "block_2")).register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    results = []
    for backend in ("cpu", "reference"):
        with fastsr.backend(backend), torch.autocast("cpu", dtype), pytest.MonkeyPatch.context() as patch:
            for op in OPERATORS if backend == "cpu" else ():
                patch.delattr(reference, op)  # the kernels run, all of them
            results.append(net(x))
    handle.remove()
    fused, plain = results
    assert seen == [dtype, dtype] and fused.dtype == plain.dtype
    limit = 2 * (plain.double() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
    assert (fused.double() - exact).abs().max() <= limit
    fused.float().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
