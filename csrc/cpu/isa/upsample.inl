// upsample for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr UpsampleKernels upsample_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
