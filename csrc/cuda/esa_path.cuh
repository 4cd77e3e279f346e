// The side path of esa on maps of f channels, padded to `wide`, and what all its kernels are given:
//
//   c1 = conv1(x)                          product_kernel
//   low = conv2(c1), stride 2              esa_low_kernel
//   m = max_pool(low, 7, stride 3);  q_1 = conv(m), q_2 = conv(GELU(q_1)), ...;  out = q_layers      esa_small_kernel
//
// c1 has the dtype of x, and a margin of zeros; low and the small maps are float32.
#pragma once

#include "esa_pack.cuh"
#include "gelu.cuh"
#include "pixel_lanes.cuh"

namespace fastsr::cuda {

constexpr int kPool = 7, kPoolStep = 3, kSmallTile = 8;

struct EsaShape {
  int64_t n;
  int h, w, h2, w2, small_h, small_w;  // of x, low, and the small maps
  int c, f, wide, padding, layers;
  float ratio_h, ratio_w;  // small_h / h, small_w / w
};

template <class T>
struct Esa {
  EsaShape s;
  Map<T> x, y, c1, grad, dx, z, dz, dgate, dlow, dc1;
  const unsigned char *w1, *w2, *wf, *w4, *w1t, *w2t, *wft, *w4t;
  const float *b2, *bf, *b4, *small;
  float *low, *m, *q, *out;  // m, q and index are kept for the backward, else null
  int* index;                // of the maximum in its window
  float *d_from, *d_to;      // gradients of two small maps
  float* partials;
  int parts, layer, accuracy;
  unsigned tiles, low_tiles;  // of an image
};

// A pixel of a dense float32 map [n, h, w, wide].
__device__ __forceinline__ int64_t cell(int64_t n, int y, int x, int h, int w, int wide) {
  return ((n * h + y) * w + x) * wide;
}

template <class T>
__global__ void __launch_bounds__(kProductThreads, 2) esa_low_kernel(const Esa<T> a) {
  const EsaShape& s = a.s;
  const int t = threadIdx.x % 4;
  const LanePixels at(a.low_tiles, s.h2 * s.w2, s.w2);
  float sum[1][2][8];
#pragma unroll
  for (int i = 0; i < 16; ++i) sum[0][i / 8][i % 8] = a.b2[8 * t + i % 8];
  const int64_t tap_bytes = product_block_bytes<T>(s.f);
#pragma unroll 1
  for (int tap = 0; tap < kEsaTaps; ++tap) {
    int64_t offset[2];
#pragma unroll
    for (int p = 0; p < 2; ++p)
      offset[p] = at.x[p] >= 0
                      ? a.c1.at(at.image, 2 * at.y[p] + tap / 3 - s.padding + 1, 2 * at.x[p] + tap % 3 - s.padding + 1)
                      : -1;
    pixel_products<T, true, 1, 2>(a.c1, offset, a.w2 + tap * tap_bytes, 0, sum);
  }
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    if (at.x[p] < 0 || 8 * t >= s.wide) continue;
    float4* to = reinterpret_cast<float4*>(a.low + cell(at.image, at.y[p], at.x[p], s.h2, s.w2, s.wide) + 8 * t);
    const float (&v)[8] = sum[0][p];
    to[0] = make_float4(v[0], v[1], v[2], v[3]);
    to[1] = make_float4(v[4], v[5], v[6], v[7]);
  }
}

// A pixel of the small map, the maximum of its window in four channels and where in it: the first, or the last NaN, as
// PyTorch has it.
__device__ __forceinline__ void pool_window(const float* low, const EsaShape& s, int64_t n, int y, int x, int c,
                                            float (&most)[4], int (&where)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) most[k] = -INFINITY, where[k] = 0;
#pragma unroll 1
  for (int i = 0; i < kPool; ++i) {
    float4 row[kPool];
    const float* from = low + cell(n, y * kPoolStep + i, x * kPoolStep, s.h2, s.w2, s.wide) + c;
#pragma unroll
    for (int j = 0; j < kPool; ++j) row[j] = *reinterpret_cast<const float4*>(from + j * s.wide);
#pragma unroll
    for (int j = 0; j < kPool; ++j) {
      const float v[4] = {row[j].x, row[j].y, row[j].z, row[j].w};
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (v[k] > most[k] || v[k] != v[k]) most[k] = v[k], where[k] = i * kPool + j;
    }
  }
}

// GELU between the small convolutions, and its derivative.
template <class T>
__device__ __forceinline__ void small_gelu(float (&v)[4], int accuracy) {
  if (sizeof(T) == 4 && accuracy != 2) {
#pragma unroll
    for (float& x : v) x = gelu_by_erfc(x);
  } else {
    activate_all<T>(v, kGelu, accuracy);
  }
}
template <class T>
__device__ __forceinline__ float small_gelu_derivative(float x) {
  return sizeof(T) == 4 ? gelu_derivative_by_erfc(x) : gelu_derivative(x);
}

// The products of a small filter, added up. For maps of float32 with what rounding loses (Dekker's product, Knuth's
// sum): the gradients of the first of three small convolutions are behind what the others lose.
template <class T>
struct LongSum {
  float sum = 0.f, rest = 0.f;

