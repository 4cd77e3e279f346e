// cca_norm for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr CcaNormKernels cca_norm_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
