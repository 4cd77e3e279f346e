// conv_mix, forward:
//
//   q = dw3x3(x) + b_dw;  d = act(q) + x;  p = W_pw d + b_pw;  t = act(p) + shortcut;  y = W_c5 t + b_c5
//
// One CTA per tile at a time; nothing between x and y leaves it. Without the depthwise convolution d is x. With Reduces
// y is also multiplied with the weights of the ESA behind it (conv_mix_reduce.cuh).
#pragma once

#include "conv_mix_reduce.cuh"

namespace fastsr::cuda {

template <class T>
struct ConvMix {
  Tiles tiles;
  PixelMap<T> x, shortcut, y;
  Parameter dw, dw_bias, pw, pw_bias, c5, c5_bias;  // dw.data is null without the depthwise convolution
  int c, k, activation, accuracy;
  Parameter conv1, conv1_bias;  // with Reduces only
  T* reduced;                   // [n, h, w, kReduced]
  int inner;                    // channels of it that are not padding
};

template <class M, bool Reduces>
constexpr int conv_mix_shared() {
  using T = typename M::T;
  return 2 * 4 * kMatrixWords<T> + 4 * (2 * kMixChannels + kTapFloats) +
         (M::kHaloSize + 2 * M::kSize) * static_cast<int>(sizeof(T)) + (Reduces ? ReduceWeights<M>::kBytes : 0);
}

template <class T, bool Reduces>
__global__ void __launch_bounds__(kMixThreads, 2) conv_mix_kernel(const ConvMix<T> a) {
  using M = ForwardMix<T>;
  FASTSR_SHARED_MEMORY(memory);
  uint32_t *pw = reinterpret_cast<uint32_t*>(memory), *c5 = pw + kMatrixWords<T>;
  float *pw_bias = reinterpret_cast<float*>(c5 + kMatrixWords<T>), *c5_bias = pw_bias + kMixChannels;
  float* packed_taps = c5_bias + kMixChannels;
  T *halo = reinterpret_cast<T*>(packed_taps + kTapFloats), *mixed = halo + M::kHaloSize, *beside = mixed + M::kSize;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T *own_mixed = mixed + M::own() * M::kPitch, *own_beside = beside + M::own() * M::kPitch;
  pack_matrix<T, OwnPixels<M>::kOrder>(a.pw, a.c, a.c, false, pw);
  pack_matrix<T, OwnPixels<M>::kOrder>(a.c5, a.k, a.c, false, c5);
  pack_taps<kMixThreads>(a.dw, a.dw_bias, a.c, false, packed_taps);
  pack_bias(a.pw_bias, a.c, pw_bias);
  pack_bias(a.c5_bias, a.k, c5_bias);
  const ReduceWeights<M> conv1{halo};
  if constexpr (Reduces) conv1.pack(a.conv1, a.inner, a.k);
  for (int64_t tile = blockIdx.x; tile < a.tiles.count; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    fetch_pixels<M::kRows + 2, M::kHaloColumns, M::kPitch, kMixThreads>(a.x, a.tiles, n, y0 - 1, x0 - 1, 0, 6, halo);
    fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.shortcut, a.tiles, n, y0, x0, 0, 6, beside);
    wait_for_copies();
    __syncthreads();
    const DepthwiseTaps taps(packed_taps, 2 * lane);
#pragma unroll 1
    for (int column = warp; column < kTileColumns; column += kMixWarps) {
      float q[2 * M::kRows] = {};
      if (a.dw.data) {
        convolve_column<M>(halo + column * M::kPitch + 2 * lane, taps, q);
        activate_all<T>(q, a.activation, a.accuracy);
      }
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) {
        const float2 x = load_pair(halo + ((r + 1) * M::kHaloColumns + column + 1) * M::kPitch + 2 * lane);
        store_pair(mixed + (r * kTileColumns + column) * M::kPitch + 2 * lane, q[2 * r] + x.x, q[2 * r + 1] + x.y);
      }
    }
    __syncthreads();
    OwnPixels<M> own;
    own.multiply(own_mixed, pw);
    own.add(pw_bias);
    activate_all<T>(own.value, a.activation, a.accuracy);
#pragma unroll
    for (int i = 0; i < own.kPairs; ++i) {
      const float2 s = load_pair(own_beside + own.at(i));
      own.value[2 * i] += s.x, own.value[2 * i + 1] += s.y;
    }
    own.put(own_beside);
    __syncwarp();
    own.multiply(own_beside, c5);
    own.add(c5_bias);
    own.put(own_mixed);
    __syncwarp();
    if constexpr (Reduces) {
      float sum[ReduceWeights<M>::kLanePixels][ReduceWeights<M>::kLaneOutputs];
      conv1.start(a.conv1_bias, a.inner, sum);
      conv1.multiply(own, own_mixed, sum);
      conv1.store(a.reduced, a.tiles, n, y0, x0, sum);
    }
    store_own<M>(a.y, a.tiles, n, y0, x0, mixed);
    __syncthreads();  // the next tile takes the place of this one
  }
}

}  // namespace fastsr::cuda
