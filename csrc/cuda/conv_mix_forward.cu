#include "conv_mix_forward.cuh"
#include "conv_mix_launch.cuh"

namespace fastsr::cuda {

cudaError_t conv_mix_forward(const ConvMixCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) {
    using T = decltype(type);
    using M = ForwardMix<T>;
    constexpr int kShared = conv_mix_shared<M, false>();
    static_assert(kShared <= 99 * 1024);
    ConvMix<T> a{};
    fill_conv_mix<T>(a, call, M::kRows);
    a.y = pixel_map<T>(call.y);
    return launch(conv_mix_kernel<T, false>, resident_blocks(a.tiles.count, 2), kMixThreads, kShared, stream, a);
  });
}

}  // namespace fastsr::cuda
