// The three depthwise convolutions of an ALKConv: k x 1, 1 x k and 3 x 3 on the same rows, zero padded.
//
// A tile is 2 rows x 4 pixels x one vector of channels, one filter shape at a time: 8 sums that share every loaded
// pixel, with the taps in registers where there are 32 of them. Sums go through a small buffer to the GELU, whose
// table wants the registers for itself.
#pragma once

#include "rolling_rows.inl"

namespace fastsr::cpu {
namespace {
namespace branches {

constexpr int kRows = 2, kPixels = 4, kTile = kRows * kPixels;

using Sums = float[3][kTile][kLanes];

// Taps of one channel group: k vertical, k horizontal and 9 square ones, each a vector.
FASTSR_INLINE int64_t tap_count(int64_t k) { return 2 * k + 9; }

FASTSR_INLINE void start(vf (&sums)[kRows][kPixels], vf bias) {
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i) sums[i / kPixels][i % kPixels] = bias;
}
FASTSR_INLINE void finish(const vf (&sums)[kRows][kPixels], float (&out)[kTile][kLanes]) {
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i) store(out[i], sums[i / kPixels][i % kPixels]);
}

// row[i] + offset is the tile's first pixel in the i-th row above it that the filter reaches. K = 0: any k.
template <int K>
FASTSR_INLINE void vertical(const float* const* row, int64_t offset, const float* taps, int64_t k, vf bias,
                            float (&out)[kTile][kLanes]) {
  vf sums[kRows][kPixels];
  start(sums, bias);
  if constexpr (K > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < K + kRows - 1; ++i) {
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p) {
        const vf u = load(row[i] + offset + p * kLanes);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r)
          if (i - r >= 0 && i - r < K) sums[r][p] += load(taps + (i - r) * kLanes) * u;
      }
    }
  } else {
    for (int64_t t = 0; t < k; ++t) {
      const vf tap = load(taps + t * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i)
        sums[i / kPixels][i % kPixels] += tap * load(row[t + i / kPixels] + offset + i % kPixels * kLanes);
    }
  }
  finish(sums, out);
}

// `offset` is that of the leftmost pixel that the first pixel's filter reaches.
template <int K>
FASTSR_INLINE void horizontal(const float* const* row, int64_t offset, const float* taps, int64_t k, vf bias,
                              float (&out)[kTile][kLanes]) {
  vf sums[kRows][kPixels];
  start(sums, bias);
  if constexpr (K > 0) {
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int j = 0; j < K + kPixels - 1; ++j) {
        const vf u = load(row[r] + offset + j * kLanes);
#pragma GCC unroll 4
        for (int p = 0; p < kPixels; ++p)
          if (j - p >= 0 && j - p < K) sums[r][p] += load(taps + (j - p) * kLanes) * u;
      }
    }
  } else {
    for (int64_t t = 0; t < k; ++t) {
      const vf tap = load(taps + t * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kTile; ++i)
        sums[i / kPixels][i % kPixels] += tap * load(row[i / kPixels] + offset + (t + i % kPixels) * kLanes);
    }
  }
  finish(sums, out);
}

// row[0] is the row above the tile's first, `offset` that of the pixel left of the tile's first.
FASTSR_INLINE void square(const float* const* row, int64_t offset, const float* taps, vf bias,
                          float (&out)[kTile][kLanes]) {
  vf sums[kRows][kPixels];
  start(sums, bias);
#pragma GCC unroll 4
  for (int i = 0; i < kRows + 2; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kPixels + 2; ++j) {
      const vf u = load(row[i] + offset + j * kLanes);
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r)
          if (i - r >= 0 && i - r < 3 && j - p >= 0 && j - p < 3)
            sums[r][p] += load(taps + ((i - r) * 3 + j - p) * kLanes) * u;
      }
    }
  }
  finish(sums, out);
}

// Filters and geometry, the same for all tiles of a call.
struct Filters {
  const float* taps;  // [group][tap_count][kLanes]
  const float* bias;  // [group][3][kLanes]
  int64_t k, halo;    // halo = max(k / 2, 1): rows and columns that the widest filter reaches to each side
};

// What the three filters read. rows[branch][i] is image row y - halo + i, for the first row y of a run of pixels.
struct Sources {
  const float* const* rows[3];
};

