// 1x1 convolutions of the pixels that a warp owns of a tile, and their way to memory.
#pragma once

#include "conv_mix_tile.cuh"

namespace fastsr::cuda {

// 64 channels of a warp's own pixels in registers, as pairs of adjacent channels. In products of 16 bits the pixels are
// A, 16 of them; in TF32 they are B, eight, which is as many as float32's tiles give a warp.
template <class M>
struct OwnPixels {
  using T = typename M::T;
  static constexpr bool kAreColumns = __is_same(T, Tf32);
  static constexpr Order kOrder = kAreColumns ? Order::kTwoOfRows : Order::kAsItIs;  // of the weights
  static_assert(!kTensorCores<T> || M::kOwn == (kAreColumns ? 8 : 16));
  static constexpr int kPairs = M::kOwn;  // of a lane
  float value[2 * kPairs];

  __device__ __forceinline__ static int pixel(int pair) {
    const int lane = threadIdx.x % 32;
    return kAreColumns ? lane % 4 * 2 + pair % 2 : kTensorCores<T> ? lane / 4 + pair % 2 * 8 : pair;
  }
  __device__ __forceinline__ static int channel(int pair) {
    const int lane = threadIdx.x % 32;
    return kAreColumns ? pair / 2 * 16 + lane / 4 * 2 : kTensorCores<T> ? pair / 2 * 8 + lane % 4 * 2 : lane * 2;
  }
  __device__ __forceinline__ static int at(int pair) { return pixel(pair) * M::kPitch + channel(pair); }

  // The product of the warp's pixels `from` with packed weights; channels from `inputs` on need not be there, but for
  // zeros up to a multiple of 16.
  __device__ __forceinline__ void multiply(const T* from, const uint32_t* weights, int inputs = kMixChannels) {
    clear();
    add_product(from, weights, inputs);
  }
  // The same, added to what is there.
  __device__ __forceinline__ void add_product(const T* from, const uint32_t* weights, int inputs = kMixChannels) {
    const int lane = threadIdx.x % 32;
    if constexpr (kAreColumns) {
      add_product_by(from, PackedRows{weights}, inputs);
    } else if constexpr (kTensorCores<T>) {
      float sum[8][4];
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        sum[i / 2][i % 2 * 2] = value[2 * i], sum[i / 2][i % 2 * 2 + 1] = value[2 * i + 1];
      const uint4* w = reinterpret_cast<const uint4*>(weights) + lane;
      from += lane % 16 * M::kPitch + lane / 16 * 8;
#pragma unroll 1
      for (int step = 0; step < (inputs + 15) / 16; ++step) {
        uint32_t a[4];
        load_matrices(a, from + 16 * step);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint4 b = w[(4 * step + n) * 32];
          mma_k16<T>(sum[2 * n], a[0], a[1], a[2], a[3], b.x, b.y);
          mma_k16<T>(sum[2 * n + 1], a[0], a[1], a[2], a[3], b.z, b.w);
        }
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        value[2 * i] = sum[i / 2][i % 2 * 2], value[2 * i + 1] = sum[i / 2][i % 2 * 2 + 1];
    } else {
      const float* w = reinterpret_cast<const float*>(weights) + 2 * lane;
#pragma unroll 2
      for (int c = 0; c < inputs; c += 4) {
        float2 b[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = *reinterpret_cast<const float2*>(w + (c + i) * mix_pitch<T>);
#pragma unroll
        for (int p = 0; p < kPairs; ++p) {
          const float4 a = *reinterpret_cast<const float4*>(from + p * M::kPitch + c);
          const float x[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            value[2 * p] = fmaf(x[i], b[i].x, value[2 * p]);
            value[2 * p + 1] = fmaf(x[i], b[i].y, value[2 * p + 1]);
          }
        }
      }
    }
  }
  // In TF32, with weights as `multiply_columns` takes them.
  template <class Rows>
  __device__ __forceinline__ void multiply_by(const T* from, Rows rows, int inputs = kMixChannels) {
    clear();
    add_product_by(from, rows, inputs);
  }
  template <class Rows>
  __device__ __forceinline__ void add_product_by(const T* from, Rows rows, int inputs) {
    float sum[4][4];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) sum[i / 2][i % 2] = value[2 * i], sum[i / 2][i % 2 + 2] = value[2 * i + 1];
    multiply_columns<M>(from, rows, inputs, sum);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) value[2 * i] = sum[i / 2][i % 2], value[2 * i + 1] = sum[i / 2][i % 2 + 2];
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) value[i] = 0.f;
  }
  // The inverse of `put`.
  __device__ __forceinline__ void take(const T* from) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 both = load_pair(from + at(i));
      value[2 * i] = both.x, value[2 * i + 1] = both.y;
    }
  }
  __device__ __forceinline__ void add(const float* bias) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) value[2 * i] += bias[channel(i)], value[2 * i + 1] += bias[channel(i) + 1];
  }
  // Into the warp's pixels of a tile; a __syncwarp before and after is the caller's.
  __device__ __forceinline__ void put(T* to) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) store_pair(to + at(i), value[2 * i], value[2 * i + 1]);
  }
};

// A warp's own pixels, from shared memory to a map.
template <class M, class T = typename M::T>
__device__ __forceinline__ void store_own(const PixelMap<T>& m, const Tiles& s, int64_t n, int y0, int x0,
                                          const T* tile) {
  // What follows from the lane is not to fill registers that float32's kernels have not got.
  const int lane = (kTensorCores<T> ? threadIdx.x : computed_here(threadIdx.x)) % 32;
  const int y = y0 + M::own_row(), x_begin = x0 + M::own_column();
  if (y >= s.h) return;
  tile += M::own() * M::kPitch;
  with_vector<T>(m.vector, [&](auto vector) {
    constexpr int V = decltype(vector)::value, kLanes = kMixChannels / V < 32 ? kMixChannels / V : 32;
    const bool across = V > 1 || m.c_stride == 1;
    const int first = across ? lane / kLanes : lane % M::kOwn, step = across ? 32 / kLanes : M::kOwn;
#pragma unroll 1
    for (int c = across ? lane % kLanes * V : lane / M::kOwn; c < m.channels; c += across ? kLanes * V : 32 / M::kOwn) {
      T* to = m.data + m.at(n, y, x_begin + first) + c * m.c_stride;
#pragma unroll 4
      for (int p = first; p < M::kOwn; p += step, to += step * m.w_stride) {
        if (x_begin + p >= s.w) break;
        const T* from = tile + p * M::kPitch + c;
        if constexpr (V * sizeof(T) == 16)
          store_128(to, reinterpret_cast<const uint32_t*>(from));
        else if constexpr (V * sizeof(T) == 8)
          *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
        else if constexpr (V * sizeof(T) == 4)
          *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
        else
          *to = *from;
      }
    }
  });
}

}  // namespace fastsr::cuda
