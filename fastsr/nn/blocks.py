"""The blocks of the four networks, with the child names of the official checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastsr import ops
from fastsr.nn.attention import CCA, BlueprintESA, PlainESA, eps_of
from fastsr.nn.layers import (
    ALKConv,
    BSConvU,
    Packing,
    PixelNorm,
    child,
    conv3x3,
    conv_weights,
    depthwise,
    fused_conv3x3,
    fused_pointwise,
    pack_conv3x3,
    pack_pointwise,
    packed_weights,
)
from fastsr.nn.together import Ready, packed_together
from fastsr.ops._call import records
from fastsr.reference import Activation


def _is_observed(module: nn.Module) -> bool:
    """Whether a hook sees what this part is given or returns."""
    everywhere = nn.modules.module
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
    )


def _is_free(module: nn.Module) -> bool:
    """Whether a call of this part may be replaced: no hook sees what it is given or returns."""
    known = type(module) in (PlainESA, BlueprintESA, CCA, ALKConv, ALKDB)
    return known and not module.__dict__.get("forward") and not _is_observed(module)


def _is_plain(conv: nn.Module) -> bool:
    """Whether this is BSRN's convolution with nothing changed, and no hook sees it."""
    own = conv.__dict__
    if type(conv) is not BSConvU or own.get("forward") or own.get("stage") or _is_observed(conv):
        return False
    dw = child(conv, "dw")
    return dw.stride == (1, 1) and dw.padding == (1, 1)


def _may_be_ready(conv: ALKConv) -> bool:
    """Whether it is not packed for good, and what it is called by may be replaced."""
    return conv.packed is None and _is_free(conv) and not conv.__dict__.get("stage")


def parts_of(module: nn.Module) -> list[ops.ALKPart]:
    """What may be packed before a block or convolution is called, for its `ready`; nothing where a hook would see."""
    return module.parts() if isinstance(module, (ALKDB, ALKConv)) and _is_free(module) else []


def _may_overwrite(module: nn.Module) -> dict[str, bool]:
    """Keywords that let an attention write over its input, a map made for it, unless a hook may hold on to that."""
    return {"overwrite": True} if _is_free(module) else {}


def _is_recorded(module: nn.Module) -> bool:
    """Whether autograd would record what its parameters do."""
    return records(*module.parameters())