// All three filters for the tile `y` rows down the run; `offset` is that of the tile's first pixel.
template <int K>
FASTSR_INLINE void all_three(const Filters& f, const Sources& s, int64_t y, int64_t offset, int64_t g, Sums& out) {
  const int64_t k = K > 0 ? K : f.k, reach = k / 2;
  const float *taps = f.taps + g * tap_count(k) * kLanes, *bias = f.bias + g * 3 * kLanes;
  vertical<K>(s.rows[0] + y + f.halo - reach, offset, taps, k, load(bias), out[0]);
  horizontal<K>(s.rows[1] + y + f.halo, offset - reach * kLanes, taps + k * kLanes, k, load(bias + kLanes), out[1]);
  square(s.rows[2] + y + f.halo - 1, offset - kLanes, taps + 2 * k * kLanes, load(bias + 2 * kLanes), out[2]);
}

// ---- GELU of s = x / width

FASTSR_INLINE vf scaled_gelu(const TableRows& table, vf s, Segment at) {  // gelu(s * width) / width
  return positive_part(s) - table.at(at.index, at.rest) * kInverseWidth;
}

// ---- a run of pixels

// Pixel 0 of the run lies at `offset` in the rows, for group 0, and `pitch` further for each group.
struct Run {
  Sources sources;
  int64_t offset, pitch, groups;
  int64_t row_count, count;  // rows (a multiple of kRows is computed) and pixels (a multiple of kPixels)
};

// v[row * v_row + pixel * groups * kLanes + channel] = the sum of the three GELUs, divided by the width.
template <int K>
void sum_of_gelus(const Filters& f, const Run& run, float* v, int64_t v_row) {
  Sums sums;
  const int64_t v_pixel = run.groups * kLanes;
  for (int64_t g = 0; g < run.groups; ++g)
    for (int64_t x = 0; x < run.count; x += kPixels)
      for (int64_t y = 0; y < run.row_count; y += kRows) {
        all_three<K>(f, run.sources, y, run.offset + g * run.pitch + x * kLanes, g, sums);
        const TableRows table(Table::gelu);
        float* out = v + y * v_row + x * v_pixel + g * kLanes;
#pragma GCC unroll 2
        for (int q = 0; q < kTile; ++q) {
          const auto of = [&](int branch) {
            const vf s = load(sums[branch][q]);
            return scaled_gelu(table, s, segment_of<false>(s));
          };
          store(out + q / kPixels * v_row + q % kPixels * v_pixel, (of(0) + of(1)) + of(2));
        }
      }
}

// As sum_of_gelus, and the three derivatives of GELU, laid out as v, `slope_stride` floats apart.
template <int K>
void gelus_and_slopes(const Filters& f, const Run& run, float* v, int64_t v_row, float* slopes, int64_t slope_stride) {
  Sums sums;
  const int64_t v_pixel = run.groups * kLanes;
  for (int64_t g = 0; g < run.groups; ++g)
    for (int64_t x = 0; x < run.count; x += kPixels)
      for (int64_t y = 0; y < run.row_count; y += kRows) {
        all_three<K>(f, run.sources, y, run.offset + g * run.pitch + x * kLanes, g, sums);
        const TableRows table(Table::gelu), slope_table(Table::gelu_grad);
        const int64_t start = y * v_row + x * v_pixel + g * kLanes;
        for (int q = 0; q < kTile; ++q) {
          const int64_t to = start + q / kPixels * v_row + q % kPixels * v_pixel;
          vf sum{};
#pragma GCC unroll 3
          for (int branch = 0; branch < 3; ++branch) {
            const vf s = load(sums[branch][q]);
            const Segment at = segment_of<true>(s);
            sum += scaled_gelu(table, s, at);
            const vf d = slope_table.at(at.index, at.rest);
            store(slopes + branch * slope_stride + to, select(reinterpret_cast<vi>(s > vf{}), 1.f - d, d));
          }
          store(v + to, sum);
        }
      }
}

