// One-dimensional Winograd transforms F(M, 3): M outputs of a 3-tap filter from M + 2 products.
//
//   y = A^T [(G g) * (B^T d)]
//
// over the points +-a, +-b, infinity (M = 3) and 0, +-a, +-b, infinity (M = 4). With rounding errors of the products
// proportional to their size, output i carries sqrt(sum_p (A_pi |B_p| |G_p|)^2) times the error of a direct sum; the
// points minimise the largest of these factors: 3.1 for M = 3 and 4.6 for M = 4, where the textbook's 0, +-1, +-2 has
// 9.7. They are rounded to so few bits that all coefficients of B are exact.
#pragma once

#include "math.inl"

namespace fastsr::cpu {
namespace {

template <int M>
struct Winograd;

template <>
struct Winograd<3> {
  static constexpr int kPoints = 5;
  static constexpr double a = 13. / 32, b = 5. / 4;
  static constexpr float A = a, B = b, A2 = a * a, B2 = b * b, kSum = a * a + b * b, kProduct = a * a * b * b;
  // 1 / prod_j (p - p_j) for the points a and b; odd in the point.
  static constexpr double na = 1 / (2 * a * (a * a - b * b)), nb = 1 / (2 * b * (b * b - a * a));
  static constexpr double G[5][3] = {{na, na * a, na * a * a},
                                     {-na, na * a, -na * a * a},
                                     {nb, nb * b, nb * b * b},
                                     {-nb, nb * b, -nb * b * b},
                                     {0, 0, 1}};

  static FASTSR_INLINE void input(const vf (&d)[5], vf (&o)[5]) {
    const vf ea = d[2] - B2 * d[0], oa = d[3] - B2 * d[1], eb = d[2] - A2 * d[0], ob = d[3] - A2 * d[1];
    o[0] = oa + A * ea;
    o[1] = oa - A * ea;
    o[2] = ob + B * eb;
    o[3] = ob - B * eb;
    o[4] = (d[4] - kSum * d[2]) + kProduct * d[0];
  }
  static FASTSR_INLINE void output(const vf (&m)[5], vf (&o)[3]) {
    const vf sa = m[0] + m[1], da = m[0] - m[1], sb = m[2] + m[3], db = m[2] - m[3];
    o[0] = sa + sb;
    o[1] = A * da + B * db;
    o[2] = (m[4] + A2 * sa) + B2 * sb;
  }
};

template <>
struct Winograd<4> {
  static constexpr int kPoints = 6;
  static constexpr double a = 11. / 16, b = 93. / 64;
  static constexpr float A = a, B = b, A2 = a * a, B2 = b * b, A3 = a * a * a, B3 = b * b * b, kSum = a * a + b * b,
                         kProduct = a * a * b * b;
  static constexpr double na = 1 / (2 * a * a * (a * a - b * b)), nb = 1 / (2 * b * b * (b * b - a * a));
  static constexpr double G[6][3] = {{1 / (a * a * b * b), 0, 0}, {na, na * a, na * a * a},  {na, -na * a, na * a * a},
                                     {nb, nb * b, nb * b * b},    {nb, -nb * b, nb * b * b}, {0, 0, 1}};

  static FASTSR_INLINE void input(const vf (&d)[6], vf (&o)[6]) {
    const vf ea = d[4] - B2 * d[2], oa = d[3] - B2 * d[1], eb = d[4] - A2 * d[2], ob = d[3] - A2 * d[1];
    o[0] = (d[4] - kSum * d[2]) + kProduct * d[0];
    o[1] = ea + A * oa;
    o[2] = ea - A * oa;
    o[3] = eb + B * ob;
    o[4] = eb - B * ob;
    o[5] = (d[5] - kSum * d[3]) + kProduct * d[1];
  }
  static FASTSR_INLINE void output(const vf (&m)[6], vf (&o)[4]) {
    const vf sa = m[1] + m[2], da = m[1] - m[2], sb = m[3] + m[4], db = m[3] - m[4];
    o[0] = (m[0] + sa) + sb;
    o[1] = A * da + B * db;
    o[2] = A2 * sa + B2 * sb;
    o[3] = (m[5] + A3 * da) + B3 * db;
  }
};

}  // namespace
}  // namespace fastsr::cpu
