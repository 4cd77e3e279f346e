// 1x1 convolutions of a few pixels: out[p][m] = sum_c in[p][c] w[m][c], on tensor cores in 16 bits, by FMA in float32.
//
// Lane (g, t) = (lane / 4, lane % 4) holds two pixels (g and g + 8 of the warp's 16) and, of every block of 32 outputs,
// the eight from 8 t on: loads and stores of 16 bytes. The order of the channels within a product and the columns that
// a lane ends up with are chosen when the weights are packed (alk_pack.cuh), which costs nothing here.
#pragma once

#include "map.cuh"

namespace fastsr::cuda {

constexpr int kBlock = 32;  // channels that four lanes hold together

__host__ __device__ constexpr int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

// The packed weights of one block of outputs: [chunk of 32 inputs][2 steps][2][lane] uint4, or [8 outputs][input][8].
template <class T>
__host__ __device__ constexpr int64_t product_block_bytes(int inputs) {
  return static_cast<int64_t>(blocks_of(inputs)) * kBlock * kBlock * sizeof(T);
}

// Adds to `out` [pixel][output of the lane]; a pixel that is not `inside` counts as zeros.
template <class T>
__device__ __forceinline__ void pixel_product(const Map<T>& in, const int64_t (&offset)[2], const bool (&inside)[2],
                                              const unsigned char* packed, float (&out)[2][8]) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  if constexpr (sizeof(T) == 2) {
    float sum[4][4];
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][i] = out[i / 2][2 * m + i % 2];
    const uint4* w = reinterpret_cast<const uint4*>(packed) + lane;
#pragma unroll 1
    for (int c = 0; c < in.channels; c += kBlock, w += 4 * 32) {
      Eight<T> a[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        a[p] = Eight<T>::zeros();
        if (inside[p]) a[p] = in.load(offset[p], c + 8 * t);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const uint4 b[2] = {w[2 * step * 32], w[(2 * step + 1) * 32]};
        const uint32_t a0 = a[0].word[2 * step], a1 = a[1].word[2 * step];
        const uint32_t a2 = a[0].word[2 * step + 1], a3 = a[1].word[2 * step + 1];
        mma_k16<T>(sum[0], a0, a1, a2, a3, b[0].x, b[0].y);
        mma_k16<T>(sum[1], a0, a1, a2, a3, b[0].z, b[0].w);
        mma_k16<T>(sum[2], a0, a1, a2, a3, b[1].x, b[1].y);
        mma_k16<T>(sum[3], a0, a1, a2, a3, b[1].z, b[1].w);
      }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i / 2][2 * m + i % 2] = sum[m][i];
  } else {
    const int padded = blocks_of(in.channels) * kBlock;
    const float* w = reinterpret_cast<const float*>(packed) + t * padded * 8;
    for (int c = 0; c < in.channels; c += 8, w += 64) {
      Eight<T> a[2];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        a[p] = Eight<T>::zeros();
        if (inside[p]) a[p] = in.load(offset[p], c);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4 low = reinterpret_cast<const float4*>(w)[2 * i],
                     high = reinterpret_cast<const float4*>(w)[2 * i + 1];
        const float row[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int p = 0; p < 2; ++p)
#pragma unroll
          for (int m = 0; m < 8; ++m) out[p][m] = fmaf(__uint_as_float(a[p].word[i]), row[m], out[p][m]);
      }
    }
  }
}

}  // namespace fastsr::cuda
