// From the gradient of z back through the side path of esa. Whatever several pixels add to is gathered.
//
//   dout = bilinear^T(dz)                                            esa_enlarge_backward_kernel
//   dv = conv^T(dq);  dq_before = dv GELU'(q_before), or dm          esa_small_backward_kernel, layer by layer
//   dlow: the gradient of each window goes to its maximum            esa_pool_backward_kernel
//   dc1 = conv_f^T(dz) + conv2^T(dlow);  dx += conv1^T(dc1)          esa_input_backward_kernel
#pragma once

#include "esa_gate.cuh"

namespace fastsr::cuda {

// A warp per pixel of the small map: groups of eight channels by columns.
template <class T>
__global__ void __launch_bounds__(kProductThreads) esa_enlarge_backward_kernel(const Esa<T> a) {
  const EsaShape& s = a.s;
  const int lane = threadIdx.x % 32;
  const int groups = s.wide <= 8 ? 1 : s.wide <= 16 ? 2 : 4, c = lane % groups * 8, slots = 32 / groups;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * (kProductThreads / 32) + threadIdx.x / 32;
  if (pixel >= s.n * s.small_h * s.small_w) return;
  const int x = static_cast<int>(pixel % s.small_w), y = static_cast<int>(pixel / s.small_w % s.small_h);
  const int64_t n = pixel / s.small_w / s.small_h;
  // Pixels whose position on the small map lies within 1 of the small pixel, and one more against rounding.
  const auto first = [](int i, int64_t size, int small) {
    return max(static_cast<int>((2 * i - 1) * size / (2 * small)) - 2, 0);
  };
  const auto last = [](int i, int64_t size, int small) {
    return static_cast<int>(min((2 * i + 3) * size / (2 * small) + 2, size));
  };
  const int right = last(x, s.w, s.small_w), bottom = last(y, s.h, s.small_h);
  float sum[8] = {};
  for (int to_y = first(y, s.h, s.small_h); to_y < bottom; ++to_y) {
    const float down = BilinearTaps(to_y, s.ratio_h, s.small_h).of(y);
    for (int to_x = first(x, s.w, s.small_w) + lane / groups; to_x < right; to_x += slots) {
      if (c >= s.wide) continue;
      const float share = down * BilinearTaps(to_x, s.ratio_w, s.small_w).of(x);
      float v[8];
      to_floats(a.dz.load(a.dz.at(n, to_y, to_x), c), v);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] = fmaf(share, v[i], sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    for (int bit = groups; bit < 32; bit *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], bit);
  if (lane >= groups || c >= s.wide) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) a.d_to[pixel * s.wide + c + i] = sum[i];
}

inline int esa_small_backward_shared(const EsaShape& s) {
  constexpr int kSide = kSmallTile + 2;
  return static_cast<int>(2 * kSide * kSide * s.wide * sizeof(float));
}

// Layer `layer` (from 1): its gradient d_from to d_to, and sums [tap][input][output], then [output], per CTA.
template <class T>
__global__ void __launch_bounds__(kProductThreads, 1) esa_small_backward_kernel(const Esa<T> a) {
  constexpr int kSide = kSmallTile + 2, kPairs = kMaxEsaInner * kMaxEsaInner / kProductThreads;
  FASTSR_SHARED_MEMORY(memory);
  const EsaShape& s = a.s;
  const int wide = s.wide, quads = wide / 4;
  float *dq = reinterpret_cast<float*>(memory), *v = dq + kSide * kSide * wide;  // with a border of a pixel
  const int64_t map = s.n * s.small_h * s.small_w * wide;
  const float* before = a.layer == 1 ? a.m : a.q + (a.layer - 2) * map;
  const float* w = a.small + (a.layer - 1) * esa_layer_words(wide);
  float d_weight[kPairs][kEsaTaps] = {}, d_bias = 0.f;
  const SmallTiles tiles(s);
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += a.parts) {
    int64_t n;
    int y0, x0;
    tiles.at(tile, &n, &y0, &x0);
    __syncthreads();
    for (int i = threadIdx.x; i < kSide * kSide * wide; i += kProductThreads) {
      const int y = y0 - 1 + i / wide / kSide, x = x0 - 1 + i / wide % kSide;
      dq[i] = v[i] = 0.f;
      if (y < 0 || y >= s.small_h || x < 0 || x >= s.small_w) continue;
      const int64_t at = cell(n, y, x, s.small_h, s.small_w, wide) + i % wide;
      dq[i] = a.d_from[at];
      v[i] = a.layer == 1 ? before[at] : kTensorCores<T> ? gelu<Gelu::kTail>(before[at]) : gelu_by_erfc(before[at]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kSmallTile * kSmallTile * quads; i += kProductThreads) {
      const int c = i % quads * 4, row = i / quads / kSmallTile, column = i / quads % kSmallTile;
      if (y0 + row >= s.small_h || x0 + column >= s.small_w) continue;
      LongSum<T> sums[4];
#pragma unroll 1
      for (int tap = 0; tap < kEsaTaps; ++tap) {
        const float* d = dq + ((row + 2 - tap / 3) * kSide + column + 2 - tap % 3) * wide;
        const float* of_tap = w + (tap * wide + c) * wide;
#pragma unroll 1
        for (int o = 0; o < wide; o += 4) {
          const float4 g = *reinterpret_cast<const float4*>(d + o);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const float4 weights = *reinterpret_cast<const float4*>(of_tap + k * wide + o);
            sums[k].add(g.x, weights.x), sums[k].add(g.y, weights.y);
            sums[k].add(g.z, weights.z), sums[k].add(g.w, weights.w);
          }
        }
      }
      const int64_t at = cell(n, y0 + row, x0 + column, s.small_h, s.small_w, wide) + c;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        a.d_to[at + k] = sums[k].value() * (a.layer == 1 ? 1.f : small_gelu_derivative<T>(before[at + k]));
    }
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      const int pair = threadIdx.x + k * kProductThreads, o = pair % wide, c = pair / wide;
      if (c >= wide) continue;
#pragma unroll 1
      for (int pixel = 0; pixel < kSmallTile * kSmallTile; ++pixel) {
        const int at = pixel / kSmallTile * kSide + pixel % kSmallTile;  // of the first tap
        const float d = dq[(at + kSide + 1) * wide + o];
#pragma unroll
        for (int tap = 0; tap < kEsaTaps; ++tap)
          d_weight[k][tap] = fmaf(d, v[(at + tap / 3 * kSide + tap % 3) * wide + c], d_weight[k][tap]);
      }
    }
    if (static_cast<int>(threadIdx.x) < wide)
#pragma unroll 8
      for (int pixel = 0; pixel < kSmallTile * kSmallTile; ++pixel)
        d_bias += dq[(pixel / kSmallTile * kSide + pixel % kSmallTile + kSide + 1) * wide + threadIdx.x];
  }
  float* to = a.partials + blockIdx.x * esa_layer_words(wide);
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    const int pair = threadIdx.x + k * kProductThreads;
    if (pair >= wide * wide) continue;
