"""MLRN, and RLFN, which it grew from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastsr import ops
from fastsr.models.base import SuperResolutionNet, resolve_scale
from fastsr.nn import MLRB, RLFB, PixelShuffleUp, PlainESA
from fastsr.nn.layers import conv3x3, fused_conv3x3, in_autocast_dtype, pack_conv3x3, pad_channels
from fastsr.reference import Activation


class _ResidualNet(SuperResolutionNet):
    """conv_1, blocks block_1..block_n, conv_2 with the residual, pixel-shuffle tail (RLFN, section 3.1)."""

    def _build_frame(self, num_feat: int, num_out_ch: int, blocks: Sequence[MLRB | RLFB]) -> None:
        self.num_block = len(blocks)
        self.min_size = max((block.esa.min_size for block in blocks), default=1)
        self.conv_1 = conv3x3(self.num_in_ch, num_feat)
        for i, block in enumerate(blocks):
            self.add_module(f"block_{i + 1}", block)
        self.conv_2 = conv3x3(num_feat, num_feat)
        self.upsampler = PixelShuffleUp(num_feat, num_out_ch, self.scale)

    def _features(self, x: Tensor) -> Tensor:
        image = in_autocast_dtype(x)
        y = fused_conv3x3(self.conv_1, image)
        # In inference on the CPU the shallow features are computed again from the image, in half a hundredth of the
        # time: kept, they would be a third of the peak memory.
        shallow = None if ops.may_free_early(y) else y
        for i in range(self.num_block):
            y = getattr(self, f"block_{i + 1}")(y)
        if shallow is None:
            return fused_conv3x3(self.conv_2, y, shortcut=fused_conv3x3(self.conv_1, image), overwrite=True)
        return fused_conv3x3(self.conv_2, y, shortcut=shallow)

    def widen(self) -> None:
        """Pad all channels inside to multiples of 8, with weights of zero; for inference only.

        A pixel of 58 or 52 numbers of 16 bits is no multiple of 16 bytes, which is what a thread of a GPU reads best.
        Results are the same, but that an infinite feature becomes NaN a layer earlier.
        """
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                inputs = conv.in_channels if conv is self.conv_1 else -(-conv.in_channels // 8) * 8
                outputs = conv.out_channels if conv is self.upsampler[0] else -(-conv.out_channels // 8) * 8
                pad_channels(conv, inputs, outputs)

    def _may_widen(self) -> bool:
        """Whether CUDA C++ would run, and nobody else sees maps or made parts of this network."""
        own = (type(self), MLRB, RLFB, PlainESA, PixelShuffleUp, nn.Conv2d)
        if any(type(part) not in own or part._forward_hooks or part._forward_pre_hooks for part in self.modules()):
            return False
        return ops.fuses_on_cuda("conv3x3_gelu", self.conv_1.weight)

    def pack(self) -> None:
        """Pack the weights of the parts that gain by it; later changes of them have no effect."""
        if self._may_widen():
            self.widen()
        for conv in (self.conv_1, self.conv_2):
            pack_conv3x3(conv)
        for i in range(self.num_block):
            getattr(self, f"block_{i + 1}").pack()


class MLRN(_ResidualNet):
    """Mixer-based local residual network (Gendy et al. 2023).

    No official weights exist, so the state-dict names are fastsr's own; they follow RLFN's.

    Args:
        num_in_ch, num_out_ch: image channels, equal if `bilinear`.
        num_feat: feature channels (58; 50 in the NTIRE 2023 challenge variant).
        num_block: number of MLRBs (6; 4 in the challenge variant).
        upscale, scale: the enlargement, under either name.
        conv_mix, depthwise_conv: False for the ablations of table 2.
        activation: "gelu", or "leaky_relu" (slope 0.05) for the ablation.
        bilinear: add the bilinearly enlarged input (equation 10); False for the ablation.
        esa_channels: inner channels of the ESA.
        input_range: the value of white, 255.0 in the challenge variant.

    Raises:
        InputError: an argument is outside what is listed.
    """

    architecture = "mlrn"

    def __init__(
        self,
        num_in_ch: int = 3,
        num_feat: int = 58,
        num_block: int = 6,
        num_out_ch: int = 3,
        upscale: int | None = None,
        *,
        scale: int | None = None,
        conv_mix: bool = True,
        depthwise_conv: bool = True,
        activation: Activation = "gelu",
        bilinear: bool = True,
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
            "conv_mix": conv_mix,
            "depthwise_conv": depthwise_conv,
            "activation": activation,
            "bilinear": bilinear,
            "esa_channels": esa_channels,
            "input_range": input_range,
        }
        super().__init__(scale, num_in_ch, input_range, config)
        blocks = [MLRB(num_feat, esa_channels, conv_mix, depthwise_conv, activation) for _ in range(num_block)]
        self._build_frame(num_feat, num_out_ch, blocks)
        self.bilinear = bilinear

    def enlarge(self, x: Tensor) -> Tensor:
        return self.upsampler(self._features(x), x, "bilinear" if self.bilinear else "none")


class RLFN(_ResidualNet):
    """Residual local feature network (Kong et al. 2022), with the official state-dict names.

    Args:
        num_in_ch, num_out_ch: image channels.
        num_feat: feature channels (52; 46 in the NTIRE 2022 challenge variant).
        mid_channels: inner channels of a block, `num_feat` if None (48 in the challenge variant).
        num_block: number of RLFBs (6; 4 in the challenge variant).
        upscale, scale: the enlargement, under either name.
        esa_channels: inner channels of the ESA.
        input_range: the value of white, 255.0 for the official weights.

    Raises:
        InputError: an argument is outside what is listed.
    """

    architecture = "rlfn"

    def __init__(
        self,
        num_in_ch: int = 3,
        num_feat: int = 52,
        num_block: int = 6,
        num_out_ch: int = 3,
        upscale: int | None = None,
        *,
        scale: int | None = None,
        mid_channels: int | None = None,
        esa_channels: int = 16,
        input_range: float = 255.0,
    ) -> None:
        scale = resolve_scale(scale, upscale)
        config = {
            "num_in_ch": num_in_ch,
            "num_feat": num_feat,
            "num_block": num_block,
            "num_out_ch": num_out_ch,
            "scale": scale,
            "mid_channels": mid_channels,
            "esa_channels": esa_channels,
            "input_range": input_range,
        }
        super().__init__(scale, num_in_ch, input_range, config)
        self._build_frame(num_feat, num_out_ch, [RLFB(num_feat, mid_channels, esa_channels) for _ in range(num_block)])

    def enlarge(self, x: Tensor) -> Tensor:
        return self.upsampler(self._features(x))
