// Tiles of a few rows of 16 pixels: from maps of any strides into shared memory [pixel][channel], and the accesses in
// which results go back.
#pragma once

#include "map.cuh"

namespace fastsr::cuda {

constexpr int kTileColumns = 16;

struct Tiles {
  int64_t count;  // of all images
  int h, w, across, down, rows;

  __device__ __forceinline__ void at(int64_t i, int64_t* n, int* y, int* x) const {
    const int in_image = static_cast<int>(i % (static_cast<int64_t>(across) * down));
    *n = i / (static_cast<int64_t>(across) * down);
    *y = in_image / across * rows;
    *x = in_image % across * kTileColumns;
  }
};

// Of a map that is accessed `vector` adjacent channels at a time: 16 bytes, 2 channels or 1. A pixel of 58 channels
// begins on 4 bytes: two channels at a time a warp reads whole pixels, and nothing but them.
template <class T>
struct PixelMap : Map<T> {
  int vector;
};

template <class T>
constexpr int kWideVector = 16 / static_cast<int>(sizeof(T));

// A map in scratch memory, of which the compiler is told how it is accessed.
template <class T>
__device__ __forceinline__ PixelMap<T> in_scratch(PixelMap<T> m) {
  m.c_stride = 1, m.vector = kWideVector<T>;
  return m;
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// Calls body(Constant<vector>()).
template <class T, class Body>
__device__ __forceinline__ void with_vector(int vector, Body body) {
  if (vector == kWideVector<T>)
    body(Constant<kWideVector<T>>());
  else if (vector == 2)
    body(Constant<2>());
  else
    body(Constant<1>());
}

__host__ __device__ constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

// The smallest power of two, at least 16 and at most 64, that holds `channels`.
__device__ __forceinline__ int width_log2_of(int channels) { return channels <= 16 ? 4 : channels <= 32 ? 5 : 6; }

// Starts to copy the channels [c0, c0 + 2^width_log2) of Rows x Columns pixels from (y0, x0) on; outside of the image
// and beyond the map's channels there are zeros. `wait_for_copies` and a barrier must follow.
//
// A thread goes down a column of pixels: what depends on the column and the channel is computed once.
template <int Rows, int Columns, int Pitch, int Threads, class T>
__device__ __forceinline__ void fetch_pixels(const PixelMap<T>& m, const Tiles& s, int64_t n, int y0, int x0, int c0,
                                             int width_log2, T* to) {
  static_assert(Columns <= 32);
  with_vector<T>(m.vector, [&](auto vector) {
    constexpr int V = decltype(vector)::value;
    const bool across = V > 1 || m.c_stride == 1;  // neighbouring lanes take neighbours in memory
    const int shift = width_log2 - log2_of(V), items = across ? Columns << shift : 32 << width_log2;
#pragma unroll 1
    for (int i = threadIdx.x; i < items; i += Threads) {
      const int column = across ? i >> shift : i % 32, c = across ? (i & ((1 << shift) - 1)) * V : i / 32;
      if (column >= Columns) continue;
      const bool reaches = x0 + column >= 0 && x0 + column < s.w && c0 + c < m.channels;
      const T* from = m.data + m.at(n, y0, x0 + column) + (c0 + c) * m.c_stride;
      T* at = to + column * Pitch + c;
#pragma unroll
      for (int r = 0; r < Rows; ++r, from += m.h_stride) {
        const bool inside = reaches && y0 + r >= 0 && y0 + r < s.h;
        if constexpr (V * sizeof(T) >= 4)
          copy_async<V* static_cast<int>(sizeof(T))>(at + r * Columns * Pitch, from, inside);
        else
          at[r * Columns * Pitch] = inside ? *from : from_float<T>(0.f);
      }
    }
  });
}

template <int V, class T>
__device__ __forceinline__ void load_vector(const T* from, float (&v)[V]) {
  if constexpr (V * sizeof(T) == 16) {
    Eight<T> e;
    load_128(from, e.word);
#pragma unroll
    for (int i = 0; i < V / 2; ++i) v[2 * i] = e.pair(i).x, v[2 * i + 1] = e.pair(i).y;
  } else if constexpr (V == 2) {
    Eight<T> e;
    if constexpr (sizeof(T) == 4) {
      const uint2 both = *reinterpret_cast<const uint2*>(from);
      e.word[0] = both.x, e.word[1] = both.y;
    } else {
      e.word[0] = *reinterpret_cast<const uint32_t*>(from);
    }
    v[0] = e.pair(0).x, v[1] = e.pair(0).y;
  } else {
    v[0] = to_float(*from);
  }
}

template <int V, class T>
__device__ __forceinline__ void store_vector(T* to, const float (&v)[V]) {
  if constexpr (V == 1) {
    *to = from_float<T>(v[0]);
  } else {
    Eight<T> e;
#pragma unroll
    for (int i = 0; i < V / 2; ++i) e.set_pair(i, v[2 * i], v[2 * i + 1]);
    if constexpr (V * sizeof(T) == 16)
      store_128(to, e.word);
    else if constexpr (V * sizeof(T) == 8)
      *reinterpret_cast<uint2*>(to) = {e.word[0], e.word[1]};
    else
      *reinterpret_cast<uint32_t*>(to) = e.word[0];
  }
}

}  // namespace fastsr::cuda
