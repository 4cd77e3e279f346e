// alk_conv for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr AlkConvKernels alk_conv_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
