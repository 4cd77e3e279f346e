// conv3x3_gelu for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr Conv3x3GeluKernels conv3x3_gelu_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
