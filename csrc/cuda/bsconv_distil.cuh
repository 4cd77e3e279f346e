// The 1x1 of BSRN's stage, from the tile of x that is in shared memory for the blueprint convolution.
#pragma once

#include "bsconv_tile.cuh"
#include "product.cuh"

namespace fastsr::cuda {

template <class T>
constexpr Order kDistilOrder = __is_same(T, Tf32) ? Order::kFourOfRows : Order::kEightOfColumns;

// z = W_d x + b_d of a warp's own pixels, from a tile of x with its halo in shared memory: calls body(y, x, c, z) with
// eight adjacent channels from `c` on of each pixel that lies in the image.
template <class M, class Body, class T = typename M::T>
__device__ __forceinline__ void distil_pixels(const T* halo, int inputs, const uint32_t* weights, const float* bias,
                                              int outputs, const Tiles& tiles, int y0, int x0, Body body) {
  constexpr int kPixels = M::kOwn / 8;  // of a lane
  const int lane = threadIdx.x % 32, row = M::own_row(), column = M::own_column();
  // Which eight of a block's channels, and which pixel.
  constexpr bool kExchanges = __is_same(T, Tf32);
  const int t = kExchanges ? lane / 8 : lane % 4, pixel = kExchanges ? lane % 4 * 2 + lane / 4 % 2 : lane / 4;
  const T* from = halo + ((row + 1) * M::kHaloColumns + column + 1) * M::kPitch;
  for (int block = 0; block < blocks_of(outputs); ++block) {
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
      for (int step = 0; step < (inputs + 15) / 16; ++step, w += 4 * 32) {
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
      multiply_columns<M>(from, PackedRows{weights + block * 2 * 128}, inputs, sum);
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
      for (int c = 0; c < inputs; ++c) {
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
      if (y0 + row >= tiles.h || x >= tiles.w) continue;
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = p ? z[kPixels - 1][i] : z[0][i];
      body(y0 + row, x, block * kBlock + 8 * t, v);
    }
  }
}

}  // namespace fastsr::cuda
