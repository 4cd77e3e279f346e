// Everything that is compiled once per instruction set. No include guard: each ISA file includes this once, with
// FASTSR_VECTOR_BYTES and FASTSR_TABLE defined and its target pragma in force.
#include "pixel_norm.inl"

namespace fastsr::cpu {

extern const KernelTable FASTSR_TABLE;
const KernelTable FASTSR_TABLE = {
    pixel_norm_kernels<float>(),
    pixel_norm_kernels<Half>(),
    pixel_norm_kernels<BFloat16>(),
    pixel_norm_kernels<double>(),
};

}  // namespace fastsr::cpu