  __device__ __forceinline__ void add(float a, float b) {
    if constexpr (sizeof(T) == 4) {
      const float product = a * b, next = sum + product, of_product = next - sum;
      rest += fmaf(a, b, -product) + ((sum - (next - of_product)) + (product - of_product));
      sum = next;
    } else {
      sum = fmaf(a, b, sum);
    }
  }
  __device__ __forceinline__ float value() const { return sizeof(T) == 4 ? sum + rest : sum; }
};

// Tiles of 8 x 8 pixels of the small maps of all images.
struct SmallTiles {
  int64_t count;
  int across, down;

  __host__ __device__ explicit SmallTiles(const EsaShape& s)
      : across((s.small_w + kSmallTile - 1) / kSmallTile), down((s.small_h + kSmallTile - 1) / kSmallTile) {
    count = s.n * across * down;
  }
  __device__ __forceinline__ void at(int64_t i, int64_t* n, int* y, int* x) const {
    const int in_image = static_cast<int>(i % (static_cast<int64_t>(across) * down));
    *n = i / (static_cast<int64_t>(across) * down);
    *y = in_image / across * kSmallTile, *x = in_image % across * kSmallTile;
  }
};

inline int esa_small_shared(const EsaShape& s) {
  const int side = kSmallTile + 2 * s.layers;
  return static_cast<int>((2 * side * side * s.wide + esa_layer_words(s.wide)) * sizeof(float));
}

// A tile with the border that the later layers need, step by step in shared memory; outside of the map there are zeros.
template <class T>
__global__ void __launch_bounds__(kProductThreads, 2) esa_small_kernel(const Esa<T> a) {
  FASTSR_SHARED_MEMORY(memory);
  const EsaShape& s = a.s;
  const int side = kSmallTile + 2 * s.layers, quads = s.wide / 4;
  float *from = reinterpret_cast<float*>(memory), *to = from + side * side * s.wide, *w = to + side * side * s.wide;
  int64_t n;
  int y0, x0;
  SmallTiles(s).at(blockIdx.x, &n, &y0, &x0);
  const auto own = [&](int y, int x) { return y >= y0 && y < y0 + kSmallTile && x >= x0 && x < x0 + kSmallTile; };
  const auto inside = [&](int y, int x) { return y >= 0 && y < s.small_h && x >= 0 && x < s.small_w; };
  for (int i = threadIdx.x; i < side * side * quads; i += kProductThreads) {
    const int c = i % quads * 4, pixel = i / quads;
    const int y = y0 - s.layers + pixel / side, x = x0 - s.layers + pixel % side;
    float most[4] = {};
    if (inside(y, x)) {
      int where[4];
      pool_window(a.low, s, n, y, x, c, most, where);
      if (a.m && own(y, x))
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int64_t at = cell(n, y, x, s.small_h, s.small_w, s.wide) + c + k;
          a.m[at] = most[k], a.index[at] = where[k];
        }
    }
    *reinterpret_cast<float4*>(from + pixel * s.wide + c) = make_float4(most[0], most[1], most[2], most[3]);
  }
  const int64_t map = s.n * s.small_h * s.small_w * s.wide;
  for (int layer = 1; layer <= s.layers; ++layer) {
    __syncthreads();
    for (int i = threadIdx.x; i < esa_layer_words(s.wide); i += kProductThreads)
      w[i] = a.small[(layer - 1) * esa_layer_words(s.wide) + i];
    __syncthreads();
    const int rest = s.layers - layer, across = kSmallTile + 2 * rest;
    for (int i = threadIdx.x; i < across * across * quads; i += kProductThreads) {
      const int o = i % quads * 4, pixel = i / quads;
      const int y = y0 - rest + pixel / across, x = x0 - rest + pixel % across;
      const int row = pixel / across + layer - 1, column = pixel % across + layer - 1;  // of the first tap
      const float* bias = w + kEsaTaps * s.wide * s.wide + o;
      LongSum<T> sums[4];
      for (int tap = 0; tap < kEsaTaps; ++tap) {
        const float* v = from + ((row + tap / 3) * side + column + tap % 3) * s.wide;
        const float* of_tap = w + tap * s.wide * s.wide + o;
#pragma unroll 4
        for (int c = 0; c < s.wide; ++c) {
          const float4 weights = *reinterpret_cast<const float4*>(of_tap + c * s.wide);
          sums[0].add(v[c], weights.x), sums[1].add(v[c], weights.y);
          sums[2].add(v[c], weights.z), sums[3].add(v[c], weights.w);
        }
      }
      float sum[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[k] = sums[k].value() + bias[k];
      const int64_t at = cell(n, y, x, s.small_h, s.small_w, s.wide) + o;
      if (layer == s.layers) {
        if (inside(y, x)) *reinterpret_cast<float4*>(a.out + at) = make_float4(sum[0], sum[1], sum[2], sum[3]);
        continue;
      }
      if (a.q && own(y, x) && inside(y, x))
        *reinterpret_cast<float4*>(a.q + (layer - 1) * map + at) = make_float4(sum[0], sum[1], sum[2], sum[3]);
      small_gelu<T>(sum, a.accuracy);
      if (!inside(y, x)) sum[0] = sum[1] = sum[2] = sum[3] = 0.f;
      *reinterpret_cast<float4*>(to + ((row + 1) * side + column + 1) * s.wide + o) =
          make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
    float* other = from;
    from = to, to = other;
  }
}

}  // namespace fastsr::cuda
