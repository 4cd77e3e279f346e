// 3x3 convolutions of few channels: a warp takes 16 pixels x 16 channels out, a lane (g, t) = (lane / 4, lane % 4) two
// pixels, g and g + 8, and four adjacent channels of them, in and out, from 4 t on. conv2 is one, and in TF32 so are
// the convolutions of the small map.
#pragma once

#include "esa_path.cuh"

namespace fastsr::cuda {

// Adjacent channels of a pixel.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  uint32_t word[sizeof(T)];
};

// Adds to `sum` on tensor cores, with weights in conv2_word's order. `load(row of taps, column, pixel, channel)` gives
// a Four.
template <class T, class Load>
__device__ __forceinline__ void quad_products(const uint32_t* packed, int blocks, int out, Load load,
                                              float (&sum)[2][4]) {
  constexpr int kSteps = 16 / product_depth<T>;
  const int lane = threadIdx.x % 32, t = lane % 4;
  float d[2][4] = {{sum[0][0], sum[0][1], sum[1][0], sum[1][1]}, {sum[0][2], sum[0][3], sum[1][2], sum[1][3]}};
  const uint4* w = reinterpret_cast<const uint4*>(packed) + out * blocks * kSteps * 32 + lane;
  for (int in = 0; in < blocks; ++in) {
#pragma unroll 1
    for (int row = 0; row < 3; ++row) {
      Four<T> v[3][2];  // on their way at once
#pragma unroll
      for (int i = 0; i < 6; ++i) v[i / 2][i % 2] = load(row, i / 2, i % 2, 16 * in + 4 * t);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        uint32_t (&p0)[sizeof(T)] = v[tap][0].word, (&p1)[sizeof(T)] = v[tap][1].word;
        for_product<T>(p0), for_product<T>(p1);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const uint4 b = w[(((3 * row + tap) * blocks * blocks + in) * kSteps + step) * 32];
          const int i = 2 * step;
          mma<T>(d[0], p0[i], p1[i], p0[i + 1], p1[i + 1], b.x, b.y);
          mma<T>(d[1], p0[i], p1[i], p0[i + 1], p1[i + 1], b.z, b.w);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] = d[i % 4 / 2][i / 4 * 2 + i % 2];
}

// low at columns x[0] and x[1] of row y: four outputs of each, from 16 out + 4 (lane % 4) on. `bias` likewise.
template <class T>
__device__ __forceinline__ void low_products(const Esa<T>& a, const uint32_t* w2, const float* bias, int64_t n, int y,
                                             const int (&x)[2], int out, float (&sum)[2][4]) {
  const EsaShape& s = a.s;
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] = bias[i % 4];
  const auto offset = [&](int row, int column, int p) -> int64_t {
    const int from_y = 2 * y + row - s.padding, from_x = 2 * x[p] + column - s.padding;
    const bool inside = x[p] >= 0 && x[p] < s.w2 && from_y >= 0 && from_y < s.h && from_x >= 0 && from_x < s.w;
    return inside ? a.c1.at(n, from_y, from_x) : -1;
  };
  if constexpr (kTensorCores<T>) {
    const auto load = [&](int row, int column, int p, int c) {
      const int64_t from = offset(row, column, p);
      Four<T> v{};
      if (from >= 0) v = *reinterpret_cast<const Four<T>*>(a.c1.data + from + c);
      return v;
    };
    quad_products<T>(w2, s.wide / 16, out, load, sum);
  } else {
#pragma unroll 1
    for (int tap = 0; tap < kEsaTaps; ++tap) {
      const int64_t from[2] = {offset(tap / 3, tap % 3, 0), offset(tap / 3, tap % 3, 1)};
      const float* w = reinterpret_cast<const float*>(w2) + tap * s.wide * s.wide + 16 * out + 4 * t;
#pragma unroll 1
      for (int c = 0; c < s.wide; c += 8, w += 8 * s.wide) {
        float part[2][4] = {};  // sums of eight products: a long sum loses more digits
        Eight<T> v[2] = {Eight<T>::zeros(), Eight<T>::zeros()};
#pragma unroll
        for (int p = 0; p < 2; ++p)
          if (from[p] >= 0) v[p] = a.c1.load(from[p], c);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float4 of_input = *reinterpret_cast<const float4*>(w + i * s.wide);
#pragma unroll
          for (int p = 0; p < 2; ++p) {
            const float value = __uint_as_float(v[p].word[i]);
            part[p][0] = fmaf(value, of_input.x, part[p][0]), part[p][1] = fmaf(value, of_input.y, part[p][1]);
            part[p][2] = fmaf(value, of_input.z, part[p][2]), part[p][3] = fmaf(value, of_input.w, part[p][3]);
          }
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] += part[i / 4][i % 4];
      }
    }
  }
}

}  // namespace fastsr::cuda
