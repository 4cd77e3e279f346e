// conv3x3_gelu for one instruction set.
#include "conv3x3_direct.inl"
#include "conv3x3_direct_gradient.inl"
#include "conv3x3_winograd_gradient.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

constexpr Conv3x3GeluKernels conv3x3_gelu_kernels() {
  return {DirectConv::algorithm(), WinogradConv::algorithm(), DirectGradient::kernels(), WinogradGradient::kernels()};
}

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
