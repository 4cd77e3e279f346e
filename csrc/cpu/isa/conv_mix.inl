// conv_mix for one instruction set.
#include "conv_mix_backward.inl"
#include "conv_mix_forward.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

template <class T>
constexpr ConvMixTyped<T> conv_mix_typed() {
  return {&conv_mix_forward<T>, &conv_mix_backward<T>, &conv_mix_finish_backward<T>};
}

constexpr ConvMixKernels conv_mix_kernels() {
  return {&conv_mix_scratch_size, &conv_mix_sums, conv_mix_typed<float>(), conv_mix_typed<Half>(),
          conv_mix_typed<BFloat16>()};
}

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
