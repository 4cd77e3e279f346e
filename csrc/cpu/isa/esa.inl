// esa for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr EsaKernels esa_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
