// Winograd convolution F(3x3, 3x3) in blocks of tiles that stay in the second-level cache.
//
// A block is kBlockTiles consecutive tiles of 3x3 outputs, counted through rows and images. For each block:
//   V[p][tile][c] = B^T d B                the inputs of the 25 products
//   M[p][tile][k] = sum_c V U[p][c][k]     25 small matrix products, 6 tiles x 4 vectors in registers
//   y             = A^T M A, bias, activation, shortcut
// The sum over c restarts every kWinogradChunk terms: partial sums stay short, which is where most of the error comes
// from. Tiles whose input crosses the border are copied to a patch with zeros first.
#pragma once

#include "conv3x3_epilogue.inl"
#include "winograd.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

constexpr int kBlockTiles = kBlockPixels;
constexpr int64_t kWinogradChunk = 20;

struct WinogradConv {
  static constexpr int M = Winograd::kOutputs, N = Winograd::kPoints, P = N * N;

  // Tiles of one block that the products of one point take up; the odd vector keeps points off one cache set.
  static int64_t plane(int64_t channels) { return kBlockTiles * channels + 16; }
  static int64_t in_stride(int64_t c) { return round_up(c, kLanes); }

  static int64_t packed_size(int64_t in, int64_t out) { return P * in * round_up(out, kLanes); }

  static void pack(const Conv3x3Weights& w, float* u, int64_t first, int64_t last) {
    const int64_t columns = round_up(w.out, kLanes);
    for (int64_t i = first; i < last; ++i)
      for (int64_t o = 0; o < columns; o += kLanes) {
        double g[9][kLanes] = {}, t[N][3][kLanes], r[kLanes];
        for (int64_t l = 0; l < std::min<int64_t>(kLanes, w.out - o); ++l) {
          const float* f = w.data + (o + l) * w.out_stride + i * w.in_stride;
          for (int tap = 0; tap < 9; ++tap) g[tap][l] = f[w.flipped ? 8 - tap : tap];
        }
        for (int p = 0; p < N; ++p)
          for (int x = 0; x < 3; ++x)
            for (int l = 0; l < kLanes; ++l)
              t[p][x][l] =
                  Winograd::G[p][0] * g[x][l] + Winograd::G[p][1] * g[3 + x][l] + Winograd::G[p][2] * g[6 + x][l];
        for (int p = 0; p < N; ++p)
          for (int q = 0; q < N; ++q) {
            for (int l = 0; l < kLanes; ++l)
              r[l] = Winograd::G[q][0] * t[p][0][l] + Winograd::G[q][1] * t[p][1][l] + Winograd::G[q][2] * t[p][2][l];
            float* to = u + ((p * N + q) * w.in + i) * columns + o;
            for (int l = 0; l < kLanes; ++l) to[l] = static_cast<float>(r[l]);
          }
      }
  }

  static int64_t scratch_size(int64_t c, int64_t k, int64_t) {
    return P * (plane(in_stride(c)) + plane(round_up(k, kLanes))) + P * in_stride(c);
  }

  static int64_t tiles_of(int64_t n, int64_t h, int64_t w) { return n * ((h + M - 1) / M) * ((w + M - 1) / M); }
  static int64_t items(int64_t n, int64_t h, int64_t w) { return (tiles_of(n, h, w) + kBlockTiles - 1) / kBlockTiles; }
  static int64_t items_within(int64_t h, int64_t w, int64_t rows) {
    return rows >= h ? items(1, h, w) : rows / M * ((w + M - 1) / M) / kBlockTiles;
  }
  static int64_t rows_completed(int64_t h, int64_t w, int64_t count) {
    return std::min(h, count * kBlockTiles / ((w + M - 1) / M) * M);
  }

  struct Tile {
    int64_t n, y, x;
  };
  static Tile tile_at(int64_t index, int64_t h, int64_t w) {
    const int64_t across = (w + M - 1) / M, down = (h + M - 1) / M;
    return {index / (across * down), index / across % down * M, index % across * M};
  }

  template <class T, template <class> class Args>
  static void transform_input(const Args<T>& args, Tile tile, T* patch, float* v) {
    const int64_t channels = in_stride(args.c), gap = plane(channels);
    const Window<T> x = window(args.x, args.c, args.h, args.w, tile.n, tile.y - 1, tile.x - 1, N, N, patch);
    for (int64_t first = 0; first < args.c; first += kLanes) {
      const int64_t c = vector_begin(first, args.c);
      vf t[N][N];
#pragma GCC unroll 6
      for (int q = 0; q < N; ++q) {
        vf d[N], o[N];
#pragma GCC unroll 6
        for (int r = 0; r < N; ++r) d[r] = load(x.data + r * x.row + q * x.column + c);
        Winograd::input(d, o);
#pragma GCC unroll 6
        for (int r = 0; r < N; ++r) t[r][q] = o[r];
      }
#pragma GCC unroll 6
      for (int r = 0; r < N; ++r) {
        vf o[N];
        Winograd::input(t[r], o);
#pragma GCC unroll 6
        for (int q = 0; q < N; ++q) store(v + (r * N + q) * gap + c, o[q]);
      }
    }
  }

