// The gradients of a 3x3 convolution's weights in the Winograd domain, by the transposes of the forward's transforms:
//
//   dU[p][c][k] = sum over tiles of V[p][tile][c] S[p][tile][k],   V = B^T d B,   S = A g A^T,   dW = G^T dU G
//
// Every point of a block of 24 tiles is one matrix product over the tiles, which replaces 9 x 9 multiplications a tile
// by 25. Sums: 24 tiles in registers, then the blocks of a range, then ranges in double.
#pragma once

#include "conv3x3_winograd.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

struct WinogradGradient {
  static constexpr int M = WinogradConv::M, N = WinogradConv::N, P = WinogradConv::P;

  static int64_t columns_of(int64_t k) { return round_up(k, 16); }
  // [columns] for the bias, then [P][rows][columns] for the weights.
  static int64_t plane(int64_t c, int64_t k) { return gradient_rows(c) * columns_of(k); }
  static int64_t sums_size(int64_t c, int64_t k) { return columns_of(k) + P * plane(c, k); }

  static int64_t scratch_size(int64_t c, int64_t k, int64_t) {
    const int64_t in = WinogradConv::in_stride(c), out = columns_of(k);
    return P * (WinogradConv::plane(in) + WinogradConv::plane(out)) + P * std::max(in, out) + 2 * kTilePixels;
  }

  // S of one tile, and its sum for the bias.
  static void transform_gradient(const ConvMap<const float>& map, int64_t columns, int64_t h, int64_t w,
                                 WinogradConv::Tile tile, float* patch, float* s, float* bias) {
    const Window<float> g = window(map, columns, h, w, tile.n, tile.y, tile.x, M, M, patch);
    const int64_t gap = WinogradConv::plane(columns);
    for (int64_t c = 0; c < columns; c += kLanes) {
      vf t[N][M], sum{};
#pragma GCC unroll 3
      for (int q = 0; q < M; ++q) {
        vf d[M], o[N];
#pragma GCC unroll 3
        for (int r = 0; r < M; ++r) {
          d[r] = load(g.data + r * g.row + q * g.column + c);
          sum += d[r];
        }
        Winograd::gradient(d, o);
#pragma GCC unroll 5
        for (int r = 0; r < N; ++r) t[r][q] = o[r];
      }
      store(bias + c, load(bias + c) + sum);
#pragma GCC unroll 5
      for (int r = 0; r < N; ++r) {
        vf o[N];
        Winograd::gradient(t[r], o);
#pragma GCC unroll 5
        for (int q = 0; q < N; ++q) store(s + (r * N + q) * gap + c, o[q]);
      }
    }
  }

  template <class T>
  static void run(const Conv3x3WeightGradient<T>& args, float* scratch, float* sums, int64_t first, int64_t last) {
    const int64_t in = WinogradConv::in_stride(args.c), columns = columns_of(args.k);
    const ConvMap<const float> g{args.g, args.h * args.w * columns, args.w * columns, columns};
    float *v = scratch, *s = v + P * WinogradConv::plane(in), *patch = s + P * WinogradConv::plane(columns);
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item * kBlockTiles;
      const int64_t tiles = std::min<int64_t>(kBlockTiles, WinogradConv::tiles_of(args.n, args.h, args.w) - begin);
      for (int64_t t = 0; t < tiles; ++t) {
        const WinogradConv::Tile tile = WinogradConv::tile_at(begin + t, args.h, args.w);
        WinogradConv::transform_input(args, tile, reinterpret_cast<T*>(patch), v + t * in);
        transform_gradient(g, columns, args.h, args.w, tile, patch, s + t * columns, sums);
      }
      for (int p = 0; p < P; ++p)
        add_weight_gradient(v + p * WinogradConv::plane(in), in, args.c, s + p * WinogradConv::plane(columns), columns,
                            tiles, sums + columns + p * plane(args.c, args.k));
    }
  }

  // to[o] = sum_p G[p][tap] from[p * step + o].
  static void combine(const double* from, int64_t step, int64_t columns, int tap, double* to) {
    for (int64_t o = 0; o < columns; ++o) {
      double sum = 0;
      for (int p = 0; p < N; ++p) sum += Winograd::G[p][tap] * from[p * step + o];
      to[o] = sum;
    }
  }

  static void finish(const float* sums, int64_t ranges, int64_t c, int64_t k, float* d_weight, int64_t first,
                     int64_t last) {
    const int64_t columns = columns_of(k), step = sums_size(c, k);
    std::vector<double> total(P * columns), rows(N * 3 * columns), sum(columns);
    for (int64_t i = first; i < last; ++i) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t range = 0; range < ranges; ++range)
        for (int p = 0; p < P; ++p) {
          const float* from = sums + range * step + columns + p * plane(c, k) + i * columns;
          for (int64_t o = 0; o < columns; ++o) total[p * columns + o] += from[o];
        }
      for (int r = 0; r < N; ++r)
        for (int x = 0; x < 3; ++x)
          combine(total.data() + r * N * columns, columns, columns, x, rows.data() + (r * 3 + x) * columns);
      for (int tap = 0; tap < 9; ++tap) {
        combine(rows.data() + tap % 3 * columns, 3 * columns, columns, tap / 3, sum.data());
        for (int64_t o = 0; o < k; ++o) d_weight[(o * c + i) * 9 + tap] = static_cast<float>(sum[o]);
      }
    }
  }

  static constexpr Conv3x3WeightGradientKernels kernels() {
    return {&sums_size, &scratch_size, &WinogradConv::items, &run<float>, &run<Half>, &run<BFloat16>, &finish};
  }
};

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
