// The memory format of an operator's output.
#pragma once

#include <array>

#include "checks.h"

namespace fastsr {

using torch::headeronly::MemoryFormat;

inline bool dense_in(const Tensor& x, std::array<int, 4> fastest_first) {
  int64_t expected = 1;
  for (int d : fastest_first) {
    if (x.size(d) == 1) continue;
    if (x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}
inline bool is_nchw(const Tensor& x) { return x.numel() == 0 || dense_in(x, {3, 2, 1, 0}); }
inline bool is_nhwc(const Tensor& x) { return x.numel() == 0 || dense_in(x, {1, 3, 2, 0}); }

// The layout of an operator's output: NCHW for an NCHW input, otherwise channels last (fastsr/ops/_define.py).
inline MemoryFormat output_format(const Tensor& x) {
  return is_nchw(x) && !is_nhwc(x) ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast;
}

}  // namespace fastsr
