#include "conv_mix_forward.cuh"
#include "conv_mix_launch.cuh"
#include "conv_mix_reduce.h"

namespace fastsr::cuda {

static_assert(kMostMixReduced == kReduced);

cudaError_t conv_mix_reduce_forward(const ConvMixReduceCall& call, cudaStream_t stream) {
  return with_numbers(call.mix.dtype, call.mix.tf32, [&](auto type) {
    using T = decltype(type);
    using M = ForwardMix<T>;
    constexpr int kShared = conv_mix_shared<M, true>();
    static_assert(kShared <= 99 * 1024);
    ConvMix<T> a{};
    fill_conv_mix<T>(a, call.mix, M::kRows);
    a.y = pixel_map<T>(call.mix.y);
    const auto parameter = [&](int i) {
      return Parameter{call.parameters[i], static_cast<int>(call.mix.parameter_dtype)};
    };
    a.conv1 = parameter(0), a.conv1_bias = parameter(1);
    a.reduced = pixel_map<T>(call.reduced).data, a.inner = static_cast<int>(call.inner);
    return launch(conv_mix_kernel<T, true>, resident_blocks(a.tiles.count, 2), kMixThreads, kShared, stream, a);
  });
}

}  // namespace fastsr::cuda
