// conv_mix, backward, in two passes over the tiles:
//
//   1: q, d, p, t again;  dt = W_c5^T grad (= d_shortcut);  dp = dt act'(p);  dd = W_pw^T dp;  dq = dd act'(q)
//   2: dx = dd + dw3x3^T(dq), which needs the neighbours' dq;  sums for the depthwise weights
//
// The 1x1 weights' gradients are products of d, t, dp and grad (filter_gradient.cuh). Between the passes dx holds dd.
#pragma once

#include "own_pixels.cuh"
#include "partials.cuh"
#include "two_way_matrix.cuh"

namespace fastsr::cuda {

template <class T>
struct ConvMixBackward {
  Tiles tiles;
  PixelMap<T> x, shortcut, grad;
  PixelMap<T> d_shortcut, dx;
  PixelMap<T> d, t, dp, dq;                         // scratch; d and dq only with a depthwise convolution
  Parameter dw, dw_bias, pw, pw_bias, c5, c5_bias;  // dw.data is null without it
  int c, k, activation, accuracy;
};

template <class T>
using BackwardMix = MixTile<T, sizeof(T) == 2    ? 8
                               : kTensorCores<T> ? 4
                                                 : 2>;

template <class M>
constexpr int conv_mix_backward_shared() {
  using T = typename M::T;
  constexpr int kMatrices = __is_same(T, Tf32) ? 2 : 3;
  return kMatrices * 4 * kMatrixWords<T> + 4 * (kMixChannels + kTapFloats) +
         (M::kHaloSize + 2 * M::kSize) * static_cast<int>(sizeof(T));
}

template <class T>
__global__ void __launch_bounds__(kMixThreads, 2) conv_mix_backward_kernel(const ConvMixBackward<T> a) {
  using M = BackwardMix<T>;
  FASTSR_SHARED_MEMORY(memory);
  constexpr bool kTwoWay = __is_same(T, Tf32);  // pw is its own transpose
  uint32_t *pw = reinterpret_cast<uint32_t*>(memory), *c5_back = pw + kMatrixWords<T>,
           *pw_back = kTwoWay ? pw : c5_back + kMatrixWords<T>;
  float *pw_bias = reinterpret_cast<float*>((kTwoWay ? c5_back : pw_back) + kMatrixWords<T>),
        *packed_taps = pw_bias + kMixChannels;
  // x with its halo, then shortcut, t, dp; d, then act'(q), dq; grad, then d_shortcut, dd.
  T *first = reinterpret_cast<T*>(packed_taps + kTapFloats), *second = first + M::kHaloSize, *third = second + M::kSize;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, own_at = M::own() * M::kPitch;
  const bool depthwise = a.dw.data;
  pack_matrix<T, OwnPixels<M>::kOrder>(a.c5, a.c, a.k, true, c5_back);
  if constexpr (kTwoWay) {
    TwoWayMatrix::pack(a.pw, a.c, pw);
  } else {
    pack_matrix<T>(a.pw, a.c, a.c, false, pw);
    pack_matrix<T>(a.pw, a.c, a.c, true, pw_back);
  }
  pack_taps<kMixThreads>(a.dw, a.dw_bias, a.c, false, packed_taps);
  pack_bias(a.pw_bias, a.c, pw_bias);
  for (int64_t tile = blockIdx.x; tile < a.tiles.count; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    const auto store = [&](const PixelMap<T>& m, const T* from) { store_own<M>(m, a.tiles, n, y0, x0, from); };
    fetch_pixels<M::kRows + 2, M::kHaloColumns, M::kPitch, kMixThreads>(a.x, a.tiles, n, y0 - 1, x0 - 1, 0, 6, first);
    fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.grad, a.tiles, n, y0, x0, 0, 6, third);
    wait_for_copies();
    __syncthreads();
    constexpr int kMine = kTileColumns / kMixWarps;  // columns of a warp
    Eight<T> slope[kMine][M::kRows / 4 + 1];         // act'(q), a pair of channels per row
    const DepthwiseTaps taps(packed_taps, 2 * lane);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int column = warp + i * kMixWarps;
      float q[2 * M::kRows] = {};
      if (depthwise) {
        convolve_column<M>(first + column * M::kPitch + 2 * lane, taps, q);
#pragma unroll
        for (int r = 0; r < M::kRows; ++r)
          slope[i][r / 4].set_pair(r % 4, activation_derivative(q[2 * r], a.activation),
                                   activation_derivative(q[2 * r + 1], a.activation));
        activate_all<T>(q, a.activation, a.accuracy);
      }
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) {
        const float2 x = load_pair(first + ((r + 1) * M::kHaloColumns + column + 1) * M::kPitch + 2 * lane);
        store_pair(second + (r * kTileColumns + column) * M::kPitch + 2 * lane, q[2 * r] + x.x, q[2 * r + 1] + x.y);
      }
    }
    __syncthreads();
    fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.shortcut, a.tiles, n, y0, x0, 0, 6, first);
    OwnPixels<M> p, dt;
    if constexpr (kTwoWay)
      p.multiply_by(second + own_at, [&](int n, int step) { return TwoWayMatrix{pw}.fragment<false>(n, step); });
    else
      p.multiply(second + own_at, pw);
    p.add(pw_bias);
    if (depthwise) store(a.d, second);
    wait_for_copies();
    __syncthreads();
    if (depthwise) {
#pragma unroll
      for (int i = 0; i < kMine; ++i)
#pragma unroll
        for (int r = 0; r < M::kRows; ++r) {
          const float2 s = slope[i][r / 4].pair(r % 4);
          store_pair(second + (r * kTileColumns + warp + i * kMixWarps) * M::kPitch + 2 * lane, s.x, s.y);
        }
    }
    constexpr int kPart = p.kPairs < 8 ? p.kPairs : 8;  // pairs of t at a time: all would not fit the registers
