#include "bsconv_forward.cuh"
#include "bsconv_launch.cuh"
#include "map_launch.cuh"

namespace fastsr::cuda {
namespace {

template <class T, int N, bool Stage>
cudaError_t start_bsconv(const Bsconv<T>& a, cudaStream_t stream) {
  constexpr int kShared = bsconv_shared<T, Stage>();
  static_assert(kShared <= 99 * 1024);
  return launch(bsconv_kernel<T, N, Stage>, resident_blocks(a.tiles.count, 2), kMixThreads, kShared, stream, a);
}

}  // namespace

cudaError_t bsconv_forward(const BsconvCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) {
    using T = decltype(type);
    const int dtype = static_cast<int>(call.parameter_dtype);
    Bsconv<T> a{};
    fill_bsconv<T>(a, call);
    a.y = pixel_map<T>(call.y);
    if (call.shortcut.data) a.shortcut = pixel_map<T>(call.shortcut);
    a.dw_bias = Parameter{call.dw_bias, dtype};
    a.activation = static_cast<int>(call.activation), a.accuracy = static_cast<int>(call.accuracy);
    if (call.distil) {
      a.distil = Parameter{call.distil, dtype}, a.distil_bias = Parameter{call.distil_bias, dtype};
      a.distilled = map_of<T>(call.distilled);
      return start_bsconv<T, 4, true>(a, stream);
    }
    return a.k <= 32 ? start_bsconv<T, 2, false>(a, stream) : start_bsconv<T, 4, false>(a, stream);
  });
}

}  // namespace fastsr::cuda
