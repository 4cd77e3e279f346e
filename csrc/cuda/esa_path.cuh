// The side path of esa on maps of f channels, padded to `wide`, and what all its kernels are given:
//
//   c1 = conv1(x)                                                      esa_reduce_kernel
//   low = conv2(c1), stride 2;  m = max_pool(low, 7, stride 3)
//   q_1 = conv(m), q_2 = conv(GELU(q_1)), ...;  out = q_layers         esa_small_kernel (esa_small.cuh)
//
// c1 has the dtype of x; low is in shared memory only, and with the small maps float32.
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
  EsaWeights w;
  Map<T> x, y, c1, grad, dx, z, dz, dgate, dlow, dc1;
  const unsigned char *wf, *w4, *w1t, *w2t, *wft, *w4t;  // packed, for the backward, as are the next three
  const float *bf, *b4, *small;
  float *m, *q, *out;    // m, q and index are kept for the backward, else null
  int* index;            // of the maximum in its window
  float *d_from, *d_to;  // gradients of two small maps
  float* partials;
  int parts, layer, accuracy;
  unsigned tiles;  // of an image
};

// A pixel of a dense float32 map [n, h, w, wide].
__device__ __forceinline__ int64_t cell(int64_t n, int y, int x, int h, int w, int wide) {
  return ((n * h + y) * w + x) * wide;
}

__device__ __forceinline__ void pack_biases(float* to, const Parameter& p, int channels) {
  for (int i = threadIdx.x; i < blocks_of(channels) * kBlock; i += kProductThreads) to[i] = vector_at(p, i, channels);
}

template <class T>
int esa_reduce_shared(const EsaShape& s) {
  return static_cast<int>(product_block_bytes<T>(s.c)) + kBlock * static_cast<int>(sizeof(float));
}

template <class T>
__global__ void __launch_bounds__(kProductThreads, 2) esa_reduce_kernel(const Esa<T> a) {
  FASTSR_SHARED_MEMORY(memory);
  const EsaShape& s = a.s;
  float* bias = reinterpret_cast<float*>(memory + product_block_bytes<T>(s.c));
  pack_product<T>(reinterpret_cast<uint32_t*>(memory), 1, s.c,
                  [&](int o, int j) { return matrix_at(a.w.w1, o, j, s.f, s.c); });
  pack_biases(bias, a.w.b1, s.f);
  __syncthreads();
  const int c = threadIdx.x % 4 * 8;
  for (int64_t tile = blockIdx.x; tile < s.n * a.tiles; tile += gridDim.x) {
    const LanePixels at(static_cast<unsigned>(tile / a.tiles), static_cast<unsigned>(tile % a.tiles) * kProductPixels,
                        static_cast<unsigned>(s.h) * s.w, s.w);
    float sum[1][2][8];
    int64_t offset[2];
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      offset[p] = at.offset(a.x, p);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[0][p][i] = bias[c + i];
    }
    pixel_products<T, true, 1, 2>(a.x, offset, memory, 0, sum);
#pragma unroll
    for (int p = 0; p < 2; ++p)
      if (at.x[p] >= 0 && c < s.wide) a.c1.store(at.offset(a.c1, p), c, to_eight<T>(sum[0][p]));
  }
}

// GELU between the small convolutions, and its derivative.
template <class T>
__device__ __forceinline__ void small_gelu(float (&v)[4], int accuracy) {
  if (!kTensorCores<T> && accuracy != 2) {
#pragma unroll
    for (float& x : v) x = gelu_by_erfc(x);
  } else {
    activate_all<T>(v, kGelu, accuracy);
  }
}
template <class T>
__device__ __forceinline__ float small_gelu_derivative(float x) {
  return kTensorCores<T> ? gelu_derivative(x) : gelu_derivative_by_erfc(x);
}

// The products of a small filter, added up. In float32 proper with what rounding loses (Dekker's product, Knuth's sum):
// the gradients of the first of three small convolutions are behind what the others lose.
template <class T>
struct LongSum {
  float sum = 0.f, rest = 0.f;

  __device__ __forceinline__ void add(float a, float b) {
    if constexpr (!kTensorCores<T>) {
      const float product = a * b, next = sum + product, of_product = next - sum;
      rest += fmaf(a, b, -product) + ((sum - (next - of_product)) + (product - of_product));
      sum = next;
    } else {
      sum = fmaf(a, b, sum);
    }
  }
  __device__ __forceinline__ float value() const { return kTensorCores<T> ? sum : sum + rest; }
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

}  // namespace fastsr::cuda
