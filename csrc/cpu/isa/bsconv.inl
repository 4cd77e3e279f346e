// bsconv for one instruction set.
#include "math.inl"

namespace fastsr::cpu {
namespace {

constexpr BsconvKernels bsconv_kernels() { return {}; }

}  // namespace
}  // namespace fastsr::cpu
