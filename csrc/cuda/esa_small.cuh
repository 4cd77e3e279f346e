// From c1 to the small map, all in one kernel: a CTA makes the pixels of low that 8 x 8 pixels of the small map and the
// border of later layers look at (46 x 46 for three layers, a few rows at a time), their maxima, and then the small
// convolutions step by step.
//
// Neighbouring CTAs make the border's pixels of low again, 4.1 times in all for three layers (2.1 for one): products
// of 16 channels, which cost less than the launch and the map that they save.
#pragma once

#include "esa_low.cuh"

namespace fastsr::cuda {

constexpr int kSmallThreads = 512;  // there is about one CTA per multiprocessor

// A tile's sizes, and where things lie in shared memory: m, the maxima's places, and then conv2's filters and rows of
// low, whose place the small convolutions take.
template <class T>
struct SmallPlan {
  int side, span, rows, groups;                // of m; of low; rows at a time; groups of 16 columns of low
  int places, filters, bias, low, layer, end;  // bytes

  __host__ __device__ explicit SmallPlan(const EsaShape& s) {
    const int number = static_cast<int>(sizeof(float));
    side = kSmallTile + 2 * s.layers, span = (side - 1) * kPoolStep + kPool, groups = (span + 15) / 16;
    rows = s.wide <= 16 ? 8 : 4;
    const int map = side * side * s.wide;
    places = map * number;
    filters = places + map;
    bias = filters + 4 * conv2_words<T>(s.wide);
    low = bias + s.wide * number;
    layer = filters + map * number;
    const int first = low + rows * groups * 16 * s.wide * number;
    const int second = layer + static_cast<int>(esa_layer_words(s.wide)) * number;
    end = first > second ? first : second;
  }
};

__device__ __forceinline__ void store_four(float* to, const float (&v)[4]) {
  const uint32_t words[4] = {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                             __float_as_uint(v[3])};
  store_128(to, words);
}

// Takes rows [first, first + plan.rows) of low into the maxima of a window, in four channels. The first of equal ones
// counts, or the last NaN, as PyTorch has it.
template <class T>
__device__ __forceinline__ void pool_rows(const SmallPlan<T>& plan, const float* low, int wide, int first, int pixel,
                                          int c, float* m, unsigned char* places) {
  const int y = pixel / plan.side * kPoolStep, x = pixel % plan.side * kPoolStep;
  const int begin = max(y, first), end = min(y + kPool, first + plan.rows);
  if (begin >= end) return;
  float4* to = reinterpret_cast<float4*>(m + pixel * wide + c);
  unsigned char* place = places + pixel * wide + c;
  float most[4] = {to->x, to->y, to->z, to->w};
  unsigned char where[4] = {place[0], place[1], place[2], place[3]};
#pragma unroll 1
  for (int row = begin; row < end; ++row) {
    const float* from = low + ((row - first) * plan.groups * 16 + x) * wide + c;
#pragma unroll
    for (int j = 0; j < kPool; ++j) {
      const float4 at = *reinterpret_cast<const float4*>(from + j * wide);
      const float v[4] = {at.x, at.y, at.z, at.w};
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (v[k] > most[k] || v[k] != v[k])
          most[k] = v[k], where[k] = static_cast<unsigned char>((row - y) * kPool + j);
    }
  }
  *to = make_float4(most[0], most[1], most[2], most[3]);
#pragma unroll
  for (int k = 0; k < 4; ++k) place[k] = where[k];
}

template <class T>
__global__ void __launch_bounds__(kSmallThreads, 1) esa_small_kernel(const Esa<T> a) {
  FASTSR_SHARED_MEMORY(memory);
  const EsaShape& s = a.s;
  const SmallPlan<T> plan(s);
  const int side = plan.side, wide = s.wide, quads = wide / 4, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float *m = reinterpret_cast<float*>(memory), *bias = reinterpret_cast<float*>(memory + plan.bias);
  float* low = reinterpret_cast<float*>(memory + plan.low);
  unsigned char* places = memory + plan.places;
  uint32_t* w2 = reinterpret_cast<uint32_t*>(memory + plan.filters);
  int64_t n;
  int y0, x0;
  SmallTiles(s).at(blockIdx.x, &n, &y0, &x0);
  const auto own = [&](int y, int x) { return y >= y0 && y < y0 + kSmallTile && x >= x0 && x < x0 + kSmallTile; };
  const auto inside = [&](int y, int x) { return y >= 0 && y < s.small_h && x >= 0 && x < s.small_w; };
  const auto in_map = [&](int pixel) { return inside(y0 - s.layers + pixel / side, x0 - s.layers + pixel % side); };

  for (int i = threadIdx.x; i < conv2_words<T>(wide); i += kSmallThreads)
    w2[i] = conv2_word<T>(a.w.conv[0], i, s.f, wide);
  for (int i = threadIdx.x; i < wide; i += kSmallThreads) bias[i] = vector_at(a.w.conv[0].bias, i, s.f);
  for (int i = threadIdx.x; i < side * side * wide; i += kSmallThreads)
    m[i] = in_map(i / wide) ? -INFINITY : 0.f, places[i] = 0;  // outside of the map there are zeros
  __syncthreads();
  const int low_y = (y0 - s.layers) * kPoolStep, low_x = (x0 - s.layers) * kPoolStep;
  for (int first = 0; first < plan.span; first += plan.rows) {
    for (int item = warp; item < plan.rows * plan.groups; item += kSmallThreads / 32) {
      const int row = item / plan.groups, y = low_y + first + row;
      if (first + row >= plan.span || y < 0 || y >= s.h2) continue;  // of no window inside
      const int column = item % plan.groups * 16 + lane / 4, x[2] = {low_x + column, low_x + column + 8};
      for (int out = 0; out < wide / 16; ++out) {
        const int c = 16 * out + lane % 4 * 4;
        float sum[2][4];
        low_products(a, w2, bias + c, n, y, x, out, sum);
#pragma unroll
        for (int p = 0; p < 2; ++p)
          *reinterpret_cast<float4*>(low + (row * plan.groups * 16 + column + 8 * p) * wide + c) =
              make_float4(sum[p][0], sum[p][1], sum[p][2], sum[p][3]);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < side * side * quads; i += kSmallThreads)
      if (in_map(i / quads)) pool_rows(plan, low, wide, first, i / quads, i % quads * 4, m, places);
    __syncthreads();
  }
  if (a.m)
    for (int i = threadIdx.x; i < side * side * wide; i += kSmallThreads) {
      const int pixel = i / wide, y = y0 - s.layers + pixel / side, x = x0 - s.layers + pixel % side;
      if (!own(y, x) || !inside(y, x)) continue;
      const int64_t at = cell(n, y, x, s.small_h, s.small_w, wide) + i % wide;
      a.m[at] = m[i], a.index[at] = places[i];
    }

  float *from = m, *to = reinterpret_cast<float*>(memory + plan.filters);
  uint32_t* w = reinterpret_cast<uint32_t*>(memory + plan.layer);
  const int64_t map = s.n * s.small_h * s.small_w * wide;
  for (int layer = 1; layer <= s.layers; ++layer) {
    __syncthreads();
    for (int i = threadIdx.x; i < esa_layer_words(wide); i += kSmallThreads)
      w[i] = layer_word<T>(a.w.conv[layer], i, s.f, wide);
    __syncthreads();
    const int rest = s.layers - layer, across = kSmallTile + 2 * rest;
    const float* biases = reinterpret_cast<float*>(w) + kEsaTaps * wide * wide;
    const auto finish = [&](int pixel, int o, float (&sum)[4]) {
      const int y = y0 - rest + pixel / across, x = x0 - rest + pixel % across;
      const int64_t at = cell(n, y, x, s.small_h, s.small_w, wide) + o;
      if (layer == s.layers) {
        if (inside(y, x)) store_four(a.out + at, sum);
        return;
      }
      if (a.q && own(y, x) && inside(y, x)) store_four(a.q + (layer - 1) * map + at, sum);
      small_gelu<T>(sum, a.accuracy);
      if (!inside(y, x)) sum[0] = sum[1] = sum[2] = sum[3] = 0.f;
      const int row = pixel / across + layer, column = pixel % across + layer;
      *reinterpret_cast<float4*>(to + (row * side + column) * wide + o) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    };
    if constexpr (kSmallProducts<T>) {
      const int blocks = wide / 16, groups = (across * across + 15) / 16;
      for (int item = warp; item < groups * blocks; item += kSmallThreads / 32) {
        const int out = item % blocks, o = 16 * out + lane % 4 * 4, first = item / blocks * 16 + lane / 4;
        const float* inputs[2];
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const int pixel = min(first + 8 * p, across * across - 1);
          inputs[p] = from + ((pixel / across + layer - 1) * side + pixel % across + layer - 1) * wide;
        }
        const auto load = [&](int row, int column, int p, int c) {
          return *reinterpret_cast<const Four<T>*>(inputs[p] + (row * side + column) * wide + c);
        };
        float sum[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] = biases[o + i % 4];
        quad_products<T>(w, blocks, out, load, sum);
#pragma unroll
        for (int p = 0; p < 2; ++p)
          if (first + 8 * p < across * across) finish(first + 8 * p, o, sum[p]);
      }
    } else {
      // A thread takes four channels of four pixels below one another: where it reads numbers for each product, or for
      // each pixel, the kernel does little else than wait for shared memory.
      constexpr int kRows = 4;
      for (int i = threadIdx.x; i < (across + kRows - 1) / kRows * across * quads; i += kSmallThreads) {
        const int o = i % quads * 4, x = i / quads % across, first = i / quads / across * kRows;
        LongSum<T> sums[kRows][4];
#pragma unroll 1
        for (int tx = 0; tx < 3; ++tx) {
          const float *v = from + (x + layer - 1 + tx) * wide,
                      *of_tap = reinterpret_cast<float*>(w) + tx * wide * wide + o;
#pragma unroll 1
          for (int c = 0; c < wide; c += 4) {
            float of_row[kRows + 2][4];
#pragma unroll
            for (int r = 0; r < kRows + 2; ++r) {
              const int row = min(first + layer - 1 + r, side - 1);
              const float4 four = *reinterpret_cast<const float4*>(v + row * side * wide + c);
              of_row[r][0] = four.x, of_row[r][1] = four.y, of_row[r][2] = four.z, of_row[r][3] = four.w;
            }
#pragma unroll
            for (int ty = 0; ty < 3; ++ty)
#pragma unroll
              for (int k = 0; k < 4; ++k) {
                const float4 weights = *reinterpret_cast<const float4*>(of_tap + (3 * ty * wide + c + k) * wide);
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                  sums[r][0].add(of_row[r + ty][k], weights.x), sums[r][1].add(of_row[r + ty][k], weights.y);
                  sums[r][2].add(of_row[r + ty][k], weights.z), sums[r][3].add(of_row[r + ty][k], weights.w);
                }
              }
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float sum[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) sum[k] = sums[r][k].value() + biases[o + k];
          if (first + r < across) finish((first + r) * across + x, o, sum);
        }
      }
    }
    float* other = from;
    from = to, to = other;
  }
}

}  // namespace fastsr::cuda
