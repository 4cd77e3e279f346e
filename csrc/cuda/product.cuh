// 1x1 convolutions of a few pixels: out[p][m] = sum_c in[p][c] w[m][c], on tensor cores in 16 bits and TF32, by FMA in
// float32.
//
// Lane (g, t) = (lane / 4, lane % 4) holds two pixels (g and g + 8 of the warp's 16) and, of every block of 32 outputs,
// the eight from 8 t on: loads and stores of 16 bytes. The order of the channels within a product and the columns that
// a lane ends up with are chosen when the weights are packed (product_pack.cuh), which costs nothing here.
#pragma once

#include "tf32.cuh"

namespace fastsr::cuda {

constexpr int kBlock = 32;  // channels that four lanes hold together

__host__ __device__ constexpr int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

// Products of 32 channels, of which a lane has eight.
template <class T>
constexpr int kSteps = Eight<T>::kWords / 2;

// The packed weights of one block of outputs: [chunk of 32 inputs][step][2][lane] uint4, or [8 outputs][input][8].
template <class T>
__host__ __device__ constexpr int64_t product_block_bytes(int inputs) {
  return static_cast<int64_t>(blocks_of(inputs)) * kBlock * kBlock * sizeof(T);
}

// Adds to `out` [block of outputs][pixel][output of the lane]; a pixel with a negative offset counts as zeros. The
// weights of the next block lie `block_bytes` behind those of a block. With Ahead, what tensor cores multiply is loaded
// a step before it is needed, in eight (TF32: 16) more registers a pair.
template <class T, bool Ahead, int Blocks, int Pixels>
__device__ __forceinline__ void pixel_products(const Map<T>& in, const int64_t (&offset)[Pixels],
                                               const unsigned char* packed, int64_t block_bytes,
                                               float (&out)[Blocks][Pixels][8]) {
  static_assert(Pixels % 2 == 0);
  const int lane = threadIdx.x % 32, t = lane % 4;
  if constexpr (kTensorCores<T>) {
    float sum[Blocks][Pixels / 2][4][4];  // as the fragments have it
#pragma unroll
    for (int i = 0; i < Blocks * Pixels * 8; ++i) {
      const int b = i / 8 / Pixels, p = i / 8 % Pixels, o = i % 8;
      sum[b][p / 2][o / 2][p % 2 * 2 + o % 2] = out[b][p][o];
    }
    const uint4* w = reinterpret_cast<const uint4*>(packed) + lane;
    Eight<T> next[Pixels];
    const auto fetch = [&](int c) {
#pragma unroll
      for (int p = 0; p < Pixels; ++p) {
        next[p] = Eight<T>::zeros();
        if (offset[p] >= 0 && (!Ahead || c + 8 * t < in.channels)) next[p] = in.load(offset[p], c + 8 * t);
      }
    };
    if constexpr (Ahead) fetch(0);
#pragma unroll 1
    for (int c = 0; c < in.channels; c += kBlock, w += 2 * kSteps<T> * 32) {
      if constexpr (!Ahead) fetch(c);
      Eight<T> a[Pixels];
#pragma unroll
      for (int p = 0; p < Pixels; ++p) a[p] = next[p], for_product<T>(a[p].word);
      if (Ahead && c + kBlock < in.channels) fetch(c + kBlock);
#pragma unroll
      for (int block = 0; block < Blocks; ++block) {
        const uint4* of_block = w + block * (block_bytes / 16);
#pragma unroll
        for (int step = 0; step < kSteps<T>; ++step) {
          const uint4 b[2] = {of_block[2 * step * 32], of_block[(2 * step + 1) * 32]};
#pragma unroll
          for (int p = 0; p < Pixels; p += 2) {
            const uint32_t a0 = a[p].word[2 * step], a1 = a[p + 1].word[2 * step];
            const uint32_t a2 = a[p].word[2 * step + 1], a3 = a[p + 1].word[2 * step + 1];
            float (&d)[4][4] = sum[block][p / 2];
            mma<T>(d[0], a0, a1, a2, a3, b[0].x, b[0].y);
            mma<T>(d[1], a0, a1, a2, a3, b[0].z, b[0].w);
            mma<T>(d[2], a0, a1, a2, a3, b[1].x, b[1].y);
            mma<T>(d[3], a0, a1, a2, a3, b[1].z, b[1].w);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Blocks * Pixels * 8; ++i) {
      const int b = i / 8 / Pixels, p = i / 8 % Pixels, o = i % 8;
      out[b][p][o] = sum[b][p / 2][o / 2][p % 2 * 2 + o % 2];
    }
  } else {
    const int padded = blocks_of(in.channels) * kBlock;
    const float* w = reinterpret_cast<const float*>(packed) + t * padded * 8;
#pragma unroll 1
    for (int c = 0; c < in.channels; c += 8, w += 64) {
      Eight<T> a[Pixels];
#pragma unroll
      for (int p = 0; p < Pixels; ++p) {
        a[p] = Eight<T>::zeros();
        if (offset[p] >= 0) a[p] = in.load(offset[p], c);
      }
#pragma unroll
      for (int block = 0; block < Blocks; ++block) {
        float part[Pixels][8] = {};  // sums of eight products: a long sum loses fewer digits
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float4* of_block = reinterpret_cast<const float4*>(w + block * (block_bytes / 4));
          const float4 low = of_block[2 * i], high = of_block[2 * i + 1];
          const float row[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int p = 0; p < Pixels; ++p)
#pragma unroll
            for (int m = 0; m < 8; ++m) part[p][m] = fmaf(__uint_as_float(a[p].word[i]), row[m], part[p][m]);
        }
#pragma unroll
        for (int p = 0; p < Pixels; ++p)
#pragma unroll
          for (int m = 0; m < 8; ++m) out[block][p][m] += part[p][m];
      }
    }
  }
}

// The same for 32 channels in, from chunk * 32 on, that the lanes hold already: eight of each pixel, from 8 t on. The
// weights are of `inputs` channels.
template <class T>
__device__ __forceinline__ void lane_product(const Eight<T> (&in)[2], const unsigned char* packed, int inputs,
                                             int chunk, float (&out)[2][8]) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  if constexpr (kTensorCores<T>) {
    Eight<T> a[2] = {in[0], in[1]};
    for_product<T>(a[0].word), for_product<T>(a[1].word);
    const uint4* w = reinterpret_cast<const uint4*>(packed) + chunk * 2 * kSteps<T> * 32 + lane;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float d[4] = {out[0][2 * i], out[0][2 * i + 1], out[1][2 * i], out[1][2 * i + 1]};
#pragma unroll
      for (int step = 0; step < kSteps<T>; ++step) {
        const uint4 b = w[(2 * step + i / 2) * 32];
        mma<T>(d, a[0].word[2 * step], a[1].word[2 * step], a[0].word[2 * step + 1], a[1].word[2 * step + 1],
               i % 2 ? b.z : b.x, i % 2 ? b.w : b.y);
      }
      out[0][2 * i] = d[0], out[0][2 * i + 1] = d[1], out[1][2 * i] = d[2], out[1][2 * i + 1] = d[3];
    }
  } else {
    const int padded = blocks_of(inputs) * kBlock;
    const float* w = reinterpret_cast<const float*>(packed) + t * padded * 8 + chunk * kBlock * 8;
#pragma unroll 1
    for (int from = 0; from < 4; ++from) {
      float part[2][8] = {};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4* row = reinterpret_cast<const float4*>(w + (8 * from + i) * 8);
        const float4 low = row[0], high = row[1];
        const float of[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const float v = __uint_as_float(__shfl_sync(0xffffffffu, in[p].word[i], lane / 4 * 4 + from));
#pragma unroll
          for (int m = 0; m < 8; ++m) part[p][m] = fmaf(v, of[m], part[p][m]);
        }
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) out[i / 8][i % 8] += part[i / 8][i % 8];
    }
  }
}

