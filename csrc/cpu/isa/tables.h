// Piecewise polynomials of GELU and its derivative, shared by all instruction sets.
#pragma once

namespace fastsr::cpu {

// With a = |x| and tail(a) = 1/2 erfc(a / sqrt 2), the normal distribution's upper tail:
//   gelu(x)  = max(x, 0) - h(a),              h(a) = a tail(a)
//   gelu'(x) = x > 0 ? 1 - d(a) : d(a),       d(a) = tail(a) - a density(a)
// Segment k covers a / width in [k - 1/2, k + 1/2]; coefficient[degree][k] is of (a / width - k)^degree. More segments
// need a lower degree; how many there can be depends on the registers that a lookup can choose from.
template <int segments, int degree>
struct PiecewiseTable {
  static constexpr int kSegments = segments, kDegree = degree;
  static constexpr float kWidth = 6.4f / segments;
  static constexpr float kLast = segments - 0.51f;  // a / width beyond this is clamped: h and d have vanished
  alignas(64) float coefficient[degree + 1][segments];

  static const PiecewiseTable gelu, gelu_grad;
};

using LongTable = PiecewiseTable<32, 4>;
using ShortTable = PiecewiseTable<16, 5>;
template <>
const LongTable LongTable::gelu;
template <>
const LongTable LongTable::gelu_grad;
template <>
const ShortTable ShortTable::gelu;
template <>
const ShortTable ShortTable::gelu_grad;

}  // namespace fastsr::cpu
