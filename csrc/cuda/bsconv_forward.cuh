// bsconv, forward, and with it BSRN's distilled map:
//
//   u = W x;  y = act(dw3x3(u) + b + shortcut);  D = GELU(W_d x + b_d)
//
// One CTA per tile at a time; u does not leave it.
#pragma once

#include "bsconv_distil.cuh"
#include "own_pixels.cuh"

namespace fastsr::cuda {

template <class T>
struct Bsconv {
  Tiles tiles;
  PixelMap<T> x, shortcut, y;  // shortcut.data is null without one
  Map<T> distilled;
  Parameter pw, dw, dw_bias, distil, distil_bias;
  int c, k, activation, accuracy;
};

template <class T, bool Stage>
constexpr int bsconv_shared() {
  using M = ForwardMix<T>;
  constexpr int kDistil = Stage ? kMatrixWords<T> + kMixChannels : 0;
  return 4 * (kMatrixWords<T> + kTapFloats + kDistil) + (M::kHaloSize + M::kSize) * static_cast<int>(sizeof(T));
}

template <class T, int N, bool Stage>
__global__ void __launch_bounds__(kMixThreads, 2) bsconv_kernel(const Bsconv<T> a) {
  using B = BlueprintTile<T, N>;
  using M = typename B::M;
  FASTSR_SHARED_MEMORY(memory);
  uint32_t *pw = reinterpret_cast<uint32_t*>(memory), *distil = pw + kMatrixWords<T>;
  float* packed_taps = reinterpret_cast<float*>(Stage ? distil + kMatrixWords<T> : distil);
  float* distil_bias = packed_taps + kTapFloats;
  T *halo = reinterpret_cast<T*>(Stage ? distil_bias + kMixChannels : distil_bias), *beside = halo + M::kHaloSize;
  pack_matrix<T>(a.pw, a.k, a.c, false, pw);
  if constexpr (Stage) {
    pack_matrix<T, kDistilOrder<T>>(a.distil, a.distilled.channels, a.c, false, distil);
    pack_bias(a.distil_bias, a.distilled.channels, distil_bias);
  }
  pack_taps<kMixThreads>(a.dw, a.dw_bias, a.k, false, packed_taps);
  for (int64_t tile = blockIdx.x; tile < a.tiles.count; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    fetch_pixels<M::kRows + 2, M::kHaloColumns, M::kPitch, kMixThreads>(a.x, a.tiles, n, y0 - 1, x0 - 1, 0,
                                                                        width_log2_of(a.c), halo);
    if (a.shortcut.data)
      fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.shortcut, a.tiles, n, y0, x0, 0, B::kWidthLog2,
                                                                   beside);
    wait_for_copies();
    __syncthreads();
    if constexpr (Stage)
      distil_pixels<M>(halo, a.c, distil, distil_bias, a.distilled.channels, a.tiles, y0, x0,
                       [&](int y, int x, int c, float (&z)[8]) {
                         activate_all<T>(z, kGelu, a.accuracy);
                         Eight<T> e;
#pragma unroll
                         for (int i = 0; i < 4; ++i) e.set_pair(i, z[2 * i], z[2 * i + 1]);
                         a.distilled.store(a.distilled.at(n, y, x), c, e);
                       });
    multiply_halo<B>(halo, pw, a.c);
    __syncthreads();
    const DepthwiseTaps taps(packed_taps, B::channel());
#pragma unroll 1
    for (int turn = 0; turn < B::kTurns; ++turn) {
      const int column = B::column(turn);
      T* at = beside + column * M::kPitch + B::channel();
      float q[2 * M::kRows];
      convolve_column<M>(halo + column * M::kPitch + B::channel(), taps, q);
      if (a.shortcut.data) {
#pragma unroll
        for (int r = 0; r < M::kRows; ++r) {
          const float2 s = load_pair(at + r * kTileColumns * M::kPitch);
          q[2 * r] += s.x, q[2 * r + 1] += s.y;
        }
      }
      activate_all<T>(q, a.activation, a.accuracy);
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) store_pair(at + r * kTileColumns * M::kPitch, q[2 * r], q[2 * r + 1]);
    }
    __syncthreads();
    store_own<M>(a.y, a.tiles, n, y0, x0, beside);
    __syncthreads();  // the next tile takes the place of this one
  }
}

}  // namespace fastsr::cuda
