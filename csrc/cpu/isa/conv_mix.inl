// conv_mix for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr ConvMixKernels conv_mix_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
