// The three depthwise convolutions of an ALKConv: k x 1, 1 x k and 3 x 3 on the same rows, zero padded.
//
// A tile is 2 rows x 4 pixels x one vector of channels, one filter shape at a time: 8 sums that share every loaded
// pixel, with the taps in registers where there are 32 of them. Sums go through a small buffer to the GELU, whose
// table wants the registers for itself.
#pragma once

#include "rows.inl"

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

// All three filters. rows[i] is the image row y - halo + i of the tile's first row y, `offset` that of its first pixel.
template <int K>
FASTSR_INLINE void all_three(const Filters& f, const float* const* rows, int64_t offset, int64_t g, Sums& out) {
  const int64_t k = K > 0 ? K : f.k, reach = k / 2;
  const float *taps = f.taps + g * tap_count(k) * kLanes, *bias = f.bias + g * 3 * kLanes;
  vertical<K>(rows + f.halo - reach, offset, taps, k, load(bias), out[0]);
  horizontal<K>(rows + f.halo, offset - reach * kLanes, taps + k * kLanes, k, load(bias + kLanes), out[1]);
  square(rows + f.halo - 1, offset - kLanes, taps + 2 * k * kLanes, load(bias + 2 * kLanes), out[2]);
}

// ---- GELU of s = x / width: dividing the taps instead of every sum saves a multiplication. The table's coefficients
// stay in registers where there are 32.

struct ScaledTable {
  TableRow c0, c1, c2, c3, c4, c5;
  FASTSR_INLINE explicit ScaledTable(const PiecewiseTable& t)
      : c0(t.coefficient[0]),
        c1(t.coefficient[1]),
        c2(t.coefficient[2]),
        c3(t.coefficient[3]),
        c4(t.coefficient[4]),
        c5(t.coefficient[5]) {}
  FASTSR_INLINE vf at(vi i, vf r) const {
    return ((((c5[i] * r + c4[i]) * r + c3[i]) * r + c2[i]) * r + c1[i]) * r + c0[i];
  }
};

struct Segment {
  vi index;
  vf rest;
};

// The segment of |s| and the distance from its centre; NaN stays NaN in `rest`.
FASTSR_INLINE Segment segment_of(vf s) {
  const vf magnitude = reinterpret_cast<vf>(reinterpret_cast<vi>(s) & 0x7fffffff);
  const vf last = splat(PiecewiseTable::kLast);
#if FASTSR_VECTOR_BYTES == 64
  const vf a = reinterpret_cast<vf>(_mm512_min_ps(reinterpret_cast<__m512>(last), reinterpret_cast<__m512>(magnitude)));
#elif FASTSR_VECTOR_BYTES == 32
  const vf a = reinterpret_cast<vf>(_mm256_min_ps(reinterpret_cast<__m256>(last), reinterpret_cast<__m256>(magnitude)));
#else
  const vf a = select(reinterpret_cast<vi>(magnitude > last), last, magnitude);
#endif
  const vf t = a + kRoundMagic;
  return {reinterpret_cast<vi>(t), a - (t - kRoundMagic)};
}

// max(s, 0); NaN may become 0.
FASTSR_INLINE vf positive_part(vf s) {
#if FASTSR_VECTOR_BYTES == 64
  return reinterpret_cast<vf>(_mm512_max_ps(reinterpret_cast<__m512>(s), _mm512_setzero_ps()));
#elif FASTSR_VECTOR_BYTES == 32
  return reinterpret_cast<vf>(_mm256_max_ps(reinterpret_cast<__m256>(s), _mm256_setzero_ps()));
#else
  return select(reinterpret_cast<vi>(s > vf{}), s, vf{});
#endif
}

FASTSR_INLINE vf scaled_gelu(const ScaledTable& table, vf s) {  // gelu(s * width) / width
  const Segment at = segment_of(s);
  return positive_part(s) - table.at(at.index, at.rest) * (1.f / PiecewiseTable::kWidth);
}

// ---- a run of pixels

// Where a run lies: `rows` as for all_three, pixel 0 of the run at `offset` in each of them, for group 0.
struct Run {
  const float* const* rows;
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
        all_three<K>(f, run.rows + y, run.offset + g * run.pitch + x * kLanes, g, sums);
        const ScaledTable table(gelu_table);
        float* out = v + y * v_row + x * v_pixel + g * kLanes;
#pragma GCC unroll 2
        for (int q = 0; q < kTile; ++q)
          store(out + q / kPixels * v_row + q % kPixels * v_pixel,
                (scaled_gelu(table, load(sums[0][q])) + scaled_gelu(table, load(sums[1][q]))) +
                    scaled_gelu(table, load(sums[2][q])));
      }
}

struct Drivers {
  void (*sum_of_gelus)(const Filters&, const Run&, float* v, int64_t v_row);
};

template <int K>
constexpr Drivers drivers_of = {&sum_of_gelus<K>};

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
