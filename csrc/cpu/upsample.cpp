// fastsr::upsample and its backward on the CPU: pixel_shuffle(conv3x3(x)) plus a residual from the LR image.
//
// The convolution's output channels are packed in the order (row in the block, column, channel), so that the shuffle
// copies runs. Rows of x are converted into a window of three zero-padded rows, over which the convolution is one
// matrix product with a segment per kernel row. The backward does the same with the unshuffled gradient g:
//
//   dx[h][w] = sum over i, j of W[2-i][2-j]^T g[h-1+i][w-1+j],  dW[i][j] = sum over pixels of g[h][w] x[h-1+i][w-1+j]^T
#include "bilinear.h"
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

// The last three rows that were asked for, each [W + 2][stride] with a zero pixel at both ends. Rows outside the image
// are zero.
template <class Fill>
class RowWindow {
 public:
  RowWindow(const Shape& s, int64_t stride, float* memory, Fill fill)
      : s_(s), stride_(stride), size_(scratch(s, stride) / 3), memory_(memory), fill_(fill) {}
  static int64_t scratch(const Shape& s, int64_t stride) { return 3 * Sections::padded((s.w + 2) * stride); }
  // Pixel -1 of row r in [-1, H] of image n.
  const float* row(int64_t n, int64_t r) {
    const int64_t slot = (r + 1) % 3, id = n * (s_.h + 2) + r + 1;
    float* memory = memory_ + slot * size_;
    if (held_[slot] != id) {
      held_[slot] = id;
      if (r < 0 || r >= s_.h) {
        std::fill_n(memory, size_, 0.f);
      } else {
        std::fill_n(memory, stride_, 0.f);
        std::fill_n(memory + (s_.w + 1) * stride_, stride_, 0.f);
        fill_(n, r, memory + stride_);
      }
    }
    return memory;
  }
  // The three rows around h as segments from pixel `first` on, three pixels each.
  std::array<RowSegment, 3> segments(int64_t n, int64_t h, int64_t first) {
    std::array<RowSegment, 3> out;
    for (int64_t i = 0; i < 3; ++i) out[i] = {row(n, h - 1 + i) + first * stride_, stride_, 3 * stride_};
    return out;
  }

