// 3x3 convolutions as implicit matrix products, tile by tile; what becomes of the sums is the caller's.
//
// One CTA per 8 x 16 pixels at a time, of all tiles in turn, and per block of channels out: the weights stay in shared
// memory. A warp has two rows of the tile.
#pragma once

#include "conv3x3_weights.cuh"
#include "pixels.cuh"

namespace fastsr::cuda {

template <class T>
struct Convolution {
  Tiles tiles;
  PixelMap<T> x;
  Conv3x3Weights weights;
  Parameter bias;  // data is null without one
  int outputs;     // at least those of the weights; the others' sums are 0
};

constexpr int kConvThreads = 128, kConvRows = 8, kHaloColumns = kTileColumns + 2;
constexpr int kHaloPixels = (kConvRows + 2) * kHaloColumns;

// Sizes for blocks of 16 * `N` channels out.
template <class Number, int N>
struct ConvBlock {
  using T = Number;
  static constexpr int kOut = 16 * N;
  static constexpr int kIn = conv_inputs<T>;                             // channels in at a time
  static constexpr int kPitch = kIn + 16 / static_cast<int>(sizeof(T));  // of a pixel: rows on different banks
  static constexpr int kStagePitch = kOut + 8;                           // of a pixel's sums
  static constexpr int kResident = N == 1 ? 4 : 2;                       // CTAs per multiprocessor
  static constexpr int kWeightBytes = 4 * conv_weight_words<T>(N);
  static constexpr int kStageBytes = kConvThreads / 32 * kTileColumns * kStagePitch * 4;
  static constexpr int kHaloBytes = kHaloPixels * kPitch * static_cast<int>(sizeof(T));
  static constexpr int kShared = kWeightBytes + 4 * kOut + (kHaloBytes > kStageBytes ? kHaloBytes : kStageBytes);
};

// The sums of a warp's two rows: on tensor cores fragments of products of 16 pixels x 8 channels; in float32 a run of
// pixels x 4 or 8 channels per lane.
template <class B, class T = typename B::T>
struct ConvSums {
  static constexpr int kOutLanes = B::kOut == 64 ? 8 : 4;                    // lanes that share pixels
  static constexpr int kRun = kOutLanes, kOuts = B::kOut / kOutLanes;        // pixels and channels of a lane
  static constexpr int kFirst = kTensorCores<T> ? 2 * (B::kOut / 8) : kRun;  // 2 rows, each of N products
  static constexpr int kSecond = kTensorCores<T> ? 4 : kOuts;
  float sum[kFirst][kSecond];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kFirst; ++i)
#pragma unroll
      for (int j = 0; j < kSecond; ++j) sum[i][j] = 0.f;
  }
  // Of a float32 lane: row of the tile within the warp's two and first column of its run.
  __device__ __forceinline__ static int run_row(int lane) { return lane / kOutLanes * kRun / kTileColumns; }
  __device__ __forceinline__ static int run_column(int lane) { return lane / kOutLanes * kRun % kTileColumns; }

  // Adds the products of `channels` channels in.
  __device__ __forceinline__ void add(const T* halo, const uint32_t* weights, int channels) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if constexpr (kTensorCores<T>) {
      constexpr int N = B::kOut / 16, kStep = product_depth<T>;
      const T* from = halo + (2 * warp * kHaloColumns + lane % 16) * B::kPitch + lane / 16 * (kStep / 2);
      const uint4* w = reinterpret_cast<const uint4*>(weights) + lane;
#pragma unroll 1
      for (int c = 0; c < channels; c += kStep, from += kStep, w += 9 * N * 32) {
#pragma unroll
        for (int tx = 0; tx < 3; ++tx) {
          uint32_t rows[4][4];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            load_matrices(rows[r], from + (r * kHaloColumns + tx) * B::kPitch);
            for_product<T>(rows[r]);
          }
#pragma unroll
          for (int ty = 0; ty < 3; ++ty)
#pragma unroll
            for (int n = 0; n < N; ++n) {
              const uint4 b = w[((3 * ty + tx) * N + n) * 32];
#pragma unroll
              for (int r = 0; r < 2; ++r) {
                const uint32_t (&a)[4] = rows[r + ty];
                mma<T>(sum[(r * N + n) * 2], a[0], a[1], a[2], a[3], b.x, b.y);
                mma<T>(sum[(r * N + n) * 2 + 1], a[0], a[1], a[2], a[3], b.z, b.w);
              }
            }
        }
      }
    } else {
      const int out = lane % kOutLanes * 4;
      const T* from = halo + ((2 * warp + run_row(lane)) * kHaloColumns + run_column(lane)) * B::kPitch;
      const float* w = reinterpret_cast<const float*>(weights) + out;
#pragma unroll 1
      for (int c = 0; c < channels; c += 4, from += 4, w += 4 * conv_float_pitch(B::kOut / 16)) {
#pragma unroll 1
        for (int ty = 0; ty < 3; ++ty) {
          float4 x[kRun + 2];
#pragma unroll
          for (int p = 0; p < kRun + 2; ++p)
            x[p] = *reinterpret_cast<const float4*>(from + (ty * kHaloColumns + p) * B::kPitch);
          // Twelve terms at a time: one chain of hundreds would be less accurate than PyTorch's sums.
#pragma unroll
          for (int quad = 0; quad < kOuts / 4; ++quad) {
            float part[kRun][4] = {};
#pragma unroll
            for (int tx = 0; tx < 3; ++tx)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const float4 b = *reinterpret_cast<const float4*>(w + i * conv_float_pitch(B::kOut / 16) +
                                                                  (3 * ty + tx) * B::kOut + quad * 32);
#pragma unroll
                for (int p = 0; p < kRun; ++p) {
                  const float4& a = x[p + tx];
                  const float value = i == 0 ? a.x : i == 1 ? a.y : i == 2 ? a.z : a.w;
                  part[p][0] = fmaf(value, b.x, part[p][0]), part[p][1] = fmaf(value, b.y, part[p][1]);
                  part[p][2] = fmaf(value, b.z, part[p][2]), part[p][3] = fmaf(value, b.w, part[p][3]);
                }
              }
#pragma unroll
            for (int p = 0; p < kRun; ++p)
#pragma unroll
              for (int j = 0; j < 4; ++j) sum[p][4 * quad + j] += part[p][j];
          }
        }
      }
    }
  }

  // Row `r` of the warp's two as [pixel][channel].
  __device__ __forceinline__ void put_row(int r, float* to) const {
    const int lane = threadIdx.x % 32;
    if constexpr (kTensorCores<T>) {
      constexpr int kBlocks = B::kOut / 8;
      to += lane / 4 * B::kStagePitch + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* from = sum[r * kBlocks + n] + 2 * half;
          *reinterpret_cast<float2*>(to + 8 * half * B::kStagePitch + 8 * n) = make_float2(from[0], from[1]);
        }
    } else if (run_row(lane) == r) {
      to += run_column(lane) * B::kStagePitch + lane % kOutLanes * 4;
#pragma unroll
      for (int p = 0; p < kRun; ++p)
#pragma unroll
        for (int quad = 0; quad < kOuts / 4; ++quad) {
          const float* from = sum[p] + 4 * quad;
          *reinterpret_cast<float4*>(to + p * B::kStagePitch + quad * 32) =
              make_float4(from[0], from[1], from[2], from[3]);
        }
    }
  }
};

