// Bilinear enlargement with align_corners=False, indexed as PyTorch does it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa/esa.h"

namespace fastsr::cpu {

// Taps of every pixel of a row (or column) enlarged from `from` to `to` pixels; `ratio` is from / to, or the inverse
// of the scale factor where that is given.
inline std::vector<BilinearTap> bilinear_taps(int64_t from, int64_t to, float ratio) {
  std::vector<BilinearTap> taps(to);
  for (int64_t p = 0; p < to; ++p) {
    const float source = std::max(0.f, ratio * (static_cast<float>(p) + 0.5f) - 0.5f);
    const int64_t i = std::min(static_cast<int64_t>(source), from - 1);
    const float second = std::clamp(source - static_cast<float>(i), 0.f, 1.f);
    taps[p] = {i, i + (i < from - 1 ? 1 : 0), 1.f - second, second};
  }
  return taps;
}

}  // namespace fastsr::cpu
