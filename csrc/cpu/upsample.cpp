// fastsr::upsample and its backward on the CPU: pixel_shuffle(conv3x3(x)) plus a residual from the LR image.
//
// The convolution is that of conv3x3.h, with its output channels in the order (row in the block, column, channel), so
// that the shuffle copies runs. The backward unshuffles the gradient and takes the convolution's own.
#include "bilinear.h"
#include "conv3x3.h"
#include "rows.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "upsample";
constexpr int64_t kStrip = 48;
enum class Residual : int64_t { kNone = 0, kAnchor = 1, kBilinear = 2 };  // as in fastsr/ops/_checks.py

struct Shape {
  int64_t n, c, h, w, scale, k;  // k image channels
  Residual residual;
  int64_t outputs() const { return k * scale * scale; }
  int64_t columns() const { return padded_channels(outputs()); }
  // The weight's index of packed output channel m = (i * scale + j) * k + channel.
  int64_t natural(int64_t m) const { return m % k * scale * scale + m / k; }
};

Shape check(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& lr, int64_t scale,
            int64_t residual) {
  check_feature_map(kOp, x, "x");
  STD_TORCH_CHECK(weight.dim() == 4, kOp, ": weight has ", weight.dim(), " dimensions; pass 4");
  STD_TORCH_CHECK(scale >= 1 && weight.size(0) > 0 && weight.size(0) % (scale * scale) == 0, kOp, ": scale is ", scale,
                  " and weight gives ", weight.size(0), " channels; pass a multiple of scale squared");
  STD_TORCH_CHECK(residual >= 0 && residual <= 2, kOp, ": residual is ", residual, "; pass 0, 1 or 2");
  const Shape s{x.size(0),
                x.size(1),
                x.size(2),
                x.size(3),
                scale,
                weight.size(0) / (scale * scale),
                static_cast<Residual>(residual)};
  check_weight(kOp, weight, {s.outputs(), s.c, 3, 3}, "weight");
  check_vector(kOp, bias, s.outputs(), "bias");
  if (s.residual == Residual::kNone) return s;
  STD_TORCH_CHECK(lr.has_value(), kOp, ": lr is missing; pass the low-resolution image");
  check_feature_map(kOp, *lr, "lr");
  check_same_dtype(kOp, x, *lr, "lr");
  STD_TORCH_CHECK(lr->size(0) == s.n && lr->size(1) == s.k && lr->size(2) == s.h && lr->size(3) == s.w, kOp,
                  ": lr has not the shape [N, K, H, W]");
  return s;
}

std::vector<BilinearTap> taps(int64_t size, int64_t scale) {
  return bilinear_taps(size, size * scale, static_cast<float>(1.0 / static_cast<double>(scale)));
}

// `weight` and `bias` in float32 with output channels in packed order.
struct PackedParameters {
  Tensor weight, bias;
  PackedParameters(const Shape& s, const Tensor& natural_weight, const Tensor& natural_bias)
      : weight(torch::stable::new_empty(natural_weight, natural_weight.sizes(), ScalarType::Float)),
        bias(torch::stable::new_empty(natural_bias, natural_bias.sizes(), ScalarType::Float)) {
    const Tensor w = dense(natural_weight), b = dense(natural_bias);
    float *to_weight = static_cast<float*>(weight.mutable_data_ptr()),
          *to_bias = static_cast<float*>(bias.mutable_data_ptr());
    for (int64_t m = 0; m < s.outputs(); ++m) {
      std::copy_n(float_data(w) + s.natural(m) * s.c * 9, s.c * 9, to_weight + m * s.c * 9);
      to_bias[m] = float_data(b)[s.natural(m)];
    }
  }
};

// The LR image as dense floats [N, H, W, K].
class Image {
 public:
  Image(const Shape& s, const std::optional<Tensor>& lr)
      : s_(s),
        tensor_(s.residual == Residual::kNone
                    ? std::nullopt
                    : std::optional(torch::stable::contiguous(torch::stable::to(*lr, ScalarType::Float),
                                                              MemoryFormat::ChannelsLast))),
        rows_(taps(s.h, s.scale)),
        columns_(taps(s.w, s.scale)) {}

