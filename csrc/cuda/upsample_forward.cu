#include "pixels_launch.cuh"
#include "upsample.cuh"
#include "upsample.h"

namespace fastsr::cuda {
namespace {

template <class T, int N>
cudaError_t start_upsample_block(const Upsample<T>& a, cudaStream_t stream) {
  using B = ConvBlock<T, N>;
  static_assert(B::kShared <= 99 * 1024);
  const int64_t blocks = (a.conv.outputs + B::kOut - 1) / B::kOut;
  return launch(upsample_kernel<T, N>, blocks * resident_blocks(a.conv.tiles.count, B::kResident), kConvThreads,
                B::kShared, stream, a);
}

}  // namespace

cudaError_t upsample_forward(const UpsampleCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) {
    using T = decltype(type);
    const int dtype = static_cast<int>(call.parameter_dtype), scale = static_cast<int>(call.scale);
    const int outputs = static_cast<int>(call.y.size[1]) * scale * scale;
    Upsample<T> a{};
    a.conv.tiles = tiles_of(call.x, kConvRows);
    a.conv.x = pixel_map<T>(call.x);
    a.conv.weights = {Parameter{call.weight, dtype}, outputs, a.conv.x.channels, 0};
    a.conv.bias = Parameter{call.bias, dtype};
    a.conv.outputs = outputs;
    a.y = pixel_map<T>(call.y);
    if (call.residual != kNoResidual) a.lr = pixel_map<T>(call.lr);
    a.scale = scale, a.residual = static_cast<int>(call.residual);
    return outputs <= 16 ? start_upsample_block<T, 1>(a, stream) : start_upsample_block<T, 4>(a, stream);
  });
}

}  // namespace fastsr::cuda