constexpr int kProductThreads = 256, kProductPixels = 128;

inline unsigned product_tiles(int64_t pixels) {
  return static_cast<unsigned>((pixels + kProductPixels - 1) / kProductPixels);
}

// A lane's two pixels, if CTAs take 128 pixels of an image each and warps 16 of them.
struct LanePixels {
  unsigned image;
  int y[2], x[2];  // x is negative outside of the image

  __device__ __forceinline__ LanePixels(unsigned tiles, unsigned pixels, unsigned w)
      : LanePixels(blockIdx.x / tiles, blockIdx.x % tiles * kProductPixels, pixels, w) {}
  // The CTA's pixels are those from `begin` on.
  __device__ __forceinline__ LanePixels(unsigned of_image, unsigned begin, unsigned pixels, unsigned w)
      : image(of_image) {
    const unsigned first = begin + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const unsigned pixel = first + 8 * p;
      y[p] = static_cast<int>(pixel / w);
      x[p] = pixel < pixels ? static_cast<int>(pixel % w) : -1;
    }
  }
  template <class T>
  __device__ __forceinline__ int64_t offset(const Map<T>& m, int p) const {
    return x[p] >= 0 ? m.at(image, y[p], x[p]) : -1;
  }
};

// One block of outputs of two pixels.
template <class T>
__device__ __forceinline__ void pixel_product(const Map<T>& in, const int64_t (&offset)[2], const bool (&inside)[2],
                                              const unsigned char* packed, float (&out)[2][8]) {
  const int64_t from[2] = {inside[0] ? offset[0] : -1, inside[1] ? offset[1] : -1};
  float one[1][2][8];
#pragma unroll
  for (int i = 0; i < 16; ++i) one[0][i / 8][i % 8] = out[i / 8][i % 8];
  pixel_products<T, false, 1, 2>(in, from, packed, 0, one);
#pragma unroll
  for (int i = 0; i < 16; ++i) out[i / 8][i % 8] = one[0][i / 8][i % 8];
}

}  // namespace fastsr::cuda
