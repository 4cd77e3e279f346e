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
inline bool is_nhwc(const Tensor& x) { return x.numel() == 0 || dense_in(x, {1, 3, 2, 0}); }

// The layout of an operator's output (fastsr/ops/_define.py): channels last for an input whose strides rise from
// channels to columns to rows, dense or a slice, and otherwise NCHW. Dimensions of one element do not count.
inline MemoryFormat output_format(const Tensor& x) {
  if (x.numel() == 0) return MemoryFormat::ChannelsLast;
  int64_t before = 1;
  for (int d : {1, 3, 2}) {
    if (x.size(d) == 1) continue;
    if (x.stride(d) < before) return MemoryFormat::Contiguous;
    before = x.stride(d);
  }
  return MemoryFormat::ChannelsLast;
}

}  // namespace fastsr