#pragma unroll
    for (int tap = 0; tap < kEsaTaps; ++tap) to[tap * wide * wide + pair] = d_weight[k][tap];
  }
  if (static_cast<int>(threadIdx.x) < wide) to[kEsaTaps * wide * wide + threadIdx.x] = d_bias;
}

// Four channels of a pixel of low gather from the windows over it whose maximum it is, at most three in each direction.
template <class T>
__global__ void __launch_bounds__(kProductThreads) esa_pool_backward_kernel(const Esa<T> a) {
  const EsaShape& s = a.s;
  const int groups = s.wide / 8;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kProductThreads + threadIdx.x, pixel = i / groups;
  if (pixel >= s.n * s.h2 * s.w2) return;
  const int c = static_cast<int>(i % groups) * 8;
  const int x = static_cast<int>(pixel % s.w2), y = static_cast<int>(pixel / s.w2 % s.h2);
  const int64_t n = pixel / s.w2 / s.h2;
  float sum[8] = {};
  for (int k = 0; k < 9; ++k) {
    const int at_y = y / kPoolStep - k / 3, at_x = x / kPoolStep - k % 3;
    const int in_y = y - at_y * kPoolStep, in_x = x - at_x * kPoolStep;
    if (at_y < 0 || at_x < 0 || at_y >= s.small_h || at_x >= s.small_w || in_y >= kPool || in_x >= kPool) continue;
    const int64_t at = cell(n, at_y, at_x, s.small_h, s.small_w, s.wide) + c;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (a.index[at + j] == in_y * kPool + in_x) sum[j] += a.d_from[at + j];
  }
  a.dlow.store(a.dlow.at(n, y, x), c, to_eight<T>(sum));
}

