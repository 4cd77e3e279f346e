"""The fused operators as functions: checks, choice of backend, autograd. Nothing here knows of modules."""

from fastsr.ops._define import fuses_on_cuda, fuses_on_triton, output_format
from fastsr.ops.alk_condense import alk_condense, fits_condense, pack_alk_condense
from fastsr.ops.alk_conv import alk_conv, pack_alk_conv
from fastsr.ops.alk_stage import alk_stage
from fastsr.ops.alk_together import ALKPart, pack_alk_together
from fastsr.ops.blueprint_block import blueprint_block
from fastsr.ops.bsconv import bsconv, pack_bsconv
from fastsr.ops.bsconv_stage import bsconv_stage
from fastsr.ops.cca_norm import cca_norm
from fastsr.ops.conv3x3_gelu import conv3x3_gelu, pack_conv3x3_gelu
from fastsr.ops.conv_mix import conv_mix
from fastsr.ops.conv_mix_reduce import conv_mix_reduce
from fastsr.ops.esa import esa, pack_esa
from fastsr.ops.esa_cca import esa_cca
from fastsr.ops.mixer_block import mixer_block
from fastsr.ops.pixel_norm import pixel_norm
from fastsr.ops.pointwise import may_free_early, pack_pointwise, pointwise
from fastsr.ops.pointwise_reduce import pack_pointwise_reduce, pointwise_reduce
from fastsr.ops.upsample import upsample
from fastsr.reference import ALKConvWeights, BlueprintESAWeights, PlainESAWeights

__all__ = [
    "ALKConvWeights",
    "ALKPart",
    "BlueprintESAWeights",
    "PlainESAWeights",
    "alk_condense",
    "alk_conv",
    "alk_stage",
    "blueprint_block",
    "bsconv",
    "bsconv_stage",
    "cca_norm",
    "conv3x3_gelu",
    "conv_mix",
    "conv_mix_reduce",
    "esa",
    "esa_cca",
    "fits_condense",
    "fuses_on_cuda",
    "fuses_on_triton",
    "may_free_early",
    "mixer_block",
    "output_format",
    "pack_alk_condense",
    "pack_alk_conv",
    "pack_alk_together",
    "pack_bsconv",
    "pack_conv3x3_gelu",
    "pack_esa",
    "pack_pointwise",
    "pack_pointwise_reduce",
    "pixel_norm",
    "pointwise",
    "pointwise_reduce",
    "upsample",
]
