// What the convolution kernels share: vectors at the end of a pixel's channels, windows with zero padding, and matrix
// products with short partial sums.
#pragma once

#include "gemm.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

// Channels that do not fill a vector can be done by a last vector that overlaps the one before it: the begin of the
// vector at c, moved back where it would pass the end. Fewer channels than one vector take load_first and store_first.
FASTSR_INLINE int64_t vector_begin(int64_t c, int64_t channels) {
  return std::min(c, std::max<int64_t>(0, channels - kLanes));
}

// rows x columns pixels from (n, y, x) on: a view into the map, or a copy in `patch` where the map's rows are not in
// order or the window passes its border, beyond which there are zeros. The copy's pixels follow one another as the
// map's do, but for pixels that are shorter than a vector or not dense: then they are a multiple of vectors apart.
template <class T>
struct Window {
  const T* data;
  int64_t row, column;
};
template <class T>
FASTSR_INLINE Window<T> window(const ConvMap<const T>& map, int64_t c, int64_t h, int64_t w, int64_t n, int64_t y,
                               int64_t x, int64_t rows, int64_t columns, T* patch) {
  if (y >= 0 && x >= 0 && y + rows <= h && x + columns <= w && c >= kLanes && map.in_order(y, rows))
    return {map.at(n, y, x), map.stride_h, map.stride_w};
  const int64_t left = std::max<int64_t>(0, -x), right = std::min(columns, w - x);
  if (c >= kLanes && map.stride_w == c) {
    for (int64_t r = 0; r < rows; ++r) {
      T* const to = patch + r * columns * c;
      if (y + r < 0 || y + r >= h) {
        std::memset(to, 0, columns * c * sizeof(T));
        continue;
      }
      std::memset(to, 0, left * c * sizeof(T));
      std::memcpy(to + left * c, map.at(n, y + r, x + left), (right - left) * c * sizeof(T));
      std::memset(to + right * c, 0, (columns - right) * c * sizeof(T));
    }
    return {patch, columns * c, c};
  }
  const int64_t channels = round_up(c, kLanes);
  std::memset(patch, 0, rows * columns * channels * sizeof(T));
  for (int64_t r = std::max<int64_t>(0, -y); r < std::min(rows, h - y); ++r)
    for (int64_t q = left; q < right; ++q)
      std::memcpy(patch + (r * columns + q) * channels, map.at(n, y + r, x + q), c * sizeof(T));
  return {patch, columns * channels, channels};
}

// Copies pixels to a float block, unused lanes zero, or back.
template <class T>
void load_pixels(const ConvMap<const T>& map, int64_t n, int64_t h, int64_t w, int64_t channels, int64_t pixels,
                 float* to, int64_t columns) {
  for (int64_t i = 0; i < pixels; ++i) {
    const T* from = map.at(n, h, w + i);
    for (int64_t c = 0; c < channels; c += kLanes)
      store(to + i * columns + c, load_first(from + c, std::min<int64_t>(kLanes, channels - c)));
  }
}
template <class T>
void store_pixels(const float* from, int64_t columns, const ConvMap<T>& map, int64_t n, int64_t h, int64_t w,
                  int64_t channels, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i) {
    T* to = map.at(n, h, w + i);
    for (int64_t first = 0; first < channels; first += kLanes) {
      const int64_t c = vector_begin(first, channels);
      store_first(to + c, load(from + i * columns + c), channels - c);
    }
  }
}

// Pixels of a register tile that is `vectors` wide; every count divides kBlockPixels.
constexpr int kBlockPixels = 24;
constexpr int tile_pixels(int vectors) { return vectors <= kTileVectors / 2 ? 2 * kTilePixels : kTilePixels; }
static_assert(kBlockPixels % (2 * kTilePixels) == 0);

// Calls body(constant) with min(vectors, kTileVectors) as a compile-time constant.
template <class Body>
FASTSR_INLINE void with_vectors(int64_t vectors, Body&& body) {
  if (vectors >= kTileVectors) return body(std::integral_constant<int, kTileVectors>{});
  if (vectors == 3) return body(std::integral_constant<int, std::min(3, kTileVectors)>{});
  if (vectors == 2) return body(std::integral_constant<int, std::min(2, kTileVectors)>{});
  body(std::integral_constant<int, 1>{});
}

// Calls body(constant, o) for every block of columns o, o + kLanes, .., at most kTileVectors vectors wide.
template <class Body>
FASTSR_INLINE void over_columns(int64_t columns, Body&& body) {
  for (int64_t o = 0; o < columns; o += kTileVectors * kLanes)
    with_vectors((columns - o) / kLanes, [&](auto vectors) { body(vectors, o); });
}

