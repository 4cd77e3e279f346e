// Rows of pixels for one instruction set: the matrix product behind every convolution, its weight gradient, and
// conversions. A tile of M pixels times V vectors of output channels stays in registers for all k; M and V are
// chosen so that the accumulators nearly fill the registers (gemm.inl). The last tile of a row overlaps its
// neighbour instead of being narrower; only rows narrower than a tile go pixel by pixel.
#pragma once

#include "gemm.inl"
#include "prefetch.inl"
#include "strip.h"

namespace fastsr::cpu {
namespace {

// Pixels of a tile of V vectors.
template <int V>
constexpr int tile_pixels() {
  if constexpr (V == kTileVectors) return kTilePixels;
  if constexpr (V == 3) return 8;
  return kTilePixels * 2;
}

// At most this many terms are added up in registers before they join the rest of the sum: it bounds the rounding error
// of long sums, and a chunk's weights (16 KB) stay in the first-level cache while a block of tiles passes.
constexpr int64_t kChunk = 64;
constexpr int64_t kBlockTiles = 8;

// A part of a RowGemm's sum: rows of the weight from some segments.
struct RowChunk {
  RowSegment segments[4];
  int64_t count, k;
};

// Cuts the next chunk; `s` and `offset` say where the last one ended.
FASTSR_INLINE RowChunk next_chunk(const RowGemm& a, int64_t& s, int64_t& offset) {
  RowChunk chunk{};
  while (s < a.segment_count && chunk.count < 4) {
    const RowSegment& segment = a.segments[s];
    const int64_t parts = (segment.k + kChunk - 1) / kChunk,
                  part = (segment.k + parts - 1) / std::max<int64_t>(1, parts);
    const int64_t k = std::min(part, segment.k - offset);
    if (chunk.count > 0 && chunk.k + k > kChunk) break;
    chunk.segments[chunk.count++] = {segment.x + offset, segment.stride, k};
    chunk.k += k;
    offset += k;
    if (offset == segment.k) {
      ++s;
      offset = 0;
    }
  }
  return chunk;
}

using RowFetch = Prefetches<6>;

// While the `pixels` pixels from `pixel` on compute: where their results will be written, for the first chunk, and the
// pixels behind them. These may lie past the row's end, in the next one, which callers read next; if not, it does no
// harm.
FASTSR_INLINE RowFetch rows_to_fetch(const RowGemm& a, const RowChunk& chunk, int64_t pixel, int64_t pixels,
                                     bool first) {
  const auto row = [](const float* data, int64_t stride, int64_t from, int64_t count, int64_t channels) {
    return Prefetch(FeatureRows<const float>{data, 0, 0, stride}, 0, 0, from, count, channels);
  };
  RowFetch fetch;
  if (first) fetch.add(row(a.y, a.y_stride, pixel, std::min(pixels, a.pixels - pixel), a.channels));
  if (first && a.shortcut) fetch.add(row(a.shortcut, a.shortcut_stride, pixel + pixels, pixels, a.channels));
  for (int64_t i = 0; i < chunk.count; ++i)
    fetch.add(row(chunk.segments[i].x, chunk.segments[i].stride, pixel + pixels, pixels, chunk.segments[i].k));
  return fetch;
}

// Adds a chunk's sum to partial[M][V], if there is one, or else to bias and shortcut; leaves it in partial unless it is
// the last.
template <int M, int V>
__attribute__((noinline)) void row_gemm_tile(const RowGemm& a, const RowChunk& chunk, const float* w, int64_t pixel,
                                             int64_t column, float* partial, bool first, bool last, RowFetch& fetch) {
  vf acc[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[m][v] = vf{};
  for (int64_t s = 0; s < chunk.count; ++s) {
    const RowSegment& segment = chunk.segments[s];
    gemm_tile<M, V>(segment.x + pixel * segment.stride, segment.stride, segment.k, w, a.columns, acc, fetch);
    w += segment.k * a.columns;
  }
  if (!first) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] += load(partial + (m * V + v) * kLanes);
  } else if (a.bias) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const vf b = load(a.bias + column + v * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) acc[m][v] += b;
    }
  }
  const int64_t left = a.channels - column;
  if (first && a.shortcut) {
    const float* s = a.shortcut + pixel * a.shortcut_stride + column;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] += load_first(s + m * a.shortcut_stride + v * kLanes, left - v * kLanes);
  }
  float* y = a.y + pixel * a.y_stride + column;
  if (last && a.activation == 0 && left >= V * kLanes) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(y + m * a.y_stride + v * kLanes, acc[m][v]);
    return;
  }
  // Also for the activation: its tables need the registers that hold the tile.
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(partial + (m * V + v) * kLanes, acc[m][v]);
  if (!last) return;
  with_activation(a.activation, [&](auto activation) {
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v)
        store_first(y + m * a.y_stride + v * kLanes, activate<activation.value>(load(partial + (m * V + v) * kLanes)),
                    left - v * kLanes);
  });
}

template <int M, int V>
void row_gemm_columns(const RowGemm& a, int64_t column) {
  constexpr int64_t kTile = M * V * kLanes;
  alignas(64) float partial[kBlockTiles * kTile];
  const int64_t tiles = (a.pixels + M - 1) / M;
  for (int64_t block = 0; block < tiles; block += kBlockTiles) {
    const int64_t end = std::min(tiles, block + kBlockTiles);
    const float* w = a.weight + column;
    int64_t s = 0, offset = 0;
    for (bool first = true; first || s < a.segment_count; first = false) {
      const RowChunk chunk = next_chunk(a, s, offset);
      RowFetch fetch;
      if (column == 0) fetch = rows_to_fetch(a, chunk, block * M, kBlockTiles * M, first);
      fetch.divide((end - block) * (chunk.k / kPart));
      for (int64_t t = block; t < end; ++t)
        row_gemm_tile<M, V>(a, chunk, w, std::min(t * M, a.pixels - M), column, partial + (t - block) * kTile, first,
                            s == a.segment_count, fetch);
      w += chunk.k * a.columns;
    }
  }
}

