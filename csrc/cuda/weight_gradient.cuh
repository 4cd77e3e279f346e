// dW[k][c] = sum_p a[p][k] b[p][c] and sum_p a[p][k], over the pixels of all images: one 64 x 64 block of dW per CTA
// and part of the tiles. b may be several maps, as if their channels lay side by side.
#pragma once

#include "alk_tile.cuh"

namespace fastsr::cuda {

template <class T, int Maps = 1>
struct WeightGradient {
  AlkShape shape;
  Map<T> a, b[Maps];
  float* partials;     // [parts][k (c + 1)]: dW, then the sums of a
  int parts, maps, c;  // c: channels of all b
};

// Several of one call, which one launch makes side by side.
template <class T, int Maps, int Count>
struct WeightGradients {
  WeightGradient<T, Maps> each[Count];
  int64_t first_block[Count + 1];
};

constexpr int kSide = 64, kStep = 64;  // of a block of dW, pixels at a time

template <class T>
struct PixelRows {
  // Keeps rows on different banks, or what a warp takes of four of them.
  static constexpr int kRow = kSide + (__is_same(T, Tf32) ? 8 : 16 / static_cast<int>(sizeof(T)));
  static constexpr int kShared = 2 * kStep * kRow * static_cast<int>(sizeof(T));