#pragma unroll
    for (int begin = 0; begin < p.kPairs; begin += kPart) {
      float t[2 * kPart];
#pragma unroll
      for (int i = 0; i < 2 * kPart; ++i) t[i] = p.value[2 * begin + i];
      activate_all<T>(t, a.activation, a.accuracy);
#pragma unroll
      for (int i = 0; i < kPart; ++i) {
        T* at = first + own_at + p.at(begin + i);
        const float2 s = load_pair(at);
        store_pair(at, t[2 * i] + s.x, t[2 * i + 1] + s.y);
      }
    }
    __syncwarp();
    store(a.t, first);
    dt.multiply(third + own_at, c5_back);
    __syncwarp();
    dt.put(third + own_at);
#pragma unroll
    for (int i = 0; i < 2 * p.kPairs; ++i) p.value[i] = dt.value[i] * activation_derivative(p.value[i], a.activation);
    p.put(first + own_at);
    __syncwarp();
    store(a.d_shortcut, third);
    store(a.dp, first);
    if constexpr (kTwoWay)  // dd
      dt.multiply_by(first + own_at, [&](int n, int step) { return TwoWayMatrix{pw}.fragment<true>(n, step); });
    else
      dt.multiply(first + own_at, pw_back);
    __syncthreads();  // act'(q) is there
    dt.put(third + own_at);
    if (depthwise) {
#pragma unroll
      for (int i = 0; i < dt.kPairs; ++i) {
        const float2 s = load_pair(second + own_at + dt.at(i));
        store_pair(second + own_at + dt.at(i), dt.value[2 * i] * s.x, dt.value[2 * i + 1] * s.y);
      }
    }
    __syncwarp();
    store(a.dx, third);
    if (depthwise) store(a.dq, second);
    __syncthreads();  // the next tile takes the place of this one
  }
}

template <class T>
struct ConvMixInput {
  Tiles tiles;
  PixelMap<T> x, dq, dx;
  Parameter dw;
  float* partials;  // [parts][c][9], then [c] sums of dq
  int c;
};

template <class M>
constexpr int conv_mix_input_shared() {
  constexpr int kTiles = 4 * kTapFloats + (M::kHaloSize + 2 * M::kSize) * static_cast<int>(sizeof(typename M::T));
  constexpr int kSums = kMixThreads * 20 * 4;
  return kTiles > kSums ? kTiles : kSums;
}

// A tap of dx and of the weights' gradient meet the same dq: that of the pixel which the tap looks at from here.
template <class T>
__global__ void __launch_bounds__(kMixThreads, 2) conv_mix_input_kernel(const ConvMixInput<T> a) {
  using M = ForwardMix<T>;
  FASTSR_SHARED_MEMORY(memory);
  float* packed_taps = reinterpret_cast<float*>(memory);
  T *halo = reinterpret_cast<T*>(packed_taps + kTapFloats), *x = halo + M::kHaloSize, *dx = x + M::kSize;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  pack_taps<kMixThreads>(a.dw, Parameter{}, a.c, false, packed_taps);
  float sum[10][2] = {};
  for (int64_t tile = blockIdx.x; tile < a.tiles.count; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    fetch_pixels<M::kRows + 2, M::kHaloColumns, M::kPitch, kMixThreads>(a.dq, a.tiles, n, y0 - 1, x0 - 1, 0, 6, halo);
    fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.x, a.tiles, n, y0, x0, 0, 6, x);
    fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.dx, a.tiles, n, y0, x0, 0, 6, dx);
    wait_for_copies();
    __syncthreads();
    const DepthwiseTaps taps(packed_taps, 2 * lane);
#pragma unroll 1
    for (int column = warp; column < kTileColumns; column += kMixWarps) {
      const T* from = halo + column * M::kPitch + 2 * lane;
      const int center = column * M::kPitch + 2 * lane, step = kTileColumns * M::kPitch;
      float2 here[M::kRows], out[M::kRows];
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) {
        here[r] = load_pair(x + center + r * step);
        out[r] = load_pair(dx + center + r * step);
      }
#pragma unroll
      for (int row = 0; row < M::kRows + 2; ++row)
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          const float2 g = load_pair(from + (row * M::kHaloColumns + i) * M::kPitch);
          if (i == 1 && row > 0 && row <= M::kRows) sum[9][0] += g.x, sum[9][1] += g.y;
#pragma unroll
          for (int j = 0; j < 3; ++j) {
            const int r = row - j, tap = 3 * (2 - j) + 2 - i;
            if (r < 0 || r >= M::kRows) continue;
            out[r].x = fmaf(g.x, taps.tap[tap].x, out[r].x);
            out[r].y = fmaf(g.y, taps.tap[tap].y, out[r].y);
            sum[tap][0] = fmaf(g.x, here[r].x, sum[tap][0]);
            sum[tap][1] = fmaf(g.y, here[r].y, sum[tap][1]);
          }
        }
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) store_pair(dx + center + r * step, out[r].x, out[r].y);
    }
    __syncthreads();
    store_own<M>(a.dx, a.tiles, n, y0, x0, dx);
    __syncthreads();
  }
  store_tap_sums<kMixThreads, 32>(sum, reinterpret_cast<float*>(memory), a.c,
                                  a.partials + static_cast<int64_t>(blockIdx.x) * 10 * a.c);
}

}  // namespace fastsr::cuda
