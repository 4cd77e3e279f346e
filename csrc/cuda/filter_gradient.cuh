// The gradients of a dense convolution's weights, 1x1 or 3x3:
//
//   dw[k][c][ty][tx] = sum_p g[p][k] x[p + (ty, tx)][c]      db[k] = sum_p g[p][k]
//
// One CTA per 64 x 64 block of channels, row of taps and part of the tiles: a product over pixels per tap.
#pragma once

#include "partials.cuh"
#include "pixels.cuh"
#include "tf32.cuh"

namespace fastsr::cuda {

template <class T>
struct FilterGradient {
  Tiles tiles;  // of 8 rows
  PixelMap<T> x, g;
  float* partials;  // [parts][taps * taps][k][c], then [k] sums of g
  int k, c, parts;
};

// Several of one call, which one launch makes side by side.
template <class T, int Count>
struct FilterGradients {
  FilterGradient<T> each[Count];
  int64_t first_block[Count + 1];
};

constexpr int kGradientThreads = 128, kGradientRows = 8, kGradientSide = 64;
constexpr int kGradientPixels = kGradientRows * kTileColumns, kMaxGradientParts = 128;

template <class Number, int Taps>
struct GradientTile {
  using T = Number;
  static constexpr int kColumns = kTileColumns + Taps - 1;
  static constexpr int kPitch = kGradientSide + (kTensorCores<T> ? 8 : 4);
  static constexpr int kShared = (kGradientPixels + kGradientRows * kColumns) * kPitch * static_cast<int>(sizeof(T));
};

// Elements of a row of partial sums.
inline int64_t gradient_row(int64_t k, int64_t c, int taps) { return k * c * taps * taps + k; }

template <class T, int Taps, int Count>
__global__ void __launch_bounds__(kGradientThreads, 2) filter_gradient_kernel(const FilterGradients<T, Count> all) {
  int of = 0;
  while (of + 1 < Count && all.first_block[of + 1] <= blockIdx.x) ++of;
  const FilterGradient<T> a = all.each[of];  // read by number in the loops it costs a third more instructions
  const unsigned index = blockIdx.x - static_cast<unsigned>(all.first_block[of]);
  using G = GradientTile<T, Taps>;
  FASTSR_SHARED_MEMORY(memory);
  T *g_tile = reinterpret_cast<T*>(memory), *x_tile = g_tile + kGradientPixels * G::kPitch;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = index % a.parts, ty = index / a.parts % Taps, block = index / a.parts / Taps;
  const int c_blocks = (a.c + kGradientSide - 1) / kGradientSide;
  const int k0 = block / c_blocks * kGradientSide, c0 = block % c_blocks * kGradientSide;
  const bool sums_up = ty == 0 && c0 == 0;
  // Tensor cores: of a warp, 32 x 32 channels, [tap][2 of 16 k][4 of 8 c]. float32: of a thread, [tap][8 k] x 4 c.
  float sum[Taps][8][4] = {}, total = 0.f;
  for (int64_t tile = part; tile < a.tiles.count; tile += a.parts) {
    int64_t n;
    int y0, x0;
    a.tiles.at(tile, &n, &y0, &x0);
    fetch_pixels<kGradientRows, kTileColumns, G::kPitch, kGradientThreads>(a.g, a.tiles, n, y0, x0, k0, 6, g_tile);
    fetch_pixels<kGradientRows, G::kColumns, G::kPitch, kGradientThreads>(a.x, a.tiles, n, y0 + ty - Taps / 2,
                                                                          x0 - Taps / 2, c0, 6, x_tile);
    wait_for_copies();
    __syncthreads();
    if (sums_up && threadIdx.x < kGradientSide) {
      float of_tile = 0.f;  // by rows, which loses less than one chain
#pragma unroll 1
      for (int p = 0; p < kGradientPixels; p += kTileColumns) {
        float of_row = 0.f;
#pragma unroll
        for (int i = 0; i < kTileColumns; ++i) of_row += to_float(g_tile[(p + i) * G::kPitch + threadIdx.x]);
        of_tile += of_row;
      }
      total += of_tile;
    }
    if constexpr (sizeof(T) == 2) {
      const T* g_at = g_tile + (lane / 16 * 8 + lane % 8) * G::kPitch + warp / 2 * 32 + lane / 8 % 2 * 8;
      const T* x_at = x_tile + (lane / 8 % 2 * 8 + lane % 8) * G::kPitch + warp % 2 * 32 + lane / 16 * 8;
#pragma unroll 1
      for (int r = 0; r < kGradientRows; ++r, g_at += kTileColumns * G::kPitch, x_at += G::kColumns * G::kPitch) {
        uint32_t rows[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m) load_matrices_transposed(rows[m], g_at + 16 * m);
#pragma unroll
        for (int tx = 0; tx < Taps; ++tx)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            uint32_t columns[4];
            load_matrices_transposed(columns, x_at + tx * G::kPitch + 16 * j);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              const uint32_t (&k)[4] = rows[m];
              mma_k16<T>(sum[tx][4 * m + 2 * j], k[0], k[1], k[2], k[3], columns[0], columns[1]);
              mma_k16<T>(sum[tx][4 * m + 2 * j + 1], k[0], k[1], k[2], k[3], columns[2], columns[3]);
            }
          }
      }
    } else if constexpr (kTensorCores<T>) {
      // K is eight pixels of a row.
      const int t = lane % 4, channel = lane / 4;
      const auto number = [](const T& x) { return to_tf32(to_float(x)); };
      const T* g_at = g_tile + t * G::kPitch + warp / 2 * 32 + channel;
      const T* x_at = x_tile + t * G::kPitch + warp % 2 * 32 + channel;
#pragma unroll 1
      for (int r = 0; r < 2 * kGradientRows;
           ++r, g_at += 8 * G::kPitch, x_at += (r % 2 ? 8 : G::kColumns - 8) * G::kPitch) {
        uint32_t rows[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i)
          rows[i / 4][i % 4] = number(g_at[i / 2 % 2 * 4 * G::kPitch + i / 4 * 16 + i % 2 * 8]);
#pragma unroll
        for (int tx = 0; tx < Taps; ++tx)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const T* column = x_at + tx * G::kPitch + 8 * j;
            const uint32_t b0 = number(column[0]), b1 = number(column[4 * G::kPitch]);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              const uint32_t (&k)[4] = rows[m];
              mma_tf32(sum[tx][4 * m + j], k[0], k[1], k[2], k[3], b0, b1);
            }
          }
      }
    } else {
      const float* g_at = g_tile + threadIdx.x / 16 * 4;
      const float* x_at = x_tile + threadIdx.x % 16 * 4;
#pragma unroll 1
      for (int r = 0; r < kGradientRows; ++r, g_at += kTileColumns * G::kPitch, x_at += G::kColumns * G::kPitch) {
#pragma unroll 2
        for (int p = 0; p < kTileColumns; ++p) {
          const float4 low = *reinterpret_cast<const float4*>(g_at + p * G::kPitch);
          const float4 high = *reinterpret_cast<const float4*>(g_at + p * G::kPitch + 32);
          const float k[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int tx = 0; tx < Taps; ++tx) {
            const float4 c = *reinterpret_cast<const float4*>(x_at + (p + tx) * G::kPitch);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
              float (&to)[4] = sum[tx][i];
              to[0] = fmaf(k[i], c.x, to[0]), to[1] = fmaf(k[i], c.y, to[1]);
              to[2] = fmaf(k[i], c.z, to[2]), to[3] = fmaf(k[i], c.w, to[3]);
            }
          }
        }
      }
    }
    __syncthreads();
  }
  const int64_t matrix = static_cast<int64_t>(a.k) * a.c;
  float* to = a.partials + part * (matrix * Taps * Taps + a.k);