 private:
  Shape s_;
  int64_t stride_, size_;
  float* memory_;
  Fill fill_;
  int64_t held_[3] = {-1, -1, -1};
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

Tensor upsample(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& lr,
                int64_t scale, int64_t residual) {
  const Shape s = check(x, weight, bias, lr, scale, residual);
  MapWriter y(kOp, x, {s.n, s.k, s.h * scale, s.w * scale});
  if (y.nhwc().numel() == 0) return y.finish();
  const MapReader x_map(kOp, x);
  const Image image(s, lr);
  const std::vector<float> natural = to_floats(weight), natural_bias = to_floats(bias);
  const int64_t columns = s.columns();
  const Buffer<float> w = pack_matrix(9 * s.c, s.outputs(), [&](int64_t r, int64_t m) {
    return natural[(s.natural(m) * s.c + r % s.c) * 9 + r / s.c];
  });
  const Buffer<float> b = pack_matrix(1, s.outputs(), [&](int64_t, int64_t m) { return natural_bias[s.natural(m)]; });
  const auto fill = [&](int64_t n, int64_t r, float* to) { x_map.copy(n, r, 0, s.w, to, s.c); };
  using Window = RowWindow<decltype(fill)>;
  struct Scratch;
  parallel_rows(s.n * s.h, s.w, [&](int64_t first, int64_t last) {
    const int64_t strip = kStrip * scale;
    Sections sections(thread_scratch<float, Scratch>(Window::scratch(s, s.c) + kStrip * columns +
                                                     Sections::padded(image.scratch(kStrip)) + y.scratch(strip)));
    Window window(s, s.c, sections.take(Window::scratch(s, s.c)), fill);
    float *product = sections.take(kStrip * columns), *extra = sections.take(image.scratch(kStrip));
    float* spare = sections.take(y.scratch(strip));
    for (int64_t at = first; at < last; ++at)
      over_strips(s.w, kStrip, [&](int64_t p, int64_t pixels) {
        const int64_t n = at / s.h, h = at % s.h;
        const std::array<RowSegment, 3> segments = window.segments(n, h, p);
        kernels().rows.gemm({segments.data(), 3, pixels, w.get(), columns, b.get(), 0, product, columns, columns});
        for (int64_t i = 0; i < scale; ++i) {
          const int64_t row = h * scale + i;
          const float* added = image.residual(n, row, p, pixels, extra);
          int64_t stride;
          float* out = y.target(n, row, p * scale, spare, stride);
          kernels().upsample.shuffle({product + i * scale * s.k, columns, added, out, stride, pixels, scale, s.k});
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

std::tuple<Tensor, Tensor, Tensor, Tensor> upsample_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                             const Tensor& bias, const std::optional<Tensor>& lr,
                                                             int64_t scale, int64_t residual, bool lr_gradient) {
  const Shape s = check(x, weight, bias, lr, scale, residual);
  check_feature_map(kOp, grad, "grad");
  check_same_dtype(kOp, x, grad, "grad");
  STD_TORCH_CHECK(
      grad.size(0) == s.n && grad.size(1) == s.k && grad.size(2) == s.h * scale && grad.size(3) == s.w * scale, kOp,
      ": grad has not the shape of the output");
  const MapReader x_map(kOp, x), grad_map(kOp, grad);
  MapWriter dx(kOp, x, {s.n, s.c, s.h, s.w});
  const std::vector<float> natural = to_floats(weight);
  const int64_t columns = s.columns(), dx_columns = padded_channels(s.c);
  const Buffer<float> flipped = pack_matrix(9 * columns, s.c, [&](int64_t r, int64_t c) {
    const int64_t m = r % columns;
    return m < s.outputs() ? natural[(s.natural(m) * s.c + c) * 9 + 8 - r / columns] : 0.f;
  });
  const auto fill_x = [&](int64_t n, int64_t r, float* to) { x_map.copy(n, r, 0, s.w, to, s.c); };
  struct GradScratch;
  const auto fill_grad = [&](int64_t n, int64_t r, float* to) {
    float* memory = thread_scratch<float, GradScratch>(grad_map.scratch(s.w * scale));
    std::fill_n(to, s.w * columns, 0.f);
    for (int64_t i = 0; i < scale; ++i) {
      const FloatRow g = grad_map.row(n, r * scale + i, 0, s.w * scale, memory);
      kernels().upsample.unshuffle(g.data, g.stride, to + i * scale * s.k, columns, s.w, scale, s.k);
    }
  };
  using XWindow = RowWindow<decltype(fill_x)>;
  using GradWindow = RowWindow<decltype(fill_grad)>;
  struct Scratch;
  RangeSums sums(x.numel() == 0 ? 0 : s.n * s.h, (9 * s.c + 1) * columns);
  sums.run([&](int64_t first, int64_t last, float* total) {
    const int64_t x_size = XWindow::scratch(s, s.c), grad_size = GradWindow::scratch(s, columns);
    Sections sections(thread_scratch<float, Scratch>(x_size + grad_size + dx.scratch(kStrip)));
    XWindow x_rows(s, s.c, sections.take(x_size), fill_x);
    GradWindow g_rows(s, columns, sections.take(grad_size), fill_grad);
    float* spare = sections.take(dx.scratch(kStrip));
    for (int64_t at = first; at < last; ++at) {
      const int64_t n = at / s.h, h = at % s.h;
      over_strips(s.w, kStrip, [&](int64_t p, int64_t pixels) {
        const std::array<RowSegment, 3> around = g_rows.segments(n, h, p);
        int64_t stride;
        float* out = dx.target(n, h, p, spare, stride);
        kernels().rows.gemm({around.data(), 3, pixels, flipped.get(), dx_columns, nullptr, 0, out, stride, s.c});
        dx.write(n, h, p, pixels, out, stride);
        const std::array<RowSegment, 3> inputs = x_rows.segments(n, h, p);
        const float* g = g_rows.row(n, h) + (p + 1) * columns;
        kernels().rows.outer({inputs.data(), 3, pixels, g, columns, columns, total});
        kernels().rows.sum(g, columns, pixels, columns, total + 9 * s.c * columns);
      });
    }
  });
  const std::vector<double> total = sums.total();
  std::vector<int64_t> packed(s.outputs());
  for (int64_t m = 0; m < s.outputs(); ++m) packed[s.natural(m)] = m;
  const bool wanted = lr_gradient && s.residual != Residual::kNone;
  return {dx.finish(),
          parameter_gradient(weight,
                             [&](int64_t i) {
                               const int64_t tap = i % 9, c = i / 9 % s.c, m = packed[i / 9 / s.c];
                               return total[(tap * s.c + c) * columns + m];
                             }),
          parameter_gradient(bias, [&](int64_t i) { return total[9 * s.c * columns + packed[i]]; }),
          wanted ? residual_backward(s, grad_map, *lr) : torch::stable::new_empty(x, {0})};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("upsample", TORCH_BOX(&fastsr::cpu::upsample));
  m.impl("upsample_backward", TORCH_BOX(&fastsr::cpu::upsample_backward));
}
