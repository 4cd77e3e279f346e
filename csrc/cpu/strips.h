// Division of a batch into tiles for the row-by-row kernels.
#pragma once

#include <algorithm>

#include "isa/strip.h"
#include "layout.h"

namespace fastsr::cpu {

template <class T>
FeatureRows<const T> rows_of(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}
template <class T>
FeatureRows<T> mutable_rows_of(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}

// Strips of columns, each divided into bands of rows. Tiles are numbered so that a strip's bands follow one another.
struct Strips {
  int64_t n, h, w, strip_width, strips, band_rows, bands;

  // For the forward: strips of at most `widest` columns, bands of `band_rows` rows, which a thread can go on with.
  static Strips for_forward(const Tensor& x, int64_t widest, int64_t band_rows) {
    Strips s{x.size(0), x.size(2), x.size(3)};
    s.strips = std::max<int64_t>(1, (s.w + widest - 1) / widest);
    s.strip_width = std::max<int64_t>(1, ((s.w + s.strips - 1) / s.strips + 15) / 16) * 16;
    s.strips = (s.w + s.strip_width - 1) / s.strip_width;
    s.band_rows = band_rows;
    s.bands = (s.h + band_rows - 1) / band_rows;
    return s;
  }

  // For the backward: few and large tiles, as each computes a halo again and has sums of its own.
  static Strips for_backward(const Tensor& x) {
    constexpr int64_t kWidest = 64, kRows = 64;
    constexpr int64_t kFewestTiles = 4, kFewestRows = 16;  // small batches are divided more finely
    Strips s{x.size(0), x.size(2), x.size(3)};
    s.strips = std::max<int64_t>(1, (s.w + kWidest - 1) / kWidest);
    s.strip_width = std::max<int64_t>(1, (s.w + s.strips - 1) / s.strips);
    const int64_t images = std::max<int64_t>(1, s.n * s.strips), wanted = (kFewestTiles + images - 1) / images;
    const int64_t bands = std::max({int64_t{1}, (s.h + kRows - 1) / kRows, std::min(wanted, s.h / kFewestRows)});
    s.band_rows = std::max<int64_t>(1, (s.h + bands - 1) / bands);
    s.bands = (s.h + s.band_rows - 1) / s.band_rows;
    return s;
  }

  int64_t count() const { return h * w == 0 ? 0 : n * strips * bands; }
  StripTile at(int64_t i) const {
    const int64_t band = i % bands, strip = i / bands % strips;
    return {i / bands / strips, band * band_rows, std::min((band + 1) * band_rows, h), strip * strip_width,
            std::min((strip + 1) * strip_width, w)};
  }
  // Whether tile i lies right below tile i - 1.
  bool continues(int64_t i) const { return i % bands > 0; }
};

}  // namespace fastsr::cpu
