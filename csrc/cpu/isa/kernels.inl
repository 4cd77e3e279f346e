// Everything that is compiled once per instruction set. No include guard: each ISA file includes this once, with
// FASTSR_VECTOR_BYTES and FASTSR_TABLE defined and its target pragma in force.
#include "alk_conv_backward.inl"
#include "blueprint_block.inl"
#include "bsconv.inl"
#include "cca_norm.inl"
#include "conv3x3_gelu.inl"
#include "conv_mix.inl"
#include "esa.inl"
#include "fma.inl"
#include "pixel_norm.inl"
#include "pointwise.inl"
#include "rows.inl"
#include "upsample.inl"

namespace fastsr::cpu {

extern const KernelTable FASTSR_TABLE;
const KernelTable FASTSR_TABLE = {
    alk_conv_kernels(),
    blueprint_block_kernels(),
    bsconv_kernels(),
    cca_norm_kernels(),
    conv::conv3x3_gelu_kernels(),
    conv::conv_mix_kernels(),
    esa_kernels(),
    pointwise_kernels(),
    upsample_kernels(),
    pixel_norm_kernels<float>(),
    pixel_norm_kernels<Half>(),
    pixel_norm_kernels<BFloat16>(),
    pixel_norm_kernels<double>(),
    row_kernels(),
    &fma_run,
};

}  // namespace fastsr::cpu