  // Floats that `residual` needs for a strip: the result [pixels * scale][K] and a blended row behind it.
  int64_t scratch(int64_t pixels) const { return (Sections::padded(pixels * s_.scale) + pixels + 2) * s_.k; }
  // The residual of output row `row`, pixels [w, w + pixels) of the LR image; null if there is none. The rows of a
  // block have the same anchor, so only its first row computes it.
  const float* residual(int64_t n, int64_t row, int64_t w, int64_t pixels, float* y) const {
    if (s_.residual == Residual::kNone) return nullptr;
    if (s_.residual == Residual::kBilinear) {
      const BilinearTap& tap = rows_[row];
      kernels().upsample.enlarge(at(n, tap.i), at(n, tap.j), tap, columns_.data() + w * s_.scale,
                                 y + Sections::padded(pixels * s_.scale) * s_.k, y, pixels * s_.scale, s_.k);
    } else if (row % s_.scale == 0) {
      kernels().upsample.repeat(at(n, row / s_.scale) + w * s_.k, y, pixels, s_.scale, s_.k);
    }
    return y;
  }

 private:
  const float* at(int64_t n, int64_t h) const {
    return static_cast<const float*>(tensor_->const_data_ptr()) + (n * s_.h + h) * s_.w * s_.k;
  }
  Shape s_;
  std::optional<Tensor> tensor_;
  std::vector<BilinearTap> rows_, columns_;
};

// The convolution's result, [n, h, w][columns] floats; of the channels beyond `outputs` nothing is known.
Buffer<float> convolve(const Shape& s, const Tensor& x, const PackedParameters& parameters) {
  const int64_t columns = s.columns();
  Buffer<float> product = make_buffer<float>(s.n * s.h * s.w * columns);
  dispatch_storage(kOp, x, [&](auto type) {
    using T = decltype(type);
    const Tensor from = side_by_side(x);
    Conv3x3Args<T> args{s.n, s.c, s.h, s.w, s.outputs()};
    args.x = read_map<T>(from);
    args.pre = {product.get(), s.h * s.w * columns, s.w * columns, columns};
    run_conv3x3(pack_conv3x3(parameters.weight, &parameters.bias, s.h, s.w, false), args);
  });
  return product;
}

Tensor upsample(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& lr,
                int64_t scale, int64_t residual) {
  const Shape s = check(x, weight, bias, lr, scale, residual);
  MapWriter y(kOp, x, {s.n, s.k, s.h * scale, s.w * scale});
  if (y.nhwc().numel() == 0) return y.finish();
  const Image image(s, lr);
  const Buffer<float> product = convolve(s, x, PackedParameters(s, weight, bias));
  const int64_t columns = s.columns();
  struct Scratch;
  parallel_rows(s.n * s.h, s.w, [&](int64_t first, int64_t last) {
    const int64_t strip = kStrip * scale;
    Sections sections(thread_scratch<float, Scratch>(Sections::padded(image.scratch(kStrip)) + y.scratch(strip)));
    float *extra = sections.take(image.scratch(kStrip)), *spare = sections.take(y.scratch(strip));
    for (int64_t at = first; at < last; ++at)
      over_strips(s.w, kStrip, [&](int64_t p, int64_t pixels) {
        const int64_t n = at / s.h, h = at % s.h;
        for (int64_t i = 0; i < scale; ++i) {
          const int64_t row = h * scale + i;
          const float* added = image.residual(n, row, p, pixels, extra);
          int64_t stride;
          float* out = y.target(n, row, p * scale, spare, stride);
          const float* from = product.get() + (at * s.w + p) * columns + i * scale * s.k;
          kernels().upsample.shuffle({from, columns, added, out, stride, pixels, scale, s.k});
          y.write(n, row, p * scale, pixels * scale, out, stride);
        }
      });
  });
  return y.finish();
}

