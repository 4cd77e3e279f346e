// Fits the tables when the library is loaded: interpolation at the Chebyshev nodes of each segment, in double.
#include "tables.h"

#include <cmath>

namespace fastsr::cpu {
namespace {

constexpr double kPi = 3.14159265358979323846;

double tail(double a) { return 0.5 * std::erfc(a / std::sqrt(2.0)); }
double gelu_tail(double a) { return a * tail(a); }
double gelu_grad_tail(double a) { return tail(a) - a * std::exp(-0.5 * a * a) / std::sqrt(2.0 * kPi); }

// Newton's divided differences, expanded to monomials around the segment's centre.
template <class Table>
Table fit(double (*f)(double)) {
  constexpr int n = Table::kDegree + 1;
  Table table;
  for (int k = 0; k < Table::kSegments; ++k) {
    double node[n], difference[n], c[n] = {};
    for (int i = 0; i < n; ++i) {
      node[i] = 0.5 * std::cos(kPi * (i + 0.5) / n);
      difference[i] = f((k + node[i]) * static_cast<double>(Table::kWidth));
    }
    for (int j = 1; j < n; ++j)
      for (int i = n - 1; i >= j; --i) difference[i] = (difference[i] - difference[i - 1]) / (node[i] - node[i - j]);
    c[0] = difference[n - 1];
    for (int i = n - 2, degree = 1; i >= 0; --i, ++degree) {
      for (int j = degree; j > 0; --j) c[j] = c[j - 1] - node[i] * c[j];
      c[0] = difference[i] - node[i] * c[0];
    }
    for (int j = 0; j < n; ++j) table.coefficient[j][k] = static_cast<float>(c[j]);
  }
  return table;
}

}  // namespace

template <>
const LongTable LongTable::gelu = fit<LongTable>(gelu_tail);
template <>
const LongTable LongTable::gelu_grad = fit<LongTable>(gelu_grad_tail);
template <>
const ShortTable ShortTable::gelu = fit<ShortTable>(gelu_tail);
template <>
const ShortTable ShortTable::gelu_grad = fit<ShortTable>(gelu_grad_tail);

}  // namespace fastsr::cpu
