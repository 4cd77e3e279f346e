// Depthwise 3x3 convolutions of tiles in shared memory [pixel][channel]. A lane has two channels of a column of pixels,
// or of two columns where there are at most 32 channels.
#pragma once

#include "parameter.cuh"
#include "pixels.cuh"

namespace fastsr::cuda {

constexpr int kTapChannels = 64, kTapFloats = 10 * kTapChannels;

template <class T>
__device__ __forceinline__ float2 load_pair(const T* from) {
  float v[2];
  load_vector<2>(from, v);
  return make_float2(v[0], v[1]);
}
template <class T>
__device__ __forceinline__ void store_pair(T* to, float low, float high) {
  const float v[2] = {low, high};
  store_vector<2>(to, v);
}

// Filters in shared memory, [tap][channel] and the bias as a tenth tap; zeros where there are none. Turned, they are
// those of the transposed convolution.
template <int Threads>
__device__ __forceinline__ void pack_taps(const Parameter& weight, const Parameter& bias, int channels, bool turned,
                                          float* to) {
  for (int i = threadIdx.x; i < kTapFloats; i += Threads) {
    const int tap = i / kTapChannels, c = i % kTapChannels;
    float value = 0.f;
    if (weight.data && c < channels && tap < 9) value = weight[9 * c + (turned ? 8 - tap : tap)];
    if (bias.data && c < channels && tap == 9) value = bias[c];
    to[i] = value;
  }
}

// Those of two channels from `channel` on.
struct DepthwiseTaps {
  float2 tap[10];

  __device__ __forceinline__ DepthwiseTaps(const float* packed, int channel) {
#pragma unroll
    for (int i = 0; i < 10; ++i) tap[i] = *reinterpret_cast<const float2*>(packed + i * kTapChannels + channel);
  }
};

// q[row] = dw3x3(x) + b of two channels of a column, whose halo begins at `from`; M has the sizes of the tile.
template <class M, class T = typename M::T>
__device__ __forceinline__ void convolve_column(const T* from, const DepthwiseTaps& f, float (&q)[2 * M::kRows]) {
#pragma unroll
  for (int r = 0; r < M::kRows; ++r) q[2 * r] = f.tap[9].x, q[2 * r + 1] = f.tap[9].y;
#pragma unroll
  for (int row = 0; row < M::kRows + 2; ++row)
#pragma unroll
    for (int tx = 0; tx < 3; ++tx) {
      const float2 x = load_pair(from + (row * M::kHaloColumns + tx) * M::kPitch);
#pragma unroll
      for (int ty = 0; ty < 3; ++ty) {
        const int r = row - ty;
        if (r < 0 || r >= M::kRows) continue;
        q[2 * r] = fmaf(x.x, f.tap[3 * ty + tx].x, q[2 * r]);
        q[2 * r + 1] = fmaf(x.y, f.tap[3 * ty + tx].y, q[2 * r + 1]);
      }
    }
}

// Sums for the gradients of ten taps, of a lane's two channels, to to[9 channel + tap], then those of the tenth. Every
// `Lanes` adjacent lanes have the same channels. `memory`: ten pairs of floats per thread.
template <int Threads, int Lanes>
__device__ __forceinline__ void store_tap_sums(const float (&sum)[10][2], float* memory, int channels, float* to) {
  constexpr int kSets = Threads / Lanes, kChannels = 2 * Lanes;
#pragma unroll
  for (int i = 0; i < 10; ++i)
    *reinterpret_cast<float2*>(memory + (threadIdx.x / Lanes * 10 + i) * kChannels + threadIdx.x % Lanes * 2) =
        make_float2(sum[i][0], sum[i][1]);
  __syncthreads();
  for (int i = threadIdx.x; i < 10 * kChannels; i += Threads) {
    const int tap = i / kChannels, c = i % kChannels;
    if (c >= channels) continue;
    float total = 0.f;
#pragma unroll
    for (int set = 0; set < kSets; ++set) total += memory[(set * 10 + tap) * kChannels + c];
    to[tap < 9 ? c * 9 + tap : channels * 9 + c] = total;
  }
}

}  // namespace fastsr::cuda