// Calls body(column, constant V) for blocks of V vectors that cover `columns`.
template <class Body>
FASTSR_INLINE void over_columns(int64_t columns, Body&& body) {
  int64_t column = 0;
  for (; column + kTileVectors * kLanes <= columns; column += kTileVectors * kLanes)
    body(column, std::integral_constant<int, kTileVectors>{});
  if constexpr (kTileVectors == 4) {  // otherwise kChannelBlock is a multiple of a block
    const int64_t rest = (columns - column) / kLanes;
    if (rest == 3) body(column, std::integral_constant<int, 3>{});
    if (rest == 2) body(column, std::integral_constant<int, 2>{});
    if (rest == 1) body(column, std::integral_constant<int, 1>{});
  }
}

void row_gemm(const RowGemm& a) {
  over_columns(a.columns, [&](int64_t column, auto v) {
    constexpr int V = v.value, M = tile_pixels<V>();
    if (column >= a.channels) return;
    if (a.pixels < M)
      row_gemm_columns<1, V>(a, column);
    else
      row_gemm_columns<M, V>(a, column);
  });
}

// acc[m][v] += sum over p of x[p * x_stride + m] * g[p * g_stride + v * kLanes ..].
template <int M, int V>
__attribute__((noinline)) void row_outer_tile(const float* x, int64_t x_stride, const float* g, int64_t g_stride,
                                              int64_t pixels, float* sum, int64_t columns) {
  vf acc[M][V];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[m][v] = vf{};
  for (int64_t p = 0; p < pixels; ++p, x += x_stride, g += g_stride) {
    vf row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(g + v * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf b = splat(x[m]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m][v] += b * row[v];
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* s = sum + m * columns + v * kLanes;
      store(s, load(s) + acc[m][v]);
    }
}

void row_outer(const RowOuter& a) {
  float* sum = a.sum;
  for (int64_t s = 0; s < a.segment_count; ++s) {
    const RowSegment& segment = a.segments[s];
    over_columns(a.columns, [&](int64_t column, auto v) {
      constexpr int V = v.value, M = tile_pixels<V>();
      int64_t k = 0;
      for (; k + M <= segment.k; k += M)
        row_outer_tile<M, V>(segment.x + k, segment.stride, a.g + column, a.g_stride, a.pixels,
                             sum + k * a.columns + column, a.columns);
      constexpr int kRest = M > 4 ? 4 : 2;
      for (; k + kRest <= segment.k; k += kRest)
        row_outer_tile<kRest, V>(segment.x + k, segment.stride, a.g + column, a.g_stride, a.pixels,
                                 sum + k * a.columns + column, a.columns);
      for (; k < segment.k; ++k)
        row_outer_tile<1, V>(segment.x + k, segment.stride, a.g + column, a.g_stride, a.pixels,
                             sum + k * a.columns + column, a.columns);
    });
    sum += segment.k * a.columns;
  }
}

void row_sum(const float* g, int64_t stride, int64_t pixels, int64_t columns, float* sum) {
  for (int64_t n = 0; n < columns; n += kLanes) {
    vf s[4] = {};
    int64_t p = 0;
    for (; p + 4 <= pixels; p += 4)
      for (int i = 0; i < 4; ++i) s[i] += load(g + (p + i) * stride + n);
    for (; p < pixels; ++p) s[0] += load(g + p * stride + n);
    store(sum + n, load(sum + n) + ((s[0] + s[1]) + (s[2] + s[3])));
  }
}

void row_activation(int64_t activation, const float* x, float* y, int64_t count) {
  with_activation(activation, [&](auto kind) {
    over_parts(count, [&](int64_t i, auto part) { store_as(part, y + i, activate<kind.value>(load_as(part, x + i))); });
  });
}

void row_activation_grad(int64_t activation, const float* grad, int64_t grad_stride, const float* pre, float* g,
                         int64_t pixels, int64_t columns) {
  with_activation(activation, [&](auto kind) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t n = 0; n < columns; n += kLanes)
        store(g + p * columns + n,
              load(grad + p * grad_stride + n) * activate_grad<kind.value>(load(pre + p * columns + n)));
  });
}

template <class T>
void row_load(const T* x, int64_t x_stride, int64_t pixels, int64_t channels, float* y, int64_t y_stride) {
  for (int64_t p = 0; p < pixels; ++p, x += x_stride, y += y_stride) {
    over_parts(channels, [&](int64_t i, auto kind) { store_as(kind, y + i, load_as(kind, x + i)); });
    for (int64_t i = channels; i < y_stride; ++i) y[i] = 0.f;
  }
}

template <class T>
void row_store(const float* x, int64_t x_stride, int64_t pixels, int64_t channels, T* y, int64_t y_stride) {
  for (int64_t p = 0; p < pixels; ++p, x += x_stride, y += y_stride)
    over_parts(channels, [&](int64_t i, auto kind) { store_as(kind, y + i, load_as(kind, x + i)); });
}

constexpr RowKernels row_kernels() {
  return {&row_gemm,
          &row_outer,
          &row_sum,
          &row_activation,
          &row_activation_grad,
          {&row_load<float>, &row_store<float>},
          {&row_load<Half>, &row_store<Half>},
          {&row_load<BFloat16>, &row_store<BFloat16>}};
}

}  // namespace
}  // namespace fastsr::cpu
