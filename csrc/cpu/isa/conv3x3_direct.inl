// Direct convolution, for few channels and small images, in bands of rows.
//
// Rows of x are converted to float between zero pixels, so that the three pixels under a row of the filter are one run
// of 3 C numbers and the convolution of a row is three matrix products over such runs, 6 pixels x 4 vectors of output
// channels in registers. Sums restart every kDirectChunk terms.
#pragma once

#include "conv3x3_epilogue.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

constexpr int64_t kDirectRows = 4;
constexpr int64_t kDirectChunk = 64;

struct DirectConv {
  static int64_t packed_size(int64_t in, int64_t out) { return 9 * in * round_up(out, kLanes); }

  static void pack(const Conv3x3Weights& w, float* packed, int64_t first, int64_t last) {
    const int64_t columns = round_up(w.out, kLanes);
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t i = first; i < last; ++i)
        for (int64_t o = 0; o < columns; ++o)
          packed[(tap * w.in + i) * columns + o] =
              o < w.out ? w.data[o * w.out_stride + i * w.in_stride + (w.flipped ? 8 - tap : tap)] : 0.f;
  }

  // A zero pixel on the left, one on the right, and as many as a tile may reach beyond the row.
  static int64_t row_size(int64_t c, int64_t w) { return round_up((w + 2 + 2 * kTilePixels) * c, kLanes); }
  static int64_t scratch_size(int64_t c, int64_t, int64_t w) { return (kDirectRows + 2) * row_size(c, w); }

  static int64_t bands(int64_t h) { return (h + kDirectRows - 1) / kDirectRows; }
  static int64_t items(int64_t n, int64_t h, int64_t) { return n * bands(h); }
  static int64_t items_within(int64_t h, int64_t, int64_t rows) { return rows >= h ? bands(h) : rows / kDirectRows; }
  static int64_t rows_completed(int64_t h, int64_t, int64_t count) { return std::min(h, count * kDirectRows); }

  // Rows [first - 1, last + 1) of image n as float, with zeros outside the image.
  template <class T, template <class> class Args>
  static void stage_rows(const Args<T>& args, int64_t n, int64_t first, int64_t last, float* to) {
    const int64_t size = row_size(args.c, args.w);
    for (int64_t y = first - 1; y <= last; ++y, to += size) {
      std::memset(to, 0, size * sizeof(float));
      if (y < 0 || y >= args.h) continue;
      if (args.x.stride_w == args.c) {
        const T* from = args.x.at(n, y, 0);
        over<T>(args.w * args.c,
                [&](int64_t i, auto kind) { store_as(kind, to + args.c + i, load_as(kind, from + i)); });
        continue;
      }
      for (int64_t x = 0; x < args.w; ++x) {
        const T* from = args.x.at(n, y, x);
        float* pixel = to + (x + 1) * args.c;
        over<T>(args.c, [&](int64_t i, auto kind) { store_as(kind, pixel + i, load_as(kind, from + i)); });
      }
    }
  }

  // sums[m][j] of M pixels and N vectors of output channels. `x` is the top left pixel under the first one's filter,
  // rows are `row` floats apart.
  template <int M, int N>
  static void accumulate(const float* x, int64_t row, int64_t c, const float* w, int64_t columns, float* sums) {
    const int64_t run = 3 * c, chunks = (run + kDirectChunk - 1) / kDirectChunk;
    vf total[M][N] = {};
    if (3 * run <= kDirectChunk) {
      for (int64_t r = 0; r < 3; ++r) gemm_tile<M, N>(x + r * row, c, run, w + r * run * columns, columns, total);
    } else {
      for (int64_t i = 0; i < 3 * chunks; ++i) {
        const int64_t r = i / chunks, first = run * (i % chunks) / chunks, last = run * (i % chunks + 1) / chunks;
        vf acc[M][N] = {};
        gemm_tile<M, N>(x + r * row + first, c, last - first, w + (r * run + first) * columns, columns, acc);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
          for (int j = 0; j < N; ++j) total[m][j] += acc[m][j];
      }
    }
    for (int m = 0; m < M; ++m)
      for (int j = 0; j < N; ++j) store(sums + (m * N + j) * kLanes, total[m][j]);
  }

  template <Activation activation, class T>
  static void run_band(const Conv3x3Args<T>& args, const float* rows, int64_t n, int64_t first, int64_t last) {
    const int64_t columns = round_up(args.k, kLanes), size = row_size(args.c, args.w);
    over_columns(columns, [&](auto vectors, int64_t o) {
      constexpr int N = decltype(vectors)::value, M = tile_pixels(N);
      float sums[M * N * kLanes];
      const int64_t end = std::min<int64_t>(args.k, o + N * kLanes);
      for (int64_t y = first; y < last; ++y)
        for (int64_t x = 0; x < args.w; x += M) {
          accumulate<M, N>(rows + (y - first) * size + x * args.c, size, args.c, args.packed + o, columns, sums);
          for (int64_t k = o; k < end; k += kLanes) {
            // The lanes of a vector that is moved back must not be those of another block of columns.
            const int64_t c = args.in_place() ? k : std::max(o, vector_begin(k, args.k));
            vf pre[M];
            for (int m = 0; m < M; ++m) pre[m] = load(sums + m * N * kLanes + (c - o));
            finish_pixels<activation>(args, n, y, x, c, std::min<int64_t>(M, args.w - x), pre);
          }
        }
    });
  }

  template <class T>
  static void run(const Conv3x3Args<T>& args, float* scratch, int64_t item) {
    const int64_t n = item / bands(args.h), first = item % bands(args.h) * kDirectRows;
    const int64_t last = std::min(args.h, first + kDirectRows);
    stage_rows(args, n, first, last, scratch);
    with_activation(args.activation,
                    [&](auto activation) { run_band<decltype(activation)::value>(args, scratch, n, first, last); });
  }

  static constexpr Conv3x3Algorithm algorithm() {
    return {&packed_size,    &pack,       &scratch_size, &items,        &items_within,
            &rows_completed, &run<float>, &run<Half>,    &run<BFloat16>};
  }
};

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
