// The one-dimensional Winograd transforms F(3, 3): 3 outputs of a 3-tap filter from 5 products,
//
//   y = A^T [(G g) * (B^T d)]   over the points +-a, +-b and infinity.
//
// With rounding errors of the products proportional to their size, output i carries sqrt(sum_p (A_pi |B_p| |G_p|)^2)
// times the error of a direct sum, and twice so in two dimensions. The points minimise the largest of these factors:
// 3.1^2 for F(3x3, 3x3). The best points of F(4x4) (0, +-0.7, +-1.45, infinity) have 4.6^2, the textbook's 9.7^2. Its
// 10 % fewer operations a pixel save 7 % of the time, but its error can exceed twice that of PyTorch's convolution
// (measured at 58 channels with sums restarted every 16 terms: 0.6 to 1.06 of what is allowed, against 0.35 to 0.5).
// a and b have so few bits that all coefficients of B are exact.
#pragma once

#include "math.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

struct Winograd {
  static constexpr int kOutputs = 3, kPoints = 5;
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
  // The transpose of `output`.
  static FASTSR_INLINE void gradient(const vf (&g)[3], vf (&o)[5]) {
    const vf ea = g[0] + A2 * g[2], eb = g[0] + B2 * g[2];
    o[0] = ea + A * g[1];
    o[1] = ea - A * g[1];
    o[2] = eb + B * g[1];
    o[3] = eb - B * g[1];
    o[4] = g[2];
  }
};

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
