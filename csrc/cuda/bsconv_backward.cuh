// bsconv, backward, in two passes over the tiles:
//
//   1: u = W x again;  g = grad act'(dw3x3(u) + b + shortcut) (= d_shortcut);  d_dw_t = sum_p g_p u_(p + t)
//   2: du = dw3x3^T(g), which needs the neighbours' g;  dx = W^T du;  dW = du^T x
//
// Neither u nor du leaves its CTA; without an activation g is grad.
#pragma once

#include "bsconv_tile.cuh"

namespace fastsr::cuda {

template <class T>
struct BsconvFilters {
  Tiles tiles;
  PixelMap<T> x, shortcut, grad, g;  // shortcut.data is null without one, g.data without an activation
  Parameter pw, dw, dw_bias;
  float* partials;  // [parts][k][9], then [k] sums of g
  int c, k, activation;
};

template <class T>
constexpr int bsconv_filters_shared() {
  using M = ForwardMix<T>;
  constexpr int kTiles =
      4 * (kMatrixWords<T> + kTapFloats) + (M::kHaloSize + 2 * M::kSize) * static_cast<int>(sizeof(T));
  constexpr int kSums = kMixThreads * 20 * 4;
  return kTiles > kSums ? kTiles : kSums;
}

template <class T, int N>
__global__ void __launch_bounds__(kMixThreads, 2) bsconv_filters_kernel(const BsconvFilters<T> a) {
  using B = BlueprintTile<T, N>;
  using M = typename B::M;
  FASTSR_SHARED_MEMORY(memory);
  uint32_t* pw = reinterpret_cast<uint32_t*>(memory);
  float* packed_taps = reinterpret_cast<float*>(pw + kMatrixWords<T>);
  T *halo = reinterpret_cast<T*>(packed_taps + kTapFloats), *beside = halo + M::kHaloSize, *grad = beside + M::kSize;
  constexpr int kStep = kTileColumns * M::kPitch;  // from row to row
  pack_matrix<T>(a.pw, a.k, a.c, false, pw);
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
    if (a.g.data) store_own<M>(a.g, a.tiles, n, y0, x0, grad);
    __syncthreads();  // the next tile takes the place of this one
  }
  store_tap_sums<kMixThreads, B::kLanes>(sum, reinterpret_cast<float*>(memory), a.k,
                                         a.partials + static_cast<int64_t>(blockIdx.x) * 10 * a.k);
}

template <class T>
struct BsconvInput {
  Tiles tiles;
  PixelMap<T> x, g, dx;
  Parameter pw, dw;
  float* partials;  // [parts][k][c]
  int c, k;
};

template <class T>
constexpr int bsconv_input_shared() {
  using M = ForwardMix<T>;
  return 4 * (kMatrixWords<T> + kTapFloats) + (M::kHaloSize + 2 * M::kSize) * static_cast<int>(sizeof(T));
}

// Sums of du^T x: of a warp 16 rows and 32 columns on tensor cores, of a thread 4 x 4 in float32.
template <class M>
struct MatrixGradient {
  using T = typename M::T;
  float sum[4][4] = {};