  // Where channel `c` lies in a row.
  __device__ __forceinline__ static int at(int c) { return sizeof(T) == 4 ? spread<float>(c) : c; }
};

// 64 pixels (four rows of a tile) and 64 channels into shared memory [pixel][channel].
template <class T>
__device__ __forceinline__ void fetch_pixels(const Map<T>& m, const AlkShape& s, int64_t n, int y0, int x0, int c0,
                                             T* to) {
#pragma unroll
  for (int i = 0; i < kStep * kSide / 8 / kThreads; ++i) {
    const int item = threadIdx.x + i * kThreads, pixel = item / 8, c = item % 8 * 8;
    const int y = y0 + pixel / kTile, x = x0 + pixel % kTile;
    Eight<T> e = Eight<T>::zeros();
    if (y < s.h && x < s.w && c0 + c < m.channels) e = m.load(m.at(n, y, x), c0 + c);
    T* row = to + pixel * PixelRows<T>::kRow;
#pragma unroll
    for (int j = 0; j < Eight<T>::kWords / 4; ++j)
      *reinterpret_cast<uint4*>(row + PixelRows<T>::at(c + 4 * j)) =
          make_uint4(e.word[4 * j], e.word[4 * j + 1], e.word[4 * j + 2], e.word[4 * j + 3]);
  }
}

template <class T, int Maps, int Count>
__global__ void __launch_bounds__(kThreads, 2) weight_gradient_kernel(const WeightGradients<T, Maps, Count> all) {
  int of = 0;
  while (of + 1 < Count && all.first_block[of + 1] <= blockIdx.x) ++of;
  const WeightGradient<T, Maps>& w = all.each[of];
  const unsigned index = blockIdx.x - static_cast<unsigned>(all.first_block[of]);
  constexpr int kRow = PixelRows<T>::kRow;
  FASTSR_SHARED_MEMORY(memory);
  T *a = reinterpret_cast<T*>(memory), *b = a + kStep * kRow;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int k = w.a.channels, c = w.c, k_blocks = (k + kSide - 1) / kSide;
  const int part = index % w.parts, block = index / w.parts, k0 = block % k_blocks * kSide;
  int which = 0, c0 = block / k_blocks * kSide, first_c = 0;  // channel c0 of map `which` is column first_c + c0
  if constexpr (Maps > 1)
    for (int whole; which + 1 < w.maps; ++which, c0 -= whole) {
      whole = (w.b[which].channels + kSide - 1) / kSide * kSide;
      if (c0 < whole) break;
      first_c += w.b[which].channels;
    }
  const Map<T> columns_of = w.b[which];
  const bool sums_up = first_c + c0 == 0;
  float sum[4][4] = {}, total = 0.f;
  for (int64_t tile = part; tile < w.shape.tiles; tile += w.parts) {
    int64_t n;
    int y0, x0;
    w.shape.tile_at(tile, &n, &y0, &x0);
    for (int y = y0; y < y0 + kTile && y < w.shape.h; y += kStep / kTile) {
      fetch_pixels(w.a, w.shape, n, y, x0, k0, a);
      fetch_pixels(columns_of, w.shape, n, y, x0, c0, b);
      __syncthreads();
      if (sums_up && threadIdx.x < kSide) {
        const int at = PixelRows<T>::at(threadIdx.x);
        float some[4] = {};  // a long sum loses digits
#pragma unroll 8
        for (int p = 0; p < kStep; ++p) some[p % 4] += to_float(a[p * kRow + at]);
        total += (some[0] + some[1]) + (some[2] + some[3]);
      }
      if constexpr (sizeof(T) == 2) {
        // A warp has 16 rows and 32 columns of the block.
#pragma unroll
        for (int p = 0; p < kStep; p += 16) {
          uint32_t rows[4];
          load_matrices_transposed(rows, a + (p + lane / 16 * 8 + lane % 8) * kRow + warp % 4 * 16 + lane / 8 % 2 * 8);
#pragma unroll
          for (int j = 0; j < 4; j += 2) {
            uint32_t columns[4];
            load_matrices_transposed(
                columns, b + (p + lane / 8 % 2 * 8 + lane % 8) * kRow + warp / 4 * 32 + (j + lane / 16) * 8);
            mma_k16<T>(sum[j], rows[0], rows[1], rows[2], rows[3], columns[0], columns[1]);
            mma_k16<T>(sum[j + 1], rows[0], rows[1], rows[2], rows[3], columns[2], columns[3]);
          }
        }
      } else if constexpr (kTensorCores<T>) {
        const float* rows = reinterpret_cast<float*>(a) + t * kRow + PixelRows<T>::at(warp % 4 * 16 + g);
        const float* columns = reinterpret_cast<float*>(b) + t * kRow + PixelRows<T>::at(warp / 4 * 32 + g);
#pragma unroll 2
        for (int p = 0; p < kStep; p += 8, rows += 8 * kRow, columns += 8 * kRow) {
          const uint32_t a0 = to_tf32(rows[0]), a1 = to_tf32(rows[8]);
          const uint32_t a2 = to_tf32(rows[4 * kRow]), a3 = to_tf32(rows[4 * kRow + 8]);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            mma_tf32(sum[j], a0, a1, a2, a3, to_tf32(columns[8 * j]), to_tf32(columns[4 * kRow + 8 * j]));
        }
      } else {
#pragma unroll 4
        for (int p = 0; p < kStep; ++p) {
          const float4 rows = *reinterpret_cast<const float4*>(a + p * kRow + PixelRows<T>::at(threadIdx.x / 16 * 4));
          const float4 columns =
              *reinterpret_cast<const float4*>(b + p * kRow + PixelRows<T>::at(threadIdx.x % 16 * 4));
          const float r[4] = {rows.x, rows.y, rows.z, rows.w}, q[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(r[i], q[j], sum[i][j]);
        }
      }
      __syncthreads();
    }
  }
  float* to = w.partials + static_cast<int64_t>(part) * k * (c + 1);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int row = k0 + threadIdx.x / 16 * 4 + i, column = c0 + threadIdx.x % 16 * 4 + j;
      if constexpr (kTensorCores<T>) {
        row = k0 + warp % 4 * 16 + g + j / 2 * 8;
        column = c0 + warp / 4 * 32 + 8 * i + 2 * t + j % 2;
      }
      if (row < k && column < columns_of.channels) to[static_cast<int64_t>(row) * c + first_c + column] = sum[i][j];
    }
  if (sums_up && threadIdx.x < kSide && k0 + static_cast<int>(threadIdx.x) < k)
    to[static_cast<int64_t>(k) * c + k0 + threadIdx.x] = total;
}

template <class T, int Maps>
int64_t weight_gradient_blocks(const WeightGradient<T, Maps>& w) {
  int64_t columns = 0;
  for (int i = 0; i < w.maps; ++i) columns += (w.b[i].channels + kSide - 1) / kSide;
  return columns * ((w.a.channels + kSide - 1) / kSide);
}

template <class T, int Maps, int Count>
cudaError_t start_weight_gradients(WeightGradients<T, Maps, Count> all, cudaStream_t stream) {
  static_assert(PixelRows<T>::kShared <= 99 * 1024 && sizeof(all) <= 4096);
  for (int i = 0; i < Count; ++i)
    all.first_block[i + 1] = all.first_block[i] + all.each[i].parts * weight_gradient_blocks(all.each[i]);
  return launch(weight_gradient_kernel<T, Maps, Count>, all.first_block[Count], kThreads, PixelRows<T>::kShared, stream,
                all);
}
template <class T, int Maps>
cudaError_t start_weight_gradient(const WeightGradient<T, Maps>& w, cudaStream_t stream) {
  return start_weight_gradients(WeightGradients<T, Maps, 1>{{w}, {}}, stream);
}

}  // namespace fastsr::cuda
