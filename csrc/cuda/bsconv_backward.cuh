// bsconv, backward, in two passes over the tiles:
//
//   1: u = W x again;  g = grad act'(dw3x3(u) + b + shortcut) (= d_shortcut);  d_dw_t = sum_p g_p u_(p + t)
//   2: du = dw3x3^T(g), which needs the neighbours' g;  dx = W^T du;  dW = du^T x
//
// Neither u nor du leaves its CTA; without an activation g is grad. Of a stage, whose shortcut is x, also
//
//   1: gd = grad_D GELU'(W_d x + b_d)
//   2: dx = W^T du + W_d^T gd + g;  dW_d = gd^T x;  db_d = sum_p gd
#pragma once

#include "bsconv_distil.cuh"
#include "matrix_gradient.cuh"
#include "own_pixels.cuh"

namespace fastsr::cuda {

template <class T>
struct BsconvFilters {
  Tiles tiles;
  PixelMap<T> x, shortcut, grad, g;  // shortcut.data is null without one, g.data without an activation
  Map<T> grad_distilled, gd;         // of a stage, as are the next two
  Parameter distil, distil_bias;
  Parameter pw, dw, dw_bias;
  float* partials;  // [parts][k][9], then [k] sums of g
  int c, k, activation;
};

template <class T, bool Stage>
constexpr int bsconv_filters_shared() {
  using M = ForwardMix<T>;
  constexpr int kDistil = Stage ? kMatrixWords<T> + kMixChannels : 0;
  constexpr int kTiles =
      4 * (kMatrixWords<T> + kTapFloats + kDistil) + (M::kHaloSize + 2 * M::kSize) * static_cast<int>(sizeof(T));
  constexpr int kSums = kMixThreads * 20 * 4;
  return kTiles > kSums ? kTiles : kSums;
}

template <class T, int N, bool Stage>
__global__ void __launch_bounds__(kMixThreads, 2) bsconv_filters_kernel(const BsconvFilters<T> a) {
  using B = BlueprintTile<T, N>;
  using M = typename B::M;
  FASTSR_SHARED_MEMORY(memory);
  uint32_t *pw = reinterpret_cast<uint32_t*>(memory), *distil = pw + kMatrixWords<T>;
  float* packed_taps = reinterpret_cast<float*>(Stage ? distil + kMatrixWords<T> : distil);
  float* distil_bias = packed_taps + kTapFloats;
  T *halo = reinterpret_cast<T*>(Stage ? distil_bias + kMixChannels : distil_bias), *beside = halo + M::kHaloSize,
    *grad = beside + M::kSize;
  constexpr int kStep = kTileColumns * M::kPitch;  // from row to row
  pack_matrix<T>(a.pw, a.k, a.c, false, pw);
  if constexpr (Stage) {
    pack_matrix<T, kDistilOrder<T>>(a.distil, a.grad_distilled.channels, a.c, false, distil);
    pack_bias(a.distil_bias, a.grad_distilled.channels, distil_bias);
  }
  pack_taps<kMixThreads>(a.dw, a.dw_bias, a.k, false, packed_taps);
  float sum[10][2] = {};
  for (int64_t tile = blockIdx.x; tile < a.tiles.count; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    fetch_pixels<M::kRows + 2, M::kHaloColumns, M::kPitch, kMixThreads>(a.x, a.tiles, n, y0 - 1, x0 - 1, 0,
                                                                        width_log2_of(a.c), halo);
    if (a.shortcut.data)
      fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.shortcut, a.tiles, n, y0, x0, 0, B::kWidthLog2,
                                                                   beside);
    fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.grad, a.tiles, n, y0, x0, 0, B::kWidthLog2, grad);
    wait_for_copies();
    __syncthreads();
    if constexpr (Stage)
      distil_pixels<M>(
          halo, a.c, distil, distil_bias, a.gd.channels, a.tiles, y0, x0, [&](int y, int x, int c, float (&z)[8]) {
            const Eight<T> from = a.grad_distilled.load(a.grad_distilled.at(n, y, x), c);
            Eight<T> e;
#pragma unroll
            for (int i = 0; i < 4; ++i)
              e.set_pair(i, from.pair(i).x * gelu_derivative(z[2 * i]), from.pair(i).y * gelu_derivative(z[2 * i + 1]));
            a.gd.store(a.gd.at(n, y, x), c, e);
          });
    multiply_halo<B>(halo, pw, a.c);
    __syncthreads();
#pragma unroll 1
    for (int turn = 0; turn < B::kTurns; ++turn) {
      const int at = B::column(turn) * M::kPitch + B::channel();
      const T* u = halo + at;
      float g[2 * M::kRows];
      if (a.g.data) {
        convolve_column<M>(u, DepthwiseTaps(packed_taps, B::channel()), g);
        if (a.shortcut.data) {
#pragma unroll
          for (int r = 0; r < M::kRows; ++r) {
            const float2 s = load_pair(beside + at + r * kStep);
            g[2 * r] += s.x, g[2 * r + 1] += s.y;
          }
        }
      }
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) {
        const float2 from = load_pair(grad + at + r * kStep);
        if (a.g.data) {
          g[2 * r] = from.x * activation_derivative(g[2 * r], a.activation);
          g[2 * r + 1] = from.y * activation_derivative(g[2 * r + 1], a.activation);
          store_pair(grad + at + r * kStep, g[2 * r], g[2 * r + 1]);
        } else {
          g[2 * r] = from.x, g[2 * r + 1] = from.y;
        }
      }
      float of_column[10][2] = {};  // a sum of sums loses less than one chain
#pragma unroll
      for (int row = 0; row < M::kRows + 2; ++row)
#pragma unroll
        for (int tx = 0; tx < 3; ++tx) {
          const float2 v = load_pair(u + (row * M::kHaloColumns + tx) * M::kPitch);
#pragma unroll
          for (int ty = 0; ty < 3; ++ty) {
            const int r = row - ty, tap = 3 * ty + tx;
            if (r < 0 || r >= M::kRows) continue;
            of_column[tap][0] = fmaf(v.x, g[2 * r], of_column[tap][0]);
            of_column[tap][1] = fmaf(v.y, g[2 * r + 1], of_column[tap][1]);
          }
        }
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) of_column[9][0] += g[2 * r], of_column[9][1] += g[2 * r + 1];
#pragma unroll
      for (int i = 0; i < 20; ++i) sum[i / 2][i % 2] += of_column[i / 2][i % 2];
    }
    __syncthreads();
    if (a.g.data) store_own<M>(Stage ? in_scratch(a.g) : a.g, a.tiles, n, y0, x0, grad);
    __syncthreads();  // the next tile takes the place of this one
  }
  store_tap_sums<kMixThreads, B::kLanes>(sum, reinterpret_cast<float*>(memory), a.k,
                                         a.partials + static_cast<int64_t>(blockIdx.x) * 10 * a.k);
}