  __device__ __forceinline__ void add(const T* du, const T* x, int k, int c) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if constexpr (sizeof(T) == 2) {
      if (warp % 4 * 16 >= k || warp / 4 * 32 >= c) return;
      du += (lane / 16 * 8 + lane % 8) * M::kPitch + warp % 4 * 16 + lane / 8 % 2 * 8;
      x += (lane / 8 % 2 * 8 + lane % 8) * M::kPitch + warp / 4 * 32 + lane / 16 * 8;
#pragma unroll 2
      for (int p = 0; p < M::kPixels; p += 16) {
        uint32_t rows[4];
        load_matrices_transposed(rows, du + p * M::kPitch);
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint32_t columns[4];
          load_matrices_transposed(columns, x + p * M::kPitch + 8 * j);
          mma_k16<T>(sum[j], rows[0], rows[1], rows[2], rows[3], columns[0], columns[1]);
          mma_k16<T>(sum[j + 1], rows[0], rows[1], rows[2], rows[3], columns[2], columns[3]);
        }
      }
    } else if constexpr (kTensorCores<T>) {
      if (warp % 4 * 16 >= k || warp / 4 * 32 >= c) return;
      // K is eight pixels, of which t and t + 4 are neighbours: so no bank is read twice.
      const auto number = [](const T& v) { return to_tf32(to_float(v)); };
      du += lane % 4 * 2 * M::kPitch + warp % 4 * 16 + lane / 4;
      x += lane % 4 * 2 * M::kPitch + warp / 4 * 32 + lane / 4;
#pragma unroll 2
      for (int p = 0; p < M::kPixels; p += 8, du += 8 * M::kPitch, x += 8 * M::kPitch) {
        const uint32_t a0 = number(du[0]), a1 = number(du[8]);
        const uint32_t a2 = number(du[M::kPitch]), a3 = number(du[M::kPitch + 8]);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_tf32(sum[j], a0, a1, a2, a3, number(x[8 * j]), number(x[M::kPitch + 8 * j]));
      }
    } else {
      float of_tile[4][4] = {};
      du += threadIdx.x / 16 * 4, x += threadIdx.x % 16 * 4;
#pragma unroll 4
      for (int p = 0; p < M::kPixels; ++p, du += M::kPitch, x += M::kPitch) {
        const float4 rows = *reinterpret_cast<const float4*>(du), columns = *reinterpret_cast<const float4*>(x);
        const float r[4] = {rows.x, rows.y, rows.z, rows.w}, q[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
        for (int i = 0; i < 16; ++i) of_tile[i / 4][i % 4] = fmaf(r[i / 4], q[i % 4], of_tile[i / 4][i % 4]);
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) sum[i / 4][i % 4] += of_tile[i / 4][i % 4];
    }
  }
  __device__ __forceinline__ void store(float* to, int k, int c) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      int row = threadIdx.x / 16 * 4 + i / 4, column = threadIdx.x % 16 * 4 + i % 4;
      if constexpr (kTensorCores<T>) {
        row = warp % 4 * 16 + lane / 4 + i % 4 / 2 * 8;
        column = warp / 4 * 32 + i / 4 * 8 + lane % 4 * 2 + i % 2;
      }
      if (row < k && column < c) to[row * c + column] = sum[i / 4][i % 4];
    }
  }
};

template <class T, int N>
__global__ void __launch_bounds__(kMixThreads, 2) bsconv_input_kernel(const BsconvInput<T> a) {
  using B = BlueprintTile<T, N>;
  using M = typename B::M;
  FASTSR_SHARED_MEMORY(memory);
  uint32_t* pw = reinterpret_cast<uint32_t*>(memory);
  float* packed_taps = reinterpret_cast<float*>(pw + kMatrixWords<T>);
  T *halo = reinterpret_cast<T*>(packed_taps + kTapFloats), *x = halo + M::kHaloSize, *du = x + M::kSize;
  T* own_du = du + M::own() * M::kPitch;
  pack_matrix<T, OwnPixels<M>::kOrder>(a.pw, a.c, a.k, true, pw);
  pack_taps<kMixThreads>(a.dw, Parameter{}, a.k, true, packed_taps);
  MatrixGradient<M> matrix;
  for (int64_t tile = blockIdx.x; tile < a.tiles.count; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    fetch_pixels<M::kRows + 2, M::kHaloColumns, M::kPitch, kMixThreads>(a.g, a.tiles, n, y0 - 1, x0 - 1, 0,
                                                                        B::kWidthLog2, halo);
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
    dx.multiply(own_du, pw, a.k);
    matrix.add(du, x, a.k, a.c);
    __syncthreads();
    dx.put(own_du);
    __syncwarp();
    store_own<M>(a.dx, a.tiles, n, y0, x0, du);
    __syncthreads();  // the next tile takes the place of this one
  }
  matrix.store(a.partials + static_cast<int64_t>(blockIdx.x) * a.k * a.c, a.k, a.c);
}

}  // namespace fastsr::cuda
