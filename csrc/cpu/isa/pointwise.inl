// pointwise for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr PointwiseKernels pointwise_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