template <class T>
struct BsconvInput {
  Tiles tiles;
  PixelMap<T> x, g, dx;
  PixelMap<T> gd;  // of a stage, as are `distil` and `d`
  Parameter distil;
  Parameter pw, dw;
  float* partials;  // [parts][k][c]; of a stage then [d][c], and [d] sums of gd
  int c, k, d;
};

template <class T, bool Stage>
constexpr int bsconv_input_shared() {
  using M = ForwardMix<T>;
  constexpr int kMatrices = Stage ? 2 : 1;
  return 4 * (kMatrices * kMatrixWords<T> + kTapFloats) + (M::kHaloSize + 2 * M::kSize) * static_cast<int>(sizeof(T));
}

template <class T, int N, bool Stage>
__global__ void __launch_bounds__(kMixThreads, 2) bsconv_input_kernel(const BsconvInput<T> a) {
  using B = BlueprintTile<T, N>;
  using M = typename B::M;
  FASTSR_SHARED_MEMORY(memory);
  uint32_t *pw = reinterpret_cast<uint32_t*>(memory), *distil = pw + kMatrixWords<T>;
  float* packed_taps = reinterpret_cast<float*>(Stage ? distil + kMatrixWords<T> : distil);
  T *halo = reinterpret_cast<T*>(packed_taps + kTapFloats), *x = halo + M::kHaloSize, *du = x + M::kSize;
  T *own_du = du + M::own() * M::kPitch, *gd = du;  // which takes its place
  T* own_g = halo + ((M::own_row() + 1) * M::kHaloColumns + M::own_column() + 1) * M::kPitch;
  pack_matrix<T, OwnPixels<M>::kOrder>(a.pw, a.c, a.k, true, pw);
  if constexpr (Stage) pack_matrix<T, OwnPixels<M>::kOrder>(a.distil, a.c, a.d, true, distil);
  pack_taps<kMixThreads>(a.dw, Parameter{}, a.k, true, packed_taps);
  MatrixGradient<M> matrix, distil_matrix;
  ChannelSums<M> distil_sums;
  for (int64_t tile = blockIdx.x; tile < a.tiles.count; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    fetch_pixels<M::kRows + 2, M::kHaloColumns, M::kPitch, kMixThreads>(Stage ? in_scratch(a.g) : a.g, a.tiles, n,
                                                                        y0 - 1, x0 - 1, 0, B::kWidthLog2, halo);
    fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(a.x, a.tiles, n, y0, x0, 0, width_log2_of(a.c), x);
    wait_for_copies();
    __syncthreads();
    const DepthwiseTaps taps(packed_taps, B::channel());
#pragma unroll 1
    for (int turn = 0; turn < B::kTurns; ++turn) {
      const int at = B::column(turn) * M::kPitch + B::channel();
      float q[2 * M::kRows];
      convolve_column<M>(halo + at, taps, q);
#pragma unroll
      for (int r = 0; r < M::kRows; ++r) store_pair(du + at + r * kTileColumns * M::kPitch, q[2 * r], q[2 * r + 1]);
    }
    __syncthreads();
    OwnPixels<M> dx;
    if constexpr (Stage) {
      // dx and the sums by turns, for which registers do not suffice at once.
      matrix.add(du, x, a.k, a.c);
      dx.take(own_g);
      dx.add_product(own_du, pw, a.k);
      __syncthreads();
      fetch_pixels<M::kRows, kTileColumns, M::kPitch, kMixThreads>(in_scratch(a.gd), a.tiles, n, y0, x0, 0,
                                                                   width_log2_of(a.d), gd);
      wait_for_copies();
      __syncthreads();
      dx.add_product(own_du, distil, a.d);
    } else {
      dx.multiply(own_du, pw, a.k);
      matrix.add(du, x, a.k, a.c);
    }
    dx.put(own_g);  // which nobody else needs any more
    __syncwarp();
    store_own<M>(a.dx, a.tiles, n, y0, x0, own_g - M::own() * M::kPitch);
    if constexpr (Stage) {
      distil_matrix.add(gd, x, a.d, a.c);
      distil_sums.add(gd);
    }
    __syncthreads();  // the next tile takes the place of this one
  }
  const int of_pw = a.k * a.c, of_distil = Stage ? a.d * a.c : 0;
  float* to = a.partials + static_cast<int64_t>(blockIdx.x) * (of_pw + of_distil + a.d);
  matrix.store(to, a.k, a.c);
  if constexpr (Stage) {
    distil_matrix.store(to + of_pw, a.d, a.c);
    distil_sums.store(reinterpret_cast<float*>(memory), to + of_pw + of_distil, a.d);
  }
}

}  // namespace fastsr::cuda