#pragma unroll
  for (int tx = 0; tx < Taps; ++tx)
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int k = k0 + threadIdx.x / 16 * 4 + i / 4 * 32 + i % 4, c = c0 + threadIdx.x % 16 * 4 + j;
        if constexpr (kTensorCores<T>) {
          k = k0 + warp / 2 * 32 + i / 4 * 16 + j / 2 * 8 + lane / 4;
          c = c0 + warp % 2 * 32 + i % 4 * 8 + lane % 4 * 2 + j % 2;
        }
        if (k < a.k && c < a.c) to[(ty * Taps + tx) * matrix + static_cast<int64_t>(k) * a.c + c] = sum[tx][i][j];
      }
  if (sums_up && threadIdx.x < kGradientSide && k0 + static_cast<int>(threadIdx.x) < a.k)
    to[matrix * Taps * Taps + k0 + threadIdx.x] = total;
}

template <class T, int Taps, int Count>
cudaError_t start_filter_gradients(FilterGradients<T, Count> all, cudaStream_t stream) {
  constexpr int kShared = GradientTile<T, Taps>::kShared;
  static_assert(kShared <= 99 * 1024);
  for (int i = 0; i < Count; ++i) {
    const FilterGradient<T>& a = all.each[i];
    const int64_t side = kGradientSide, blocks = (a.k + side - 1) / side * ((a.c + side - 1) / side);
    all.first_block[i + 1] = all.first_block[i] + a.parts * Taps * blocks;
  }
  return launch(filter_gradient_kernel<T, Taps, Count>, all.first_block[Count], kGradientThreads, kShared, stream, all);
}
template <class T, int Taps>
cudaError_t start_filter_gradient(const FilterGradient<T>& a, cudaStream_t stream) {
  return start_filter_gradients<T, Taps>(FilterGradients<T, 1>{{a}, {}}, stream);
}

// Its sums as gradients of a weight [K, C, Taps, Taps] and a bias.
inline void add_filter_sums(PartialSums& all, int* count, const float* partials, int64_t k, int64_t c, int taps,
                            void* d_weight, void* d_bias) {
  const int64_t t = taps * taps, row = gradient_row(k, c, taps);
  add_sum(all, count, {partials, d_weight, k * c * t, t, 1, 0, row, k * c});
  add_sum(all, count, {partials, d_bias, k, k, 0, k * c * t, row});
}

}  // namespace fastsr::cuda
