// Feature maps with any strides, read and written eight channels at a time.
#pragma once

#include "device.cuh"

namespace fastsr::cuda {

// Eight adjacent channels of one pixel, as they lie in memory.
template <class T>
struct Eight {
  static constexpr int kWords = 2 * sizeof(T);
  uint32_t word[kWords];

  __device__ __forceinline__ float2 pair(int i) const {  // channels 2 i and 2 i + 1
    if constexpr (sizeof(T) == 4)
      return make_float2(__uint_as_float(word[2 * i]), __uint_as_float(word[2 * i + 1]));
    else
      return unpack2<T>(word[i]);
  }
  __device__ __forceinline__ void set_pair(int i, float low, float high) {
    if constexpr (sizeof(T) == 4) {
      word[2 * i] = __float_as_uint(low);
      word[2 * i + 1] = __float_as_uint(high);
    } else {
      word[i] = pack2<T>(low, high);
    }
  }
  __device__ __forceinline__ static Eight zeros() {
    Eight e;
#pragma unroll
    for (int i = 0; i < kWords; ++i) e.word[i] = 0;
    return e;
  }
};

// [N, C, H, W]; strides in elements.
template <class T>
struct Map {
  T* data;
  int64_t n_stride, c_stride, h_stride, w_stride;
  int channels;
  int wide;  // channels are adjacent and every pixel begins on 16 bytes: eight channels are one or two loads

  // From the image's index on, offsets are 64 bits wide.
  __device__ __forceinline__ int64_t at(int64_t n, int y, int x) const {
    return n * n_stride + y * h_stride + x * w_stride;
  }
  // Channels from `c` (a multiple of 8) on of the pixel at `offset`; those that the map lacks are 0.
  __device__ __forceinline__ Eight<T> load(int64_t offset, int c) const {
    Eight<T> e;
    if (wide && c + 8 <= channels) {
      const uint4* from = reinterpret_cast<const uint4*>(data + offset + c);
#pragma unroll
      for (int i = 0; i < Eight<T>::kWords / 4; ++i) {
        const uint4 q = from[i];
        e.word[4 * i] = q.x, e.word[4 * i + 1] = q.y, e.word[4 * i + 2] = q.z, e.word[4 * i + 3] = q.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t from = offset + (c + 2 * i) * c_stride;
        const float low = c + 2 * i < channels ? to_float(data[from]) : 0.f;
        const float high = c + 2 * i + 1 < channels ? to_float(data[from + c_stride]) : 0.f;
        e.set_pair(i, low, high);
      }
    }
    return e;
  }
  __device__ __forceinline__ void store(int64_t offset, int c, const Eight<T>& e) const {
    if (wide && c + 8 <= channels) {
      uint4* to = reinterpret_cast<uint4*>(data + offset + c);
#pragma unroll
      for (int i = 0; i < Eight<T>::kWords / 4; ++i)
        to[i] = make_uint4(e.word[4 * i], e.word[4 * i + 1], e.word[4 * i + 2], e.word[4 * i + 3]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 p = e.pair(i);
        T* to = data + offset + (c + 2 * i) * c_stride;
        if (c + 2 * i < channels) to[0] = from_float<T>(p.x);
        if (c + 2 * i + 1 < channels) to[c_stride] = from_float<T>(p.y);
      }
    }
  }
};

}  // namespace fastsr::cuda