def _reducing(block: _DistillationBlock | _LocalBlock) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The parameters of the last 1x1 in front of the ESA, and of the 1x1 that it begins with."""
    return *conv_weights(block.c5), *conv_weights(block.esa.conv1)


class _DistillationBlock(Packing):
    """Three distillation stages, a fourth convolution, fusion, ESA and CCA (BSRN, section 3.3).

    Packed are the weights of c5 and the ESA's conv1, and of c4 if all three are one operator.
    """

    c1_r: ALKConv | BSConvU
    c2_r: ALKConv | BSConvU
    c3_r: ALKConv | BSConvU
    c4: ALKConv | BSConvU
    pixel_norm: PixelNorm | None

    def __init__(self, num_feat: int, esa_channels: int, conv2_padding: int) -> None:
        super().__init__()
        distilled = num_feat // 2
        self.c1_d = nn.Conv2d(num_feat, distilled, 1)
        self.c2_d = nn.Conv2d(num_feat, distilled, 1)
        self.c3_d = nn.Conv2d(num_feat, distilled, 1)
        self.c5 = nn.Conv2d(4 * distilled, num_feat, 1)
        self.esa = BlueprintESA(num_feat, esa_channels, conv2_padding)
        self.cca = CCA(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        return self._by_parts(x, self._fuses(x))

    def _by_parts(self, x: Tensor, fuses: bool, ready: Sequence[Ready] = ()) -> Tensor:
        """With `ready` those of the four convolutions."""
        d1, r1 = self.c1_r.stage(x, self.c1_d, *ready[:1])
        d2, r2 = self.c2_r.stage(r1, self.c2_d, *ready[1:2])
        d3, r3 = self.c3_r.stage(r2, self.c3_d, *ready[2:3])
        y, reduced = self._condense((d1, d2, d3), r3, fuses, *ready[3:])
        if fuses or self._attends_freely():
            return self.cca.behind(self.esa, y, x, self.pixel_norm, reduced)
        overwrite = _may_overwrite(self.esa)
        y = self.esa(y, **overwrite)
        return self.cca(y, x, self.pixel_norm, **(overwrite and _may_overwrite(self.cca)))

    def _attends_freely(self) -> bool:
        """Whether the calls of both attentions may be replaced."""
        return _is_free(self.esa) and _is_free(self.cca)

    def _fuses(self, x: Tensor) -> bool:
        """Whether the parts behind the stages become fewer operators: on a GPU, in inference, without hooks."""
        if not (ops.fuses_on_cuda("esa", x) or ops.fuses_on_triton("esa", x)):
            return False
        return self._attends_freely() and not _is_recorded(self)

    def _condensing(self) -> ALKConv | None:
        """c4, if by its kind and all sizes it becomes one operator with c5 and the ESA's conv1."""
        c4 = self.c4
        if not isinstance(c4, ALKConv):
            return None
        channels = (conv.out_channels for conv in (c4.pw, self.c5, self.esa.conv1))
        return c4 if ops.fits_condense(c4.LoRA1.kernel_size[0], *channels) else None

    def _condense(
        self, maps: tuple[Tensor, ...], x: Tensor, fuses: bool, ready: Ready | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """c5 of the distilled maps and c4(x); if it fuses, perhaps also what the ESA makes of it first."""
        if not fuses:
            return fused_pointwise(self.c5, (*maps, self.c4(x, activation="gelu"))), None
        c4 = self._condensing()
        if c4 is None:
            own: dict[str, Any] = {"ready": ready} if ready else {}
            maps = (*maps, self.c4(x, activation="gelu", **own))
            return ops.pointwise_reduce(maps, *_reducing(self), packed=self.packed)
        if _is_free(c4):
            weights, packed = ready or (c4.weights(), self.packed)
            return ops.alk_condense(x, maps, weights, *_reducing(self), eps=c4.norm.eps, packed=packed)
        return ops.pointwise_reduce((*maps, c4(x, activation="gelu")), *_reducing(self))

    def pack(self) -> None:
        """Pack the weights of the parts that gain by it; later changes of them have no effect."""
        stages = ((self.c1_r, self.c1_d), (self.c2_r, self.c2_d), (self.c3_r, self.c3_d), (self.c4, None))
        for conv, distil in stages:
            conv.pack(distil)
        c4 = self._condensing()
        if c4 is not None:
            self.packed = ops.pack_alk_condense(c4.weights(), *_reducing(self))
        else:
            channels = [conv.out_channels for conv in (self.c1_d, self.c2_d, self.c3_d, self.c4.pw)]
            self.packed = ops.pack_pointwise_reduce(*_reducing(self), channels)
        pack_pointwise(self.c5)
        self.esa.pack()


class ALKDB(_DistillationBlock):
    """Asymmetric large-kernel distillation block (ALKDNet, section 3.2)."""

    def __init__(
        self,
        num_feat: int = 64,
        lk_size: int = 9,
        esa_channels: int = 16,
        pixel_norm: bool = True,
        conv2_padding: int = 1,
    ) -> None:
        super().__init__(num_feat, esa_channels, conv2_padding)
        self.c1_r = ALKConv(num_feat, num_feat, lk_size)
        self.c2_r = ALKConv(num_feat, num_feat, lk_size)
        self.c3_r = ALKConv(num_feat, num_feat, lk_size)
        self.c4 = ALKConv(num_feat, num_feat // 2, lk_size)
        self.pixel_norm = PixelNorm(num_feat, eps=1e-5) if pixel_norm else None

    def forward(self, x: Tensor, ready: Sequence[Ready] = ()) -> Tensor:
        """`ready`: what `packed_together` made of `parts` for x; by itself a block packs its own."""
        fuses = self._fuses(x)
        if fuses and not ready:
            (ready,) = packed_together(x, [self.parts()])
        return self._by_parts(x, fuses, ready)

    def parts(self) -> list[ops.ALKPart]:
        """Its convolutions with what stands beside each, in order; nothing unless all may be called otherwise."""
        if self.packed is not None or not self._attends_freely():
            return []
        convs = (self.c1_r, self.c2_r, self.c3_r, self.c4)
        ready = [conv for conv in convs if isinstance(conv, ALKConv) and _may_be_ready(conv)]
        if len(ready) < len(convs):
            return []
        distils = (self.c1_d, self.c2_d, self.c3_d)
        beside = [*(conv_weights(distil) for distil in distils), _reducing(self) if self._condensing() else ()]
        return [(conv.weights(), rest) for conv, rest in zip(ready, beside, strict=True)]


class ESDB(_DistillationBlock):
    """Efficient separable distillation block (BSRN, section 3.3); with `pixel_norm`, ALKDNet's ablation."""

    def __init__(
        self, num_feat: int = 64, esa_channels: int = 16, pixel_norm: bool = False, conv2_padding: int = 0
    ) -> None:
        super().__init__(num_feat, esa_channels, conv2_padding)
        self.c1_r: BSConvU = BSConvU(num_feat, num_feat)
        self.c2_r: BSConvU = BSConvU(num_feat, num_feat)
        self.c3_r: BSConvU = BSConvU(num_feat, num_feat)
        self.c4: BSConvU = BSConvU(num_feat, num_feat // 2)
        self.pixel_norm = PixelNorm(num_feat, eps=1e-5) if pixel_norm else None

    def forward(self, x: Tensor) -> Tensor:
        fuses = self._fuses(x)
        if fuses or not (all(map(_is_plain, self._convs())) and self._attends_freely()):
            return self._by_parts(x, fuses)
        weights, settings = self.looked_up() or self._arguments()
        return ops.blueprint_block(x, *weights, **settings)

    def _convs(self) -> tuple[BSConvU, ...]:
        return tuple(child(self, name) for name in ("c1_r", "c2_r", "c3_r", "c4"))

    def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Those of `fastsr.ops.blueprint_block` behind x."""
        convs, distils = self._convs(), [child(self, name) for name in ("c1_d", "c2_d", "c3_d")]
        c5, esa = self.c5, self.esa
        weights = [
            [
                (*conv_weights(distil), *conv.weights())
                for conv, distil in zip(convs, distils, strict=False)  # the last one distils nothing
            ],
            convs[-1].weights(),
            *conv_weights(c5),
            esa.weights(),
            *self.cca.weights(self.pixel_norm),
        ]
        packed = (*(conv.packed for conv in convs), packed_weights(c5), esa.packed)
        return weights, {
            "conv2_padding": esa.conv2_padding,
            "eps": eps_of(self.pixel_norm),
            "packed": packed,
        }

    def pack(self) -> None:
        """As in the distillation blocks."""
        super().pack()
        self.kept = self._arguments()


class _LocalBlock(Packing):
    """What ends in a 1x1 and an ESA; of these, c5 and conv1, are the packed weights."""

    c5: nn.Conv2d
    esa: PlainESA

    def _fuses(self, op: str, x: Tensor) -> bool:
        """Whether `op` and the ESA become fewer kernels: on a GPU, in inference, without hooks on the ESA."""
        return ops.fuses_on_cuda(op, x) and _is_free(self.esa) and not _is_recorded(self)

    def _condense(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """c5(x); if it fuses, also what the ESA makes of it first."""
        if self._fuses("pointwise", x):
            return ops.pointwise_reduce((x,), *_reducing(self), packed=self.packed)
        return fused_pointwise(self.c5, (x,)), None

    def _attend(self, x: Tensor, reduced: Tensor | None) -> Tensor:
        return self.esa(x, **_may_overwrite(self.esa)) if reduced is None else self.esa(x, reduced=reduced)

    def _pack_end(self) -> None:
        self.packed = ops.pack_pointwise_reduce(*_reducing(self), [self.c5.in_channels])
        pack_pointwise(self.c5)
        self.esa.pack()


class RLFB(_LocalBlock):
    """Residual local feature block (RLFN, section 3.2): three 3x3 + LeakyReLU, the input, 1x1, ESA."""

    def __init__(self, num_feat: int = 52, mid_channels: int | None = None, esa_channels: int = 16) -> None:
        super().__init__()
        mid = mid_channels or num_feat
        self.c1_r = conv3x3(num_feat, mid)
        self.c2_r = conv3x3(mid, mid)
        self.c3_r = conv3x3(mid, num_feat)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.esa = PlainESA(num_feat, esa_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = fused_conv3x3(self.c1_r, x, "leaky_relu")
        y = fused_conv3x3(self.c2_r, y, "leaky_relu")
        y = fused_conv3x3(self.c3_r, y, "leaky_relu", shortcut=x)
        y, reduced = self._condense(y)
        return self._attend(y, reduced)

    def pack(self) -> None:
        """As in the distillation blocks."""
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            pack_conv3x3(conv)
        self._pack_end()


class MLRB(_LocalBlock):
    """Mixer-based local residual block (MLRN, section 3.1).

    Args:
        num_feat: channels.
        esa_channels: inner channels of the ESA.
        conv_mix: False leaves the whole mixer out (the paper's ablation "W/O ConvMix").
        depthwise_conv: False leaves only its depthwise convolution out ("W/O depthwise conv").
        activation: "gelu", or "leaky_relu" for the ablation.
    """

    def __init__(
        self,
        num_feat: int = 58,
        esa_channels: int = 16,
        conv_mix: bool = True,
        depthwise_conv: bool = True,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.c1_r = conv3x3(num_feat, num_feat)
        self.c2_r = conv3x3(num_feat, num_feat)
        self.dwc = depthwise(num_feat, (3, 3)) if conv_mix and depthwise_conv else None
        self.pwc = nn.Conv2d(num_feat, num_feat, 1) if conv_mix else None
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.esa = PlainESA(num_feat, esa_channels)

    def forward(self, x: Tensor) -> Tensor:
        c1, c2, dwc, pwc = (child(self, name) for name in ("c1_r", "c2_r", "dwc", "pwc"))
        if pwc is None:
            y = fused_conv3x3(c1, x, self.activation)
            y = fused_conv3x3(c2, y, self.activation, shortcut=x)
            y, reduced = self._condense(y)
            return self._attend(y, reduced)
        dw_weight, dw_bias = (None, None) if dwc is None else conv_weights(dwc)
        mix = (dw_weight, dw_bias, *conv_weights(pwc), *conv_weights(self.c5))
        if self._fuses("conv_mix", x):
            y = fused_conv3x3(c1, x, self.activation)
            y = fused_conv3x3(c2, y, self.activation)
            conv1 = conv_weights(self.esa.conv1)
            y, reduced = ops.conv_mix_reduce(y, x, *mix, *conv1, activation=self.activation)
            return self._attend(y, reduced)
        weights = (*conv_weights(c1), *conv_weights(c2), *mix)
        packed = (packed_weights(c1), packed_weights(c2))
        y = ops.mixer_block(x, *weights, activation=self.activation, packed=packed)
        return self._attend(y, None)

    def pack(self) -> None:
        """As in the distillation blocks."""
        for conv in (self.c1_r, self.c2_r):
            pack_conv3x3(conv)
        if self.pwc is None:
            self._pack_end()
        else:
            self.esa.pack()
