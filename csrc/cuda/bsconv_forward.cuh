// bsconv, forward, and with it BSRN's distilled map:
//
//   u = W x;  y = act(dw3x3(u) + b + shortcut);  D = GELU(W_d x + b_d)
//
// One CTA per tile at a time; u does not leave it.
#pragma once

#include "bsconv_tile.cuh"
#include "product.cuh"

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

template <class T>
constexpr Order kDistilOrder = __is_same(T, Tf32) ? Order::kFourOfRows : Order::kEightOfColumns;

// D of a tile, from x in shared memory. A lane has eight adjacent channels of a pixel, or of two (a row per warp).
template <class M, class T = typename M::T>
__device__ __forceinline__ void distil_pixels(const Bsconv<T>& a, const T* halo, const uint32_t* weights,
                                              const float* bias, int64_t n, int y0, int x0) {
  constexpr int kPixels = M::kOwn / 8;  // of a lane
  const int lane = threadIdx.x % 32, row = M::own_row(), column = M::own_column();
  // Which eight of a block's channels, and which pixel.
  constexpr bool kExchanges = __is_same(T, Tf32);
  const int t = kExchanges ? lane / 8 : lane % 4, pixel = kExchanges ? lane % 4 * 2 + lane / 4 % 2 : lane / 4;
  const T* from = halo + ((row + 1) * M::kHaloColumns + column + 1) * M::kPitch;
  for (int block = 0; block < blocks_of(a.distilled.channels); ++block) {
    float z[kPixels][8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float b = bias[block * kBlock + 8 * t + i];
#pragma unroll
      for (int p = 0; p < kPixels; ++p) z[p][i] = b;
    }
    if constexpr (sizeof(T) == 2) {
      float sum[4][4] = {};
      const T* at = from + lane % 16 * M::kPitch + lane / 16 * 8;
      const uint4* w = reinterpret_cast<const uint4*>(weights) + block * 2 * 32 + lane;
#pragma unroll 1
      for (int step = 0; step < (a.c + 15) / 16; ++step, w += 4 * 32) {
        uint32_t m[4];
        load_matrices(m, at + 16 * step);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 b = w[32 * i];
          mma_k16<T>(sum[2 * i], m[0], m[1], m[2], m[3], b.x, b.y);
          mma_k16<T>(sum[2 * i + 1], m[0], m[1], m[2], m[3], b.z, b.w);
        }
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) z[i / 8][i % 8] += sum[i % 8 / 2][i / 8 * 2 + i % 2];
    } else if constexpr (kExchanges) {
      float sum[2][4] = {};
      multiply_columns<M>(from, PackedRows{weights + block * 2 * 128}, a.c, sum);
      // Four channels of two pixels become eight of one: lanes g and g + 1 give each other the pixel that they leave.
      const bool second = lane / 4 % 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&four)[4] = sum[i / 2];
        const float first_pixel = four[i % 2 * 2], second_pixel = four[i % 2 * 2 + 1];
        const float mine = second ? second_pixel : first_pixel;
        const float got = __shfl_xor_sync(0xffffffffu, second ? first_pixel : second_pixel, 4);
        z[0][i] += second ? got : mine;
        z[0][4 + i] += second ? mine : got;
      }
    } else {
      const float* w = reinterpret_cast<const float*>(weights) + block * kBlock + 8 * t;
      float sum[8] = {};
#pragma unroll 2
      for (int c = 0; c < a.c; ++c) {
        const float x = from[lane / 4 * M::kPitch + c];
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const float2 b = *reinterpret_cast<const float2*>(w + c * mix_pitch<T> + i);
          sum[i] = fmaf(x, b.x, sum[i]), sum[i + 1] = fmaf(x, b.y, sum[i + 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) z[0][i] += sum[i];
    }
#pragma unroll 1
    for (int p = 0; p < kPixels; ++p) {
      const int x = x0 + column + pixel + 8 * p;
      if (y0 + row >= a.tiles.h || x >= a.tiles.w) continue;
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = p ? z[kPixels - 1][i] : z[0][i];
      activate_all<T>(v, kGelu, a.accuracy);
      Eight<T> e;
#pragma unroll
      for (int i = 0; i < 4; ++i) e.set_pair(i, v[2 * i], v[2 * i + 1]);
      a.distilled.store(a.distilled.at(n, y0 + row, x), block * kBlock + 8 * t, e);
    }
  }
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
    if constexpr (Stage) distil_pixels<M>(a, halo, distil, distil_bias, n, y0, x0);
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
