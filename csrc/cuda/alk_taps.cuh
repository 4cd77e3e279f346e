// Gradients of one channel's filters from a tile: dw[j] = sum_p g[p] u[p + j].
//
// On tensor cores: for the kx1, Q[r][r'] = sum_x g[r][x] u[r'][x] has the gradient of tap j on the diagonal
// r' - r = j; the 1xk contracts rows instead, and the 3x3 is three of those on shifted rows. A product costs a few
// instructions; the sums of the diagonals cost more, but both a fraction of a multiply-add per tap and pixel.
#pragma once

#include "alk_convolve.cuh"
#include "gelu.cuh"
#include "partials.cuh"

namespace fastsr::cuda {

// Of a 16 x (8 Columns) product in the warp's fragments, the sum of the diagonal `8 o + this lane's class` where
// class = (2 t - r - Shift) mod 8, r = Rows::row(g), and diagonal d holds the elements with column - row = d + Shift.
template <class Rows, int Shift, int Columns>
__device__ __forceinline__ float diagonal_sum(const float (&product)[Columns][4], int o) {
  const int lane = threadIdx.x % 32, r = Rows::row(lane / 4), t = lane % 4;
  const auto below = [&](int rows, int columns) { return Rows::lane_of_row((r + rows) % 8) * 4 + (t + columns) % 4; };
  float x[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    // A lane's element in column group j and row half hi is on diagonal 8 (j - hi) + delta.
    float candidates[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      candidates[i] = 0.f;
#pragma unroll
      for (int hi = 0; hi < 2; ++hi)
        if (o + i + hi < Columns) candidates[i] += product[o + i + hi][2 * hi + e];
    }
    const int delta = 2 * t + e - r - Shift;
    x[e] = delta >= 0 ? candidates[0] : candidates[1];
    if constexpr (Shift > 0) x[e] = delta < -8 ? candidates[2] : x[e];
    // Four lanes have the same class.
    x[e] += __shfl_sync(0xffffffffu, x[e], below(2, 1));
    x[e] += __shfl_sync(0xffffffffu, x[e], below(4, 2));
  }
  return x[0] + __shfl_sync(0xffffffffu, x[1], below(1, 0));
}

// Of a product whose rows are columns of the tile: they are in their order.
struct InOrder {
  __device__ __forceinline__ static int row(int g) { return g; }
  __device__ __forceinline__ static int lane_of_row(int row) { return row; }
};

// A branch's gradient of a channel as A of products with u.
template <class P>
struct GradientFragments {
  using T = typename P::T;
  // Groups of eight columns begin on 16 bytes, that is kStart columns before the plane's first.
  static constexpr int kColumns = P::S / 8 + (P::kStart > 0);
  uint32_t w[2][sizeof(T)];

  // Its rows are A's, for products over columns: 16 columns are K, or two times eight.
  __device__ __forceinline__ void take(const float (&grad)[2][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (sizeof(T) == 2) {
        w[i][0] = pack2<T>(grad[i][0], grad[i][1]), w[i][1] = pack2<T>(grad[i][2], grad[i][3]);
      } else {
        w[i][0] = to_tf32(grad[i][0]), w[i][1] = to_tf32(grad[i][2]);
        w[i][2] = to_tf32(grad[i][1]), w[i][3] = to_tf32(grad[i][3]);
      }
    }
  }
  // Its columns are, for products over rows. TF32 knows no transposing of registers: by way of `beside`, 256
  // numbers that the warp has read.
  __device__ __forceinline__ void take_turned(const float (&grad)[2][4], T* beside) {
    take(grad);
    if constexpr (sizeof(T) == 2) {
      const uint32_t a1 = transpose_matrix(w[1][0]);
      w[0][0] = transpose_matrix(w[0][0]), w[1][0] = transpose_matrix(w[0][1]);
      w[0][1] = a1, w[1][1] = transpose_matrix(w[1][1]);
    } else {
      const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        put_pair(beside + (i / 2 * 16 + i % 2 * 8 + g) * 8 + 2 * t, __uint_as_float(w[i / 2][i % 2]),
                 __uint_as_float(w[i / 2][2 + i % 2]));
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 8; ++i)
        w[i / 4][i % 4] = __float_as_uint(to_float(beside[(i % 2 * 16 + i / 4 * 8 + i % 4 / 2 * 4 + t) * 8 + g]));
    }
  }
  // Products with all rows of u in the tile's columns.
  __device__ __forceinline__ void over_columns(const T* plane, float (&product)[P::kDown][4]) const {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int j = 0; j < P::kDown; j += 2) {
        uint32_t b[4];
        const int row = min(8 * (j + lane / 16) + lane % 8, P::S - 1);
        load_matrices(b, plane + P::kStart + row * P::kRow + P::kMargin + lane / 8 % 2 * 8);
        mma_k16<T>(product[j], w[0][0], w[0][1], w[1][0], w[1][1], b[0], b[1]);
        if (j + 1 < P::kDown) mma_k16<T>(product[j + 1], w[0][0], w[0][1], w[1][0], w[1][1], b[2], b[3]);
      }
    } else {
      const T* from = plane + lane / 4 * P::kRow + P::kMargin + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2 * P::kDown; ++i) {
        const float2 b = pair_at(from + i / 2 * 8 * P::kRow + i % 2 * 8);
        const uint32_t (&a)[4] = w[i % 2];
        mma_tf32(product[i / 2], a[0], a[1], a[2], a[3], __float_as_uint(b.x), __float_as_uint(b.y));
      }
    }
  }
  // With all columns of u in the tile's rows, or in those `below` them.
  __device__ __forceinline__ void over_rows(const T* plane, int below, float (&product)[kColumns][4]) const {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        uint32_t b[4];
        const int row = P::kMargin + below + lane / 8 % 2 * 8 + P::row(lane % 8),
                  column = min(j + lane / 16, kColumns - 1);
        load_matrices_transposed(b, plane + row * P::kRow + 8 * column);
        mma_k16<T>(product[j], w[0][0], w[0][1], w[1][0], w[1][1], b[0], b[1]);
        if (j + 1 < kColumns) mma_k16<T>(product[j + 1], w[0][0], w[0][1], w[1][0], w[1][1], b[2], b[3]);
      }
    } else {
      const T* from = plane + (P::kMargin + below + lane % 4) * P::kRow + lane / 4;
#pragma unroll
      for (int i = 0; i < 2 * kColumns; ++i) {
        const T* b = from + i % 2 * 8 * P::kRow + i / 2 * 8;
        const uint32_t (&a)[4] = w[i % 2];
        mma_tf32(product[i / 2], a[0], a[1], a[2], a[3], __float_as_uint(to_float(b[0])),
                 __float_as_uint(to_float(b[4 * P::kRow])));
      }
    }
  }
};