// Calls finish(m, j, vector) for the M x N vectors of sum_k x[m][k] w[k][o + j * kLanes ..]. Sums restart every Chunk
// terms: their error grows with their length.
template <int M, int N, int64_t Chunk, class Finish>
FASTSR_INLINE void chunked_tile(const float* x, int64_t x_stride, int64_t terms, const float* w, int64_t columns,
                                Finish&& finish) {
  alignas(64) float partial[M * N * kLanes];
  const int64_t chunks = (terms + Chunk - 1) / Chunk;
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t first = terms * i / chunks, last = terms * (i + 1) / chunks;
    vf acc[M][N] = {};
    gemm_tile<M, N>(x + first, x_stride, last - first, w + first * columns, columns, acc);
    if (i > 0) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) acc[m][j] += load(partial + (m * N + j) * kLanes);
    }
    if (i + 1 < chunks) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) store(partial + (m * N + j) * kLanes, acc[m][j]);
      continue;
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) finish(m, j, acc[m][j]);
  }
}

// Calls finish(pixel, column, vector) for the vectors of x w, a product of at most kBlockPixels pixels, and between()
// before every register tile.
template <int64_t Chunk, class Finish, class Between>
FASTSR_INLINE void block_product(const float* x, int64_t x_stride, int64_t terms, const float* w, int64_t columns,
                                 int64_t pixels, Finish&& finish, Between&& between) {
  over_columns(columns, [&](auto vectors, int64_t o) {
    constexpr int N = decltype(vectors)::value, M = tile_pixels(N);
    for (int64_t p = 0; p < pixels; p += M) {
      between();
      chunked_tile<M, N, Chunk>(x + p * x_stride, x_stride, terms, w + o, columns, [&](int m, int j, vf sum) {
        if (p + m < pixels) finish(p + m, o + j * kLanes, sum);
      });
    }
  });
}

// y = x w, y[pixel][columns].
template <int64_t Chunk>
void block_product(const float* x, int64_t x_stride, int64_t terms, const float* w, int64_t columns, float* y,
                   int64_t pixels) {
  block_product<Chunk>(
      x, x_stride, terms, w, columns, pixels, [&](int64_t p, int64_t o, vf sum) { store(y + p * columns + o, sum); },
      [] {});
}

// d[i][o] += sum_p x[p][i] g[p][o]: the gradient of a matrix's weights over `pixels` pixels, for `rows` input channels.
// Rows of d up to the next multiple of a tile are written, too, and as many elements of x are read.
constexpr int64_t kGradientChunk = 64;
constexpr int64_t gradient_rows(int64_t rows) {
  return (rows + 2 * kTilePixels - 1) / (2 * kTilePixels) * 2 * kTilePixels;
}

void add_weight_gradient(const float* x, int64_t x_stride, int64_t rows, const float* g, int64_t columns,
                         int64_t pixels, float* d) {
  over_columns(columns, [&](auto vectors, int64_t o) {
    constexpr int N = decltype(vectors)::value, M = tile_pixels(N);
    for (int64_t i = 0; i < rows; i += M)
      for (int64_t first = 0; first < pixels; first += kGradientChunk) {
        vf acc[M][N] = {};
        const float *a = x + first * x_stride + i, *b = g + first * columns + o;
        for (int64_t p = std::min(kGradientChunk, pixels - first); p > 0; --p, a += x_stride, b += columns) {
          vf row[N];
#pragma GCC unroll 4
          for (int j = 0; j < N; ++j) row[j] = load(b + j * kLanes);
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) {
            const vf value = splat(a[m]);
#pragma GCC unroll 4
            for (int j = 0; j < N; ++j) acc[m][j] += value * row[j];
          }
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
          for (int j = 0; j < N; ++j) {
            float* to = d + (i + m) * columns + o + j * kLanes;
            store(to, load(to) + acc[m][j]);
          }
      }
  });
}

// d[o] += sum_p g[p][o].
void add_column_sums(const float* g, int64_t columns, int64_t pixels, float* d) {
  for (int64_t o = 0; o < columns; o += kLanes)
    for (int64_t first = 0; first < pixels; first += kGradientChunk) {
      vf sum{};
      for (int64_t p = first; p < std::min(pixels, first + kGradientChunk); ++p) sum += load(g + p * columns + o);
      store(d + o, load(d + o) + sum);
    }
}

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
