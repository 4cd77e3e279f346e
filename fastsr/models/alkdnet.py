"""ALKDNet, and BSRN, whose frame it uses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from fastsr import ops
from fastsr.errors import InputError
from fastsr.models.base import SuperResolutionNet, resolve_scale
from fastsr.nn import ALKDB, ESDB, ALKConv, BSConvU, PixelShuffleUp
from fastsr.nn.blocks import parts_of
from fastsr.nn.layers import Fusion, conv3x3, conv_weights, in_autocast_dtype, pack_pointwise
from fastsr.nn.together import Ready, packed_together

COPIES = 4  # the input image is concatenated this many times (ALKDNet, equation 1)


class _BlueprintNet(SuperResolutionNet):
    """fea_conv, blocks B1..Bn, fusion of all block outputs by c1 and c2 (ALKDNet, section 3.1)."""

    c2: ALKConv | BSConvU
    copies = COPIES
    distils_half = True

    def _build_frame(self, num_feat: int, blocks: Sequence[ALKDB | ESDB]) -> None:
        self.num_block = len(blocks)
        self.min_size = max((block.esa.min_size for block in blocks), default=1)
        self.fea_conv = BSConvU(self.num_in_ch * COPIES, num_feat)
        for i, block in enumerate(blocks):
            self.add_module(f"B{i + 1}", block)
        self.c1 = nn.Conv2d(num_feat * len(blocks), num_feat, 1)

    def _features(self, x: Tensor, feature_residual: bool) -> Tensor:
        """Fused deep features [N, num_feat, H, W] of the image."""
        x = in_autocast_dtype(x)
        shallow = y = self.fea_conv(x if self.copies == 1 else cat((x,) * self.copies, 1))
        blocks = [getattr(self, f"B{i + 1}") for i in range(self.num_block)]
        *ready, last = self._packed_together(y, [*blocks, self.c2])
        fusion = Fusion(self.c1, "gelu")
        for block, of_block in zip(blocks, ready, strict=True):
            y = block(y, of_block) if of_block else block(y)
            fusion.add(y)
        if feature_residual and isinstance(self.c2, BSConvU):
            return self.c2(fusion.result(), shortcut=shallow)
        fused = self.c2(fusion.result(), ready=last[0]) if last else self.c2(fusion.result())
        return fused + shallow if feature_residual else fused

    def _packed_together(self, x: Tensor, modules: Sequence[nn.Module]) -> list[list[Ready]]:
        """What to hand each of these that takes a map like x: its weights, packed by one launch for all of them."""
        if not ops.fuses_on_cuda("alk_conv", x):
            return [[] for _ in modules]
        return packed_together(x, [parts_of(module) for module in modules])

    def pack(self) -> None:
        """Pack the weights of the parts that gain by it; later changes of them have no effect."""
        self.fea_conv.pack()
        for i in range(self.num_block):
            getattr(self, f"B{i + 1}").pack()
        pack_pointwise(self.c1)
        self.c2.pack()

    def fold(self) -> None:
        """Let the head take the image once, with the sum of the weights of its copies; for inference only."""
        pw = self.fea_conv.pw
        weight = pw.weight.detach().double().unflatten(1, (self.copies, self.num_in_ch)).sum(1)
        pw.weight = nn.Parameter(weight.to(pw.weight.dtype), requires_grad=False)
        pw.in_channels, self.copies = self.num_in_ch, 1


class ALKDNet(_BlueprintNet):
    """Asymmetric large-kernel distillation network (Qu and Ke 2024), with the official state-dict names.

    Args:
        num_in_ch, num_out_ch: image channels.
        num_feat: feature channels, even.
        num_block: number of ALKDBs.
        upscale, scale: the enlargement, under either name.
        conv: "LargeKernelConv", or "BSConvU" for the ablation with BSRN's convolution.
        lk_size: odd kernel of the asymmetric convolutions (table 1: 5, 7, 9, 11).
        feature_residual: residual learning in feature space, FSRL (table 2).
        anchor_residual: anchor-based residual learning, ABRL (table 2).
        pixel_norm: pixel norm at the end of each block (table 3).
        esa_channels: inner channels of the ESA.
        input_range: the value of white.

    Raises:
        InputError: an argument is outside what is listed.
    """

    architecture = "alkdnet"

    def __init__(
        self,
        num_in_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 8,
        num_out_ch: int = 3,
        upscale: int | None = None,
        conv: str = "LargeKernelConv",
        lk_size: int = 9,
        *,
        scale: int | None = None,
        feature_residual: bool = True,
        anchor_residual: bool = True,
        pixel_norm: bool = True,
        esa_channels: int = 16,
        input_range: float = 1.0,
    ) -> None:
        scale = resolve_scale(scale, upscale)
        if conv not in ("LargeKernelConv", "BSConvU"):
            raise InputError(f"conv is {conv!r}; pass 'LargeKernelConv' or 'BSConvU'")
        config = {
            "num_in_ch": num_in_ch,
            "num_feat": num_feat,
            "num_block": num_block,
            "num_out_ch": num_out_ch,
            "scale": scale,
            "conv": conv,
            "lk_size": lk_size,
            "feature_residual": feature_residual,
            "anchor_residual": anchor_residual,
            "pixel_norm": pixel_norm,
            "esa_channels": esa_channels,
            "input_range": input_range,
        }
        super().__init__(scale, num_in_ch, input_range, config)
        large = conv == "LargeKernelConv"
        blocks: list[ALKDB | ESDB] = [
            ALKDB(num_feat, lk_size, esa_channels, pixel_norm)
            if large
            else ESDB(num_feat, esa_channels, pixel_norm, conv2_padding=1)
            for _ in range(num_block)
        ]
        self._build_frame(num_feat, blocks)
        self.c2 = ALKConv(num_feat, num_feat, 3) if large else BSConvU(num_feat, num_feat)
        self.c_up = conv3x3(num_feat, num_out_ch * scale * scale)
        self.feature_residual = feature_residual
        self.anchor_residual = anchor_residual

    def enlarge(self, x: Tensor) -> Tensor:
        return ops.upsample(
            self._features(x, self.feature_residual),
            *conv_weights(self.c_up),
            x,
            scale=self.scale,
            residual="anchor" if self.anchor_residual else "none",
        )


class _OneStepUp(nn.Module):
    """Holds BSRN's tail under its official name, `upsampler.upsampleOneStep.0`."""

    def __init__(self, num_feat: int, num_out_ch: int, scale: int) -> None:
        super().__init__()
        self.upsampleOneStep = PixelShuffleUp(num_feat, num_out_ch, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsampleOneStep(x)


class BSRN(_BlueprintNet):
    """Blueprint separable residual network (Li et al. 2022), with the official state-dict names.

    Args:
        num_in_ch, num_out_ch: image channels.
        num_feat: feature channels, even.
        num_block: number of ESDBs.
        upscale, scale: the enlargement, under either name.
        esa_channels: inner channels of the ESA.
        input_range: the value of white.

    Raises:
        InputError: an argument is outside what is listed.
    """

    architecture = "bsrn"

    def __init__(
        self,
        num_in_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 8,
        num_out_ch: int = 3,
        upscale: int | None = None,
        *,
        scale: int | None = None,
        esa_channels: int = 16,
        input_range: float = 1.0,
    ) -> None:
        scale = resolve_scale(scale, upscale)
        config = {
            "num_in_ch": num_in_ch,
            "num_feat": num_feat,
            "num_block": num_block,
            "num_out_ch": num_out_ch,
            "scale": scale,
            "esa_channels": esa_channels,
            "input_range": input_range,
        }
        super().__init__(scale, num_in_ch, input_range, config)
        self._build_frame(num_feat, [ESDB(num_feat, esa_channels) for _ in range(num_block)])
        self.c2 = BSConvU(num_feat, num_feat)
        self.upsampler = _OneStepUp(num_feat, num_out_ch, scale)

    def enlarge(self, x: Tensor) -> Tensor:
        return self.upsampler(self._features(x, feature_residual=True))