// The gradient of lr: over its block (anchor), or from the rows it was enlarged to (bilinear).
Tensor residual_backward(const Shape& s, const MapReader& grad, const Tensor& lr) {
  MapWriter d_lr(kOp, lr, {s.n, s.k, s.h, s.w});
  const std::vector<BilinearTap> rows = taps(s.h, s.scale), columns = taps(s.w, s.scale);
  const int64_t wide = s.w * s.scale;
  struct Scratch;
  parallel_rows(s.n * s.h, wide * s.scale, [&](int64_t first, int64_t last) {
    Sections sections(
        thread_scratch<float, Scratch>(grad.scratch(wide) + 2 * Sections::padded(wide * s.k) + d_lr.scratch(s.w)));
    float *memory = sections.take(grad.scratch(wide)), *gathered = sections.take(wide * s.k);
    float *small = sections.take(wide * s.k), *spare = sections.take(d_lr.scratch(s.w));
    for (int64_t at = first; at < last; ++at) {
      const int64_t n = at / s.h, h = at % s.h;
      const bool anchor = s.residual == Residual::kAnchor;
      std::fill_n(gathered, wide * s.k, 0.f);
      std::fill_n(small, s.w * s.k, 0.f);
      const int64_t from = anchor ? h * s.scale : std::max<int64_t>(0, (h - 1) * s.scale);
      const int64_t to = anchor ? (h + 1) * s.scale : std::min(s.h, h + 2) * s.scale;
      for (int64_t row = from; row < to; ++row) {
        const BilinearTap& tap = rows[row];
        const float share = anchor ? 1.f : (tap.i == h ? tap.first : 0.f) + (tap.j == h ? tap.second : 0.f);
        if (share == 0.f) continue;
        const FloatRow g = grad.row(n, row, 0, wide, memory);
        kernels().upsample.add_scaled(share, g.data, g.stride, gathered, wide, s.k);
      }
      if (anchor) {
        for (int64_t p = 0; p < wide; ++p)
          for (int64_t k = 0; k < s.k; ++k) small[p / s.scale * s.k + k] += gathered[p * s.k + k];
      } else {
        kernels().upsample.reduce(gathered, columns.data(), small, wide, s.k);
      }
      int64_t stride;
      float* out = d_lr.target(n, h, 0, spare, stride);
      for (int64_t p = 0; p < s.w; ++p) std::copy_n(small + p * s.k, s.k, out + p * stride);
      d_lr.write(n, h, 0, s.w, out, stride);
    }
  });
  return d_lr.finish();
}

// The gradient of the convolution's result, [n, h, w][columns].
Buffer<float> unshuffle(const Shape& s, const MapReader& grad) {
  const int64_t columns = s.columns(), wide = s.w * s.scale;
  Buffer<float> g = make_buffer<float>(s.n * s.h * s.w * columns);
  struct Scratch;
  parallel_rows(s.n * s.h, wide * s.scale, [&](int64_t first, int64_t last) {
    float* memory = thread_scratch<float, Scratch>(grad.scratch(wide));
    for (int64_t at = first; at < last; ++at) {
      float* to = g.get() + at * s.w * columns;
      std::fill_n(to, s.w * columns, 0.f);
      for (int64_t i = 0; i < s.scale; ++i) {
        const FloatRow row = grad.row(at / s.h, at % s.h * s.scale + i, 0, wide, memory);
        kernels().upsample.unshuffle(row.data, row.stride, to + i * s.scale * s.k, columns, s.w, s.scale, s.k);
      }
    }
  });
  return g;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                             const Tensor& bias, const std::optional<Tensor>& lr,
                                                             int64_t scale, int64_t residual, bool lr_gradient) {
  const Shape s = check(x, weight, bias, lr, scale, residual);
  check_feature_map(kOp, grad, "grad");
  check_same_dtype(kOp, x, grad, "grad");
  STD_TORCH_CHECK(
      grad.size(0) == s.n && grad.size(1) == s.k && grad.size(2) == s.h * scale && grad.size(3) == s.w * scale, kOp,
      ": grad has not the shape of the output");
  const MapReader grad_map(kOp, grad);
  const bool wanted = lr_gradient && s.residual != Residual::kNone;
  const Tensor d_lr = wanted ? residual_backward(s, grad_map, *lr) : torch::stable::new_empty(x, {0});
  if (x.numel() == 0)
    return {torch::stable::new_zeros(x, x.sizes()), torch::stable::new_zeros(weight, weight.sizes()),
            torch::stable::new_zeros(bias, bias.sizes()), d_lr};
  const Buffer<float> g = unshuffle(s, grad_map);
  const PackedParameters parameters(s, weight, bias);
  const Tensor dx = conv3x3_input_gradient(x, parameters.weight, g.get());
  const auto [d_weight, d_bias] = conv3x3_weight_gradient(x, parameters.weight, parameters.bias, g.get());
  std::vector<int64_t> packed(s.outputs());
  for (int64_t m = 0; m < s.outputs(); ++m) packed[s.natural(m)] = m;
  const float *dw = float_data(d_weight), *db = float_data(d_bias);
  const int64_t filter = s.c * 9;
  return {dx, gradient_of(weight, [&](int64_t i) { return dw[packed[i / filter] * filter + i % filter]; }),
          gradient_of(bias, [&](int64_t i) { return db[packed[i]]; }), d_lr};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("upsample", TORCH_BOX(&fastsr::cpu::upsample));
  m.impl("upsample_backward", TORCH_BOX(&fastsr::cpu::upsample_backward));
}