// out[row * out_row + pixel * out_pixel + channel] = the sum of the three filters.
template <int K>
void sum_of_filters(const Filters& f, const Run& run, float* out, int64_t out_row, int64_t out_pixel) {
  Sums sums;
  for (int64_t g = 0; g < run.groups; ++g)
    for (int64_t x = 0; x < run.count; x += kPixels)
      for (int64_t y = 0; y < run.row_count; y += kRows) {
        all_three<K>(f, run.sources, y, run.offset + g * run.pitch + x * kLanes, g, sums);
        float* to = out + y * out_row + x * out_pixel + g * kLanes;
#pragma GCC unroll 8
        for (int q = 0; q < kTile; ++q)
          store(to + q / kPixels * out_row + q % kPixels * out_pixel,
                (load(sums[0][q]) + load(sums[1][q])) + load(sums[2][q]));
      }
}

// ---- gradients of taps and biases

// sums[t] += d[pixel] * source(t)[pixel] over `count` pixels, and *bias += d[pixel]. T > 0: that many taps.
template <int T, class Source>
FASTSR_INLINE void correlate(const float* d, int64_t count, int64_t taps, Source source, float* sums, float* bias) {
  if constexpr (T > 0) {
    vf acc[T] = {}, total = {};
    for (int64_t x = 0; x < count; ++x) {
      const vf dx = load(d + x * kLanes);
      total += dx;
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) acc[t] += dx * load(source(t) + x * kLanes);
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) store(sums + t * kLanes, load(sums + t * kLanes) + acc[t]);
    if (bias) store(bias, load(bias) + total);
  } else {
    for (int64_t t = 0; t < taps; ++t) {
      vf acc[4] = {};
      const float* from = source(t);
      for (int64_t x = 0; x < count; ++x) acc[x % 4] += load(d + x * kLanes) * load(from + x * kLanes);
      store(sums + t * kLanes, load(sums + t * kLanes) + ((acc[0] + acc[1]) + (acc[2] + acc[3])));
    }
    vf total{};
    for (int64_t x = 0; x < count; ++x) total += load(d + x * kLanes);
    store(bias, load(bias) + total);
  }
}

// Floats of one group's gradients: tap_count(k) taps, then three biases.
FASTSR_INLINE int64_t gradient_size(int64_t k) { return (tap_count(k) + 3) * kLanes; }

// Adds one row's part. d[branch]: the row of gradients, at the first pixel and group 0. u.rows as in Sources (of that
// row), u.offset at the first pixel.
template <int K>
void tap_gradients(const Filters& f, const Run& u, const float* const* d, int64_t d_pitch, float* gradients) {
  const int64_t k = K > 0 ? K : f.k, reach = k / 2;
  for (int64_t g = 0; g < u.groups; ++g) {
    float *sums = gradients + g * gradient_size(k), *bias = sums + tap_count(k) * kLanes;
    const float* const* rows = u.sources.rows[0] + f.halo;
    const int64_t at = u.offset + g * u.pitch, d_at = g * d_pitch;
    correlate<K>(d[0] + d_at, u.count, k, [=](int64_t t) { return rows[t - reach] + at; }, sums, bias);
    correlate<K>(
        d[1] + d_at, u.count, k, [=](int64_t t) { return rows[0] + at + (t - reach) * kLanes; }, sums + k * kLanes,
        bias + kLanes);
    correlate<9>(
        d[2] + d_at, u.count, 9, [=](int64_t t) { return rows[t / 3 - 1] + at + (t % 3 - 1) * kLanes; },
        sums + 2 * k * kLanes, bias + 2 * kLanes);
  }
}

// ---- by kernel size

struct Drivers {
  void (*sum_of_gelus)(const Filters&, const Run&, float* v, int64_t v_row);
  void (*gelus_and_slopes)(const Filters&, const Run&, float* v, int64_t v_row, float* slopes, int64_t slope_stride);
  void (*sum_of_filters)(const Filters&, const Run&, float* out, int64_t out_row, int64_t out_pixel);
  void (*tap_gradients)(const Filters&, const Run&, const float* const* d, int64_t d_pitch, float* gradients);
};

template <int K>
constexpr Drivers drivers_of = {&sum_of_gelus<K>, &gelus_and_slopes<K>, &sum_of_filters<K>, &tap_gradients<K>};

FASTSR_INLINE const Drivers& drivers(int64_t k) {
  switch (k) {
    case 3:
      return drivers_of<3>;
    case 5:
      return drivers_of<5>;
    case 7:
      return drivers_of<7>;
    case 9:
      return drivers_of<9>;
    case 11:
      return drivers_of<11>;
    default:
      return drivers_of<0>;
  }
}

}  // namespace branches
}  // namespace
}  // namespace fastsr::cpu