template <class T>
__global__ void __launch_bounds__(kProductThreads, 2) esa_input_backward_kernel(const Esa<T> a) {
  const EsaShape& s = a.s;
  const int t = threadIdx.x % 4;
  const LanePixels at(a.tiles, static_cast<unsigned>(s.h) * s.w, s.w);
  float sum[1][2][8] = {};
  int64_t offset[2];
#pragma unroll
  for (int p = 0; p < 2; ++p) offset[p] = at.offset(a.dz, p);
  pixel_products<T, true, 1, 2>(a.dz, offset, a.wft, 0, sum);
  const int64_t tap_bytes = product_block_bytes<T>(s.f);
#pragma unroll 1
  for (int tap = 0; tap < kEsaTaps; ++tap) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int y = at.y[p] + s.padding - tap / 3, x = at.x[p] + s.padding - tap % 3;
      const bool there = at.x[p] >= 0 && y >= 0 && x >= 0 && y % 2 == 0 && x % 2 == 0 && y < 2 * s.h2 && x < 2 * s.w2;
      offset[p] = there ? a.dlow.at(at.image, y / 2, x / 2) : -1;
    }
    pixel_products<T, true, 1, 2>(a.dlow, offset, a.w2t + tap * tap_bytes, 0, sum);
  }
  Eight<T> dc1[2];
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    dc1[p] = to_eight<T>(sum[0][p]);
    if (at.x[p] >= 0 && 8 * t < s.wide) a.dc1.store(at.offset(a.dc1, p), 8 * t, dc1[p]);
  }
#pragma unroll 1
  for (int block = 0; block < blocks_of(s.c); ++block) {
    const int c = block * kBlock + 8 * t;
    float dx[2][8] = {};
#pragma unroll
    for (int p = 0; p < 2; ++p)
      if (at.x[p] >= 0 && c < s.c) to_floats(a.dx.load(at.offset(a.dx, p), c), dx[p]);
    lane_product<T>(dc1, a.w1t + block * product_block_bytes<T>(s.f), s.f, 0, dx);
#pragma unroll
    for (int p = 0; p < 2; ++p)
      if (at.x[p] >= 0 && c < s.c) a.dx.store(at.offset(a.dx, p), c, to_eight<T>(dx[p]));
  }
}

// From the gradients of dense 3x3 convolutions to those of the parameters: the same, or the 1x1 and the depthwise part.
struct EsaUnfold {
  EsaConv conv[4];
  const float* sums;  // conv2's [output][tap][input], then the layers' [tap][input][output]
  void *d_w[4], *d_dw[4];
  int f, wide, count, dtype;
};

__device__ __forceinline__ void store_parameter(void* to, int64_t i, float v, int dtype) {
  if (dtype == kFloat32)
    static_cast<float*>(to)[i] = v;
  else if (dtype == kFloat16)
    static_cast<Half*>(to)[i] = from_float<Half>(v);
  else
    static_cast<BFloat16*>(to)[i] = from_float<BFloat16>(v);
}

// One CTA per convolution.
template <int Threads>
__global__ void __launch_bounds__(Threads) esa_unfold_kernel(const EsaUnfold a) {
  const int which = blockIdx.x, f = a.f, wide = a.wide;
  const EsaConv& conv = a.conv[which];
  const float* sums = a.sums + which * kEsaTaps * wide * wide;
  const auto dense = [&](int o, int i, int tap) {
    return which == 0 ? sums[(o * kEsaTaps + tap) * wide + i] : sums[(tap * wide + i) * wide + o];
  };
  if (!conv.dw.data) {
    for (int i = threadIdx.x; i < f * f * kEsaTaps; i += kProductThreads)
      store_parameter(a.d_w[which], i, dense(i / kEsaTaps / f, i / kEsaTaps % f, i % kEsaTaps), a.dtype);
    return;
  }
  for (int i = threadIdx.x; i < f * f; i += kProductThreads) {
    double sum = 0;
    for (int tap = 0; tap < kEsaTaps; ++tap)
      sum += static_cast<double>(dense(i / f, i % f, tap)) * conv.dw[i / f * kEsaTaps + tap];
    store_parameter(a.d_w[which], i, static_cast<float>(sum), a.dtype);
  }
  for (int i = threadIdx.x; i < f * kEsaTaps; i += kProductThreads) {
    double sum = 0;
    for (int k = 0; k < f; ++k)
      sum += static_cast<double>(dense(i / kEsaTaps, k, i % kEsaTaps)) * conv.w[i / kEsaTaps * f + k];
    store_parameter(a.d_dw[which], i, static_cast<float>(sum), a.dtype);
  }
}

}  // namespace fastsr::cuda