  template <class Between>
  static void products(const float* v, int64_t c, const float* u, int64_t k, float* m, int64_t tiles,
                       Between&& between) {
    const int64_t columns = round_up(k, kLanes), v_stride = in_stride(c);
    for (int p = 0; p < P; ++p, v += plane(v_stride), m += plane(columns), u += c * columns)
      block_product<kWinogradChunk>(
          v, v_stride, c, u, columns, tiles, [&](int64_t t, int64_t o, vf sum) { store(m + t * columns + o, sum); },
          between);
  }

  template <Activation activation, class T>
  static void transform_output(const Conv3x3Args<T>& args, Tile tile, const float* m) {
    const int64_t gap = plane(round_up(args.k, kLanes));
    const int64_t rows = std::min<int64_t>(M, args.h - tile.y), across = std::min<int64_t>(M, args.w - tile.x);
    for (int64_t first = 0; first < args.k; first += kLanes) {
      const int64_t c = args.in_place() ? first : vector_begin(first, args.k);
      vf t[M][N], y[M][M];
#pragma GCC unroll 6
      for (int q = 0; q < N; ++q) {
        vf d[N], o[M];
#pragma GCC unroll 6
        for (int r = 0; r < N; ++r) d[r] = load(m + (r * N + q) * gap + c);
        Winograd::output(d, o);
#pragma GCC unroll 6
        for (int r = 0; r < M; ++r) t[r][q] = o[r];
      }
#pragma GCC unroll 6
      for (int r = 0; r < M; ++r) Winograd::output(t[r], y[r]);
      for (int64_t r = 0; r < rows; ++r) finish_pixels<activation>(args, tile.n, tile.y + r, tile.x, c, across, y[r]);
    }
  }

  // While a block's products compute, the rows that it ends in and those that the next block is the first to read are
  // fetched: a function to be called before every register tile.
  template <class T>
  static auto prefetch(const Conv3x3Args<T>& args, Tile tile) {
    constexpr int64_t kAcross = kBlockTiles * M;
    constexpr int kRows = 2 * M, kLines = 16;
    const auto row = [&](const auto& map, int64_t y, int64_t x, int64_t channels) {
      return map.data ? Prefetch(map, tile.n, y, x, std::min(kAcross, args.w - x), channels) : Prefetch();
    };
    Prefetch rows[kRows];
    for (int r = 0; r < M; ++r) {
      const int64_t y = std::min(args.h - 1, tile.y + r), below = std::min(args.h - 1, tile.y + r + 1);
      rows[r] = args.dy.data ? row(args.g, y, tile.x, args.k) : row(args.y, y, tile.x, args.k);
      rows[M + r] = row(args.x, below, std::min(args.w - 1, tile.x + kAcross), args.c);
    }
    return [rows, i = 0]() mutable {
      if (i < kRows && !rows[i].some(kLines)) ++i;
    };
  }

  template <class T>
  static void run(const Conv3x3Args<T>& args, float* scratch, int64_t item) {
    const int64_t first = item * kBlockTiles;
    const int64_t tiles = std::min<int64_t>(kBlockTiles, tiles_of(args.n, args.h, args.w) - first);
    const int64_t c = in_stride(args.c), k = round_up(args.k, kLanes);
    float *v = scratch, *m = v + P * plane(c);
    T* patch = reinterpret_cast<T*>(m + P * plane(k));
    for (int64_t t = 0; t < tiles; ++t) transform_input(args, tile_at(first + t, args.h, args.w), patch, v + t * c);
    products(v, args.c, args.packed, args.k, m, tiles, prefetch(args, tile_at(first, args.h, args.w)));
    with_activation(args.activation, [&](auto activation) {
      for (int64_t t = 0; t < tiles; ++t)
        transform_output<decltype(activation)::value>(args, tile_at(first + t, args.h, args.w), m + t * k);
    });
  }

  static constexpr Conv3x3Algorithm algorithm() {
    return {&packed_size,    &pack,       &scratch_size, &items,        &items_within,
            &rows_completed, &run<float>, &run<Half>,    &run<BFloat16>};
  }
};

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
