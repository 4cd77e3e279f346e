// Feature maps with any strides, read and written eight channels at a time.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace fastsr::cuda {

// Eight adjacent channels of one pixel, as they lie in memory.
template <class T>
struct Eight {
  static constexpr int kWords = 2 * sizeof(T);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
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

// Where number `i` of a row in shared memory lies, of floats or pairs of floats, of which every lane stores eight, 16
// bytes at once: side by side, the eight lanes that go together would meet in half of the banks, or in a quarter.
template <class T>
__device__ __forceinline__ int spread(int i) {
  return i ^ (i >> 3 & (sizeof(T) == 4 ? 4 : 6));
}

// How eight adjacent channels are accessed: by 16 bytes, two channels at a time, or one.
enum Access : int { kBySingle = 0, kByEight = 1, kByPair = 2 };

// [N, C, H, W]; strides in elements.
template <class T>
struct Map {
  T* data;
  int64_t n_stride, c_stride, h_stride, w_stride;
  int channels;
  int access;

  // From the image's index on, offsets are 64 bits wide.
  __device__ __forceinline__ int64_t at(int64_t n, int y, int x) const {
    return n * n_stride + y * h_stride + x * w_stride;
  }
  // Channels from `c` (a multiple of 8) on of the pixel at `offset`; those that the map lacks are 0. Without Pairs
  // for kernels that have no registers left for the code.
  template <bool Pairs = true>
  __device__ __forceinline__ Eight<T> load(int64_t offset, int c) const {
    Eight<T> e;
    if (access == kByEight && c + 8 <= channels) {
#pragma unroll
      for (int i = 0; i < Eight<T>::kWords; i += 4) load_128(data + offset + c + i * 4 / sizeof(T), e.word + i);
    } else if (Pairs && sizeof(T) == 2 && access == kByPair) {
      const auto* from = reinterpret_cast<const uint32_t*>(data + offset + c);
#pragma unroll
      for (int i = 0; i < 4; ++i) e.word[i] = c + 2 * i < channels ? from[i] : 0;
    } else {
      const int64_t step = computed_here(c_stride);
      const auto* from = reinterpret_cast<const typename Eight<T>::Bits*>(data + offset + c * step);
      uint32_t bits[8];
#pragma unroll
      for (int i = 0; i < 8; ++i, from += step) bits[i] = c + i < channels ? *from : 0;
#pragma unroll
      for (int i = 0; i < Eight<T>::kWords; ++i)
        e.word[i] = sizeof(T) == 4 ? bits[i] : bits[2 * i % 8] | bits[(2 * i + 1) % 8] << 16;
    }
    return e;
  }
  template <bool Pairs = true>
  __device__ __forceinline__ void store(int64_t offset, int c, const Eight<T>& e) const {
    if (access == kByEight && c + 8 <= channels) {
#pragma unroll
      for (int i = 0; i < Eight<T>::kWords; i += 4) store_128(data + offset + c + i * 4 / sizeof(T), e.word + i);
    } else if (Pairs && sizeof(T) == 2 && access == kByPair) {
      auto* to = reinterpret_cast<uint32_t*>(data + offset + c);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (c + 2 * i < channels) to[i] = e.word[i];
    } else {
      using Bits = typename Eight<T>::Bits;
      const int64_t step = computed_here(c_stride);
      Bits* to = reinterpret_cast<Bits*>(data + offset + c * step);
#pragma unroll
      for (int i = 0; i < 8; ++i, to += step)
        if (c + i < channels)
          *to = static_cast<Bits>(sizeof(T) == 4 ? e.word[i % Eight<T>::kWords] : e.word[i / 2] >> (i % 2 * 16));
    }
  }
};

}  // namespace fastsr::cuda
