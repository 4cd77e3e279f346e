// The gradients of a 3x3 convolution's weights by direct sums over the pixels.
//
//   dW[r][q][c][k] = sum over pixels of x[y + r - 1][x + q - 1][c] g[y][x][k]
//
// As in the direct convolution the three pixels under a row of the filter are one run of 3 C numbers, so that every
// row of the image is three matrix products. Sums: at most 64 pixels in registers, then rows, then ranges in double.
#pragma once

#include "conv3x3_direct.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

struct DirectGradient {
  static int64_t columns_of(int64_t k) { return round_up(k, 16); }
  // [3][rows][columns] for the weights, then [columns] for the bias.
  static int64_t plane(int64_t c, int64_t k) { return gradient_rows(3 * c) * columns_of(k); }
  static int64_t sums_size(int64_t c, int64_t k) { return columns_of(k) + 3 * plane(c, k); }

  template <class T>
  static void run(const Conv3x3WeightGradient<T>& args, float* scratch, float* sums, int64_t first, int64_t last) {
    const int64_t columns = columns_of(args.k), size = DirectConv::row_size(args.c, args.w);
    for (int64_t item = first; item < last; ++item) {
      const int64_t n = item / DirectConv::bands(args.h), y0 = item % DirectConv::bands(args.h) * kDirectRows;
      const int64_t y1 = std::min(args.h, y0 + kDirectRows);
      DirectConv::stage_rows(args, n, y0, y1, scratch);
      for (int64_t y = y0; y < y1; ++y) {
        const float* g = args.g + (n * args.h + y) * args.w * columns;
        add_column_sums(g, columns, args.w, sums);
        for (int64_t r = 0; r < 3; ++r)
          add_weight_gradient(scratch + (y - y0 + r) * size, args.c, 3 * args.c, g, columns, args.w,
                              sums + columns + r * plane(args.c, args.k));
      }
    }
  }

  static void finish(const float* sums, int64_t ranges, int64_t c, int64_t k, float* d_weight, int64_t first,
                     int64_t last) {
    const int64_t columns = columns_of(k), step = sums_size(c, k);
    std::vector<double> total(columns);
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t i = first; i < last; ++i) {
        std::fill(total.begin(), total.end(), 0.0);
        const float* from = sums + columns + tap / 3 * plane(c, k) + (tap % 3 * c + i) * columns;
        for (int64_t range = 0; range < ranges; ++range)
          for (int64_t o = 0; o < columns; ++o) total[o] += from[range * step + o];
        for (int64_t o = 0; o < k; ++o) d_weight[(o * c + i) * 9 + tap] = static_cast<float>(total[o]);
      }
  }

  static constexpr Conv3x3WeightGradientKernels kernels() {
    return {&sums_size, &DirectConv::scratch_size, &DirectConv::items, &run<float>, &run<Half>, &run<BFloat16>,
            &finish};
  }
};

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