// Calls finish(sums, bias, n, y, x0, k0) for each row of 16 pixels: [pixel][channel from k0 on], of the warp.
template <class B, class T = typename B::T, class Finish>
__device__ __forceinline__ void convolve_tiles(const Convolution<T>& a, Finish finish) {
  FASTSR_SHARED_MEMORY(memory);
  float* bias = reinterpret_cast<float*>(memory);
  uint32_t* weights = reinterpret_cast<uint32_t*>(bias + B::kOut);
  T* halo = reinterpret_cast<T*>(weights + conv_weight_words<T>(B::kOut / 16));
  const int warp = threadIdx.x / 32;
  const int blocks = (a.outputs + B::kOut - 1) / B::kOut, k0 = blockIdx.x % blocks * B::kOut;
  float* stage = reinterpret_cast<float*>(halo) + warp * kTileColumns * B::kStagePitch;
  const int inputs = a.weights.inputs;
  for (int i = threadIdx.x; i < B::kOut; i += kConvThreads)
    bias[i] = a.bias.data && k0 + i < a.weights.outputs ? a.bias[k0 + i] : 0.f;
  for (int64_t tile = blockIdx.x / blocks; tile < a.tiles.count; tile += gridDim.x / blocks) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    ConvSums<B> sums;
    sums.clear();
    for (int c0 = 0; c0 < inputs; c0 += B::kIn) {
      const int channels = min(inputs - c0, B::kIn);
      if (inputs > B::kIn || tile == blockIdx.x / blocks)  // where the halo will be
        pack_conv_weights<T, B::kOut / 16, kConvThreads, B::kShared - 4 * B::kOut>(a.weights, k0, c0, channels,
                                                                                   weights);
      fetch_pixels<kConvRows + 2, kHaloColumns, B::kPitch, kConvThreads>(a.x, a.tiles, n, y0 - 1, x0 - 1, c0,
                                                                         width_log2_of(channels), halo);
      wait_for_copies();
      __syncthreads();
      sums.add(halo, weights, channels);
      __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sums.put_row(r, stage);
      __syncwarp();
      const int y = y0 + 2 * warp + r;
      if (y < a.tiles.h) finish(stage, bias, n, y, x0, k0);
      __syncwarp();
    }
    __syncthreads();  // the next halo takes the sums' place
  }
}

}  // namespace fastsr::cuda
