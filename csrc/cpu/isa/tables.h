// Piecewise polynomials of GELU and its derivative, shared by all instruction sets.
#pragma once

namespace fastsr::cpu {

// With a = |x| and tail(a) = 1/2 erfc(a / sqrt 2), the normal distribution's upper tail:
//   gelu(x)  = max(x, 0) - h(a),              h(a) = a tail(a)
//   gelu'(x) = x > 0 ? 1 - d(a) : d(a),       d(a) = tail(a) - a density(a)
// Segment k covers a / width in [k - 1/2, k + 1/2]; coefficient[degree][k] is of (a / width - k)^degree.
struct PiecewiseTable {
  static constexpr int kDegree = 5, kSegments = 16;
  static constexpr float kWidth = 0.4f;
  static constexpr float kLast = 15.49f;  // a / width beyond this is clamped: h and d have vanished
  alignas(64) float coefficient[kDegree + 1][kSegments];
};

extern const PiecewiseTable gelu_table;
extern const PiecewiseTable gelu_grad_table;

}  // namespace fastsr::cpu