// Adds to `to` [taps of kx1, of 1xk, 9 of 3x3, three biases]. `grad` is [branch][half][result], as
// `convolve_*` gives results; `beside` room for 256 of them.
template <class P, class T = typename P::T>
__device__ __forceinline__ void add_filter_gradients(const T* plane, const float (&grad)[3][2][4], T* beside, int taps,
                                                     float* to) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int shift = P::kMargin - taps / 2;
  const auto put = [&](int at, float sum) { to[at] += sum; };
#pragma unroll
  for (int branch = 0; branch < 3; ++branch) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += grad[branch][i / 4][i % 4];
    sum = warp_sum(sum);
    if (lane == branch) put(2 * taps + 9 + branch, sum);
  }
  __syncwarp();
  if constexpr (kTensorCores<T>) {
    constexpr int kOctaves = (P::kWindow + 7) / 8, kColumns = GradientFragments<P>::kColumns;
    GradientFragments<P> w;
    {
      float product[P::kDown][4] = {};
      w.take(grad[0]);
      w.over_columns(plane, product);
#pragma unroll
      for (int o = 0; o < kOctaves; ++o) {
        const int tap = 8 * o + ((2 * t - P::row(g)) & 7) - shift;
        const float sum = diagonal_sum<P, 0>(product, o);
        if (t == 0 && tap >= 0 && tap < taps) put(tap, sum);
      }
      __syncwarp();  // one product at a time: several would not fit the registers
    }
    const int in_octave = (2 * t - g - P::kStart) & 7;
    {
      float product[kColumns][4] = {};
      w.take_turned(grad[1], beside);
      w.over_rows(plane, 0, product);
#pragma unroll
      for (int o = 0; o < kOctaves; ++o) {
        const int tap = 8 * o + in_octave - shift;
        const float sum = diagonal_sum<InOrder, P::kStart>(product, o);
        if (t == 0 && tap >= 0 && tap < taps) put(taps + tap, sum);
      }
      __syncwarp();
    }
    w.take_turned(grad[2], beside);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      float product[kColumns][4] = {};
      w.over_rows(plane, i - 1, product);
#pragma unroll
      for (int o = (P::kMargin - 1) / 8; o <= (P::kMargin + 1) / 8; ++o) {
        const int tap = 8 * o + in_octave - P::kMargin + 1;
        const float sum = diagonal_sum<InOrder, P::kStart>(product, o);
        if (t == 0 && tap >= 0 && tap < 3) put(2 * taps + 3 * i + tap, sum);
      }
      __syncwarp();
    }
  } else {
    // Every tap is a sum over the lanes; lane i keeps the i-th of 32 until they are written.
    float mine = 0.f;
    const float* corner = plane + g * P::kRow + 2 * t;
    for (int i = 0; i < 2 * taps + 9; ++i) {
      const int small = i - 2 * taps, branch = i < taps ? 0 : small < 0 ? 1 : 2;
      const int down = branch == 0 ? i + shift : branch == 1 ? P::kMargin : P::kMargin - 1 + small / 3;
      const int across = branch == 0 ? P::kMargin : branch == 1 ? i - taps + shift : P::kMargin - 1 + small % 3;
      const float* u = corner + down * P::kRow + across;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float at = branch == 0   ? grad[0][j / 4][j % 4]
                         : branch == 1 ? grad[1][j / 4][j % 4]
                                       : grad[2][j / 4][j % 4];
        sum = fmaf(at, u[j / 2 % 2 * 8 * P::kRow + j / 4 * 8 + j % 2], sum);
      }
      sum = warp_sum(sum);
      if (lane == i % 32) mine = sum;
      if ((i % 32 == 31 || i + 1 == 2 * taps + 9) && lane <= i % 32) put(i / 32 * 32 + lane, mine);
    }
  }
}

}  // namespace fastsr::cuda
