// What cca_norm and esa_cca share: moments per channel, the attention made of them, and its pass over the map.
#pragma once

#include "rows.h"

namespace fastsr::cpu::cca {

inline constexpr const char* kOp = "cca_norm";

// The operator's parameters; a block without norm has neither of the last two.
struct Parameters {
  const Tensor &du0_weight, &du0_bias, &du2_weight, &du2_bias;
  const std::optional<Tensor>&norm_weight, &norm_bias;
  double eps;
};

struct Shape {
  int64_t n, c, h, w, squeezed;
  // Ranges of rows that each image is divided into, by the size only: sums must not depend on the threads. 64 of all
  // images keep as many threads at work; more would only add to what is merged by one.
  int64_t parts() const { return std::max<int64_t>(1, std::min(h, 64 / std::max<int64_t>(1, n))); }
};

// The parameters, but for the bias of the norm, must fit x.
Shape check(const Tensor& x, const Tensor& du0_weight, const Tensor& du0_bias, const Tensor& du2_weight,
            const Tensor& du2_bias, const std::optional<Tensor>& norm_weight);
// All of them and the shortcut must.
Shape check(const Tensor& x, const Tensor& shortcut, const Parameters& p);

// Calls body(n, part, first row, last row) for every range of every image.
template <class Body>
void over_parts(const Shape& s, Body&& body) {
  const int64_t parts = s.parts();
  parallel_bands(s.n * parts, [&](int64_t i) {
    const int64_t part = i % parts;
    body(i / parts, part, s.h * part / parts, s.h * (part + 1) / parts);
  });
}

// Mean and variance per image and channel, gathered by ranges and merged in a fixed order, in double.
class Moments {
 public:
  explicit Moments(const Shape& s) : s_(s), partial_(s.n * s.parts() * 2 * s.c, 0.0), count_(s.n * s.parts(), 0.0) {}
  // Takes in row h of image n of x, which belongs to the range `part`.
  void add_row(const MapReader& x, int64_t n, int64_t part, int64_t h);
  std::vector<double> merged() const;  // [N][2][C]

 private:
  Shape s_;
  std::vector<double> partial_, count_;
};

class Attention {
 public:
  Attention(const Tensor& du0_weight, const Tensor& du0_bias, const Tensor& du2_weight, const Tensor& du2_bias)
      : w0(to_floats(du0_weight)), b0(to_floats(du0_bias)), w2(to_floats(du2_weight)), b2(to_floats(du2_bias)) {}

  // relu'(du0 contrast + b0) folded into the value: 0 where it does not pass.
  std::vector<double> hidden(const std::vector<double>& contrast) const;
  std::vector<float> scale(const std::vector<double>& hidden) const;
  // Of all images, from merged moments.
  std::vector<std::vector<float>> scales(const Shape& s, const double* moments) const;

  const std::vector<float> w0, b0, w2, b2;
};

// Standard deviation + mean of each channel, from an image's moments.
std::vector<double> contrast_of(const double* moments, int64_t channels);

// y = norm(x * scale) + shortcut, from merged moments of x; y may be written over x.
void apply(const Shape& s, const Parameters& p, const double* moments, const MapReader& x, const MapReader& shortcut,
           const MapWriter& y);

}  // namespace fastsr::cpu::cca
