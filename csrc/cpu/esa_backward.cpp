// The backward of fastsr::esa on the CPU. Nothing but x is kept from the forward: the side path is run again.
//
//   s = sigmoid(conv4(z)),  dz = W4^T (grad * x * s (1 - s)),  dx = grad * s + W1^T d_reduced
//   d_reduced = Wf^T dz + what comes back through the side path from the adjoint of the enlargement of dz
//
// One pass over the pixels gives dz and the first part of dx, a second one the rest. In between the side path is
// walked backwards on its small maps. Every sum over pixels is taken in fixed ranges, and every gradient that several
// pixels add to is gathered row by row in a fixed order.
#include "esa_path.h"

namespace fastsr::cpu::esa {
namespace {

using Gradients = std::vector<Tensor>;  // in the order of the operator's weights

// Writes a gradient from sums [columns of the input][f or more of the output], weight [K, C, 1, 1].
Tensor pointwise_gradient(const Tensor& weight, const double* sums, int64_t columns) {
  const int64_t c = weight.size(1);
  return gradient_of(weight, [&](int64_t i) { return sums[i % c * columns + i / c]; });
}

Tensor bias_gradient(const Tensor& bias, const double* sums) {
  return gradient_of(bias, [&](int64_t i) { return sums[i]; });
}

// Calls body(image, row, sums) for every row of `map` and returns the sums of all, `size` of them.
template <class Body>
std::vector<double> sum_over_rows(const PaddedMap& map, int64_t size, Body&& body) {
  RangeSums sums(map.n * map.h, size);
  sums.run([&](int64_t first, int64_t last, float* total) {
    for (int64_t i = first; i < last; ++i) body(i / map.h, i % map.h, total);
  });
  return sums.total();
}

// The weights' gradients of one convolution, and d_in, given the gradient of its result before the activation.
void conv_backward(const Conv3x3& conv, const PaddedMap& in, const PaddedMap& u, const PaddedMap& grad,
                   const std::vector<Tensor>& weights, const PaddedMap& d_in, Gradients& gradients) {
  const int64_t f = in.f, stride = conv.stride, pad = conv.padding;
  const PaddedMap& from = conv.separable ? u : in;
  const int64_t taps = conv.separable ? 9 * f : 9 * f * f;
  const std::vector<double> sums = sum_over_rows(grad, taps + f, [&](int64_t n, int64_t r, float* total) {
    const float* rows[3];
    for (int64_t i = 0; i < 3; ++i) rows[i] = from.row(n, r * stride - pad + i) - pad * f;
    const float* g = grad.row(n, r);
    if (conv.separable) {
      kernels().esa.depthwise_outer(rows, g, total, grad.w, stride, f);
    } else {
      const RowSegment segments[3] = {
          {rows[0], stride * f, 3 * f}, {rows[1], stride * f, 3 * f}, {rows[2], stride * f, 3 * f}};
      kernels().rows.outer({segments, 3, grad.w, g, f, f, total});
    }
    kernels().rows.sum(g, f, grad.w, f, total + taps);
  });

  // The transposed convolution, row by row of the input. A row is padded so that every tap has a place.
  struct Scratch;
  const auto transposed_row = [&](int64_t n, int64_t r, float* row, float* products) {
    std::fill_n(row, (in.w + 4) * f, 0.f);
    for (int64_t i = 0; i < 3; ++i) {
      const int64_t at = r + pad - i;
      if (at < 0 || at % stride || at / stride >= grad.h) continue;
      const float* g = grad.row(n, at / stride);
      if (conv.separable) {
        kernels().esa.depthwise_transposed(g, conv.taps + i * 3 * f, row, grad.w, stride, f);
      } else {
        const RowSegment segment{g, f, f};
        kernels().rows.gemm(
            {&segment, 1, grad.w, conv.transposed + i * 3 * f * f, 3 * f, nullptr, 0, products, 3 * f, 3 * f});
        kernels().esa.overlap_add(products, row, grad.w, stride, f);
      }
    }
    return row + pad * f;
  };
  const auto scratch = [&] { return thread_scratch<float, Scratch>((in.w + 4) * f + grad.w * 3 * f); };
  if (!conv.separable) {
    over_rows(in, [&](int64_t n, int64_t r) {
      float* memory = scratch();
      std::copy_n(transposed_row(n, r, memory, memory + (in.w + 4) * f), in.w * f, d_in.row(n, r));
    });
    gradients[conv.first] = gradient_of(weights[conv.first], [&](int64_t i) {
      const int64_t inner = weights[conv.first].size(0), tap = i % 9, c = i / 9 % inner, k = i / 9 / inner;
      return sums[(tap * f + c) * f + k];
    });
    gradients[conv.first + 1] = bias_gradient(weights[conv.first + 1], sums.data() + taps);
    return;
  }
  const std::vector<double> pointwise = sum_over_rows(in, f * f, [&](int64_t n, int64_t r, float* total) {
    float* memory = scratch();
    const float* du = transposed_row(n, r, memory, nullptr);
    const RowSegment input{in.row(n, r), f, f}, gradient{du, f, f};
    kernels().rows.outer({&input, 1, in.w, du, f, f, total});
    kernels().rows.gemm({&gradient, 1, in.w, conv.transposed, f, nullptr, 0, d_in.row(n, r), f, f});
  });
  gradients[conv.first] = pointwise_gradient(weights[conv.first], pointwise.data(), f);
  gradients[conv.first + 1] = gradient_of(weights[conv.first + 1], [&](int64_t i) { return sums[i % 9 * f + i / 9]; });
  gradients[conv.first + 2] = bias_gradient(weights[conv.first + 2], sums.data() + taps);
}

// Sends the gradient of each window to its maximum, windows in order.
void pool_backward(const PaddedMap& grad, const std::vector<uint8_t>& index, const PaddedMap& d_in) {
  parallel_bands(grad.n, [&](int64_t n) {
    for (int64_t r = 0; r < grad.h; ++r)
      for (int64_t p = 0; p < grad.w; ++p) {
        const float* g = grad.row(n, r) + p * grad.f;
        const uint8_t* at = index.data() + ((n * grad.h + r) * grad.w + p) * grad.f;
        for (int64_t c = 0; c < grad.f; ++c)
          d_in.row(n, r * kPoolStep + at[c] / kPool)[(p * kPoolStep + at[c] % kPool) * grad.f + c] += g[c];
      }
  });
}

// The adjoint of the enlargement: each low row gathers the rows it went to.
void reduce(const PaddedMap& dz, const Enlargement& to, const PaddedMap& d_low) {
  struct Scratch;
  over_rows(d_low, [&](int64_t n, int64_t r) {
    float* gathered = thread_scratch<float, Scratch>(dz.w * dz.f);
    std::fill_n(gathered, dz.w * dz.f, 0.f);
    const auto first = std::lower_bound(to.rows.begin(), to.rows.end(), r,
                                        [](const BilinearTap& tap, int64_t row) { return tap.j < row; });
    for (auto tap = first; tap != to.rows.end() && tap->i <= r; ++tap) {
      const float share = (tap->i == r ? tap->first : 0.f) + (tap->j == r ? tap->second : 0.f);
      kernels().esa.add_scaled(share, dz.row(n, tap - to.rows.begin()), gathered, dz.w * dz.f);
    }
    std::fill_n(d_low.row(n, r), d_low.w * d_low.f, 0.f);
    kernels().esa.add_reduced(gathered, to.columns.data(), d_low.row(n, r), dz.w, dz.f);
  });
}

// d_reduced as far as it comes from the enlarged map.
void path_backward(const Weights& w, Path& path, const std::vector<Tensor>& weights, PaddedMap d_low,
                   const PaddedMap& d_reduced, Gradients& gradients) {
  PaddedMap grad = std::move(d_low);
  for (int64_t i = static_cast<int64_t>(w.convs.size()) - 1; i > 0; --i) {
    const Conv3x3& conv = w.convs[i];
    const PaddedMap& pre = path.out[i];
    if (conv.activation != 0)
      over_rows(grad, [&](int64_t n, int64_t r) {
        kernels().rows.activation_grad(conv.activation, grad.row(n, r), grad.f, pre.row(n, r), grad.row(n, r), grad.w,
                                       grad.f);
      });
    PaddedMap d_in(grad.n, path.in[i].h, path.in[i].w, grad.f);
    conv_backward(conv, path.in[i], path.u[i], grad, weights, d_in, gradients);
    grad = std::move(d_in);
  }
  PaddedMap d_out(grad.n, path.out[0].h, path.out[0].w, grad.f);
  d_out.clear();
  pool_backward(grad, path.index, d_out);
  conv_backward(w.convs[0], path.in[0], path.u[0], d_out, weights, d_reduced, gradients);
}

std::tuple<Tensor, std::vector<Tensor>> backward(const Tensor& grad, const Tensor& x,
                                                 const std::vector<Tensor>& weights, int64_t conv2_padding) {
  check_size(x, conv2_padding);
  const Weights w = pack(x.size(1), weights, conv2_padding, true);
  check_same_shape(kOp, x, grad, "grad");
  check_same_dtype(kOp, x, grad, "grad");
  const int64_t n = x.size(0), h = x.size(2), width = x.size(3), f = w.f, columns = padded_channels(w.c);
  MapWriter dx(kOp, x, {n, w.c, h, width});
  Gradients gradients;
  if (x.numel() == 0) {
    for (const Tensor& p : weights) gradients.push_back(gradient_of(p, [](int64_t) { return 0.f; }));
    return {dx.finish(), gradients};
  }
  gradients = weights;  // every entry is replaced below
  const MapReader x_map(kOp, x), grad_map(kOp, grad);
  Path path = run_path(x_map, x, w, true);
  const Enlargement to = enlargement(path.low(), h, width);

  PaddedMap dz(n, h, width, f);
  struct Scratch;
  const int64_t strip = kStrip * columns, scratch = path.low().row_stride() + 2 * kStrip * f + 4 * strip + 64;
  const int64_t conv4_size = f * columns, conv_f_at = conv4_size + columns;
  const std::vector<double> sums = sum_over_rows(dz, conv_f_at + f * f + f, [&](int64_t i, int64_t r, float* total) {
    Sections sections(thread_scratch<float, Scratch>(scratch));
    float *blended = sections.take(path.low().row_stride()), *z = sections.take(kStrip * f);
    float *gate = sections.take(strip), *x_strip = sections.take(strip), *g_strip = sections.take(strip);
    float* spare = sections.take(strip);
    blend_rows(path, to, i, r, blended);
    over_strips(width, kStrip, [&](int64_t at, int64_t pixels) {
      gate_input(w, path, to, blended, i, r, at, pixels, z);
      const RowSegment z_segment{z, f, f};
      kernels().rows.gemm({&z_segment, 1, pixels, w.conv4, columns, w.conv4_bias, 0, gate, columns, columns});
      const FloatRow row = x_map.row(i, r, at, pixels, x_strip), g = grad_map.row(i, r, at, pixels, g_strip);
      int64_t stride;
      float* out = dx.target(i, r, at, spare, stride);
      kernels().esa.gate_backward({row.data, row.stride, gate, columns, out, stride, pixels, w.c}, g.data, g.stride);
      dx.write(i, r, at, pixels, out, stride);
      kernels().rows.outer({&z_segment, 1, pixels, gate, columns, columns, total});
      kernels().rows.sum(gate, columns, pixels, columns, total + conv4_size);
      float* dz_strip = dz.row(i, r) + at * f;
      const RowSegment gate_segment{gate, columns, w.c}, reduced{path.reduced().row(i, r) + at * f, f, f};
      kernels().rows.gemm({&gate_segment, 1, pixels, w.conv4_transposed, f, nullptr, 0, dz_strip, f, f});
      kernels().rows.outer({&reduced, 1, pixels, dz_strip, f, f, total + conv_f_at});
      kernels().rows.sum(dz_strip, f, pixels, f, total + conv_f_at + f * f);
    });
  });
  gradients[w.conv4_index] = pointwise_gradient(weights[w.conv4_index], sums.data(), columns);
  gradients[w.conv4_index + 1] = bias_gradient(weights[w.conv4_index + 1], sums.data() + conv4_size);
  gradients[w.conv_f_index] = pointwise_gradient(weights[w.conv_f_index], sums.data() + conv_f_at, f);
  gradients[w.conv_f_index + 1] = bias_gradient(weights[w.conv_f_index + 1], sums.data() + conv_f_at + f * f);

  PaddedMap d_low(n, path.low().h, path.low().w, f), d_reduced(n, h, width, f);
  reduce(dz, to, d_low);
  path_backward(w, path, weights, std::move(d_low), d_reduced, gradients);

  const MapReader dx_map(kOp, dx.nhwc());
  const std::vector<double> conv1 = sum_over_rows(dz, (w.c + 1) * f, [&](int64_t i, int64_t r, float* total) {
    Sections sections(thread_scratch<float, Scratch>(scratch));
    float *through_f = sections.take(kStrip * f), *product = sections.take(strip), *x_strip = sections.take(strip);
    float* spare = sections.take(strip);
    over_strips(width, kStrip, [&](int64_t at, int64_t pixels) {
      const RowSegment z_segment{dz.row(i, r) + at * f, f, f};
      kernels().rows.gemm({&z_segment, 1, pixels, w.conv_f_transposed, f, nullptr, 0, through_f, f, f});
      float* d = d_reduced.row(i, r) + at * f;
      kernels().esa.add_scaled(1.f, through_f, d, pixels * f);
      const FloatRow row = x_map.row(i, r, at, pixels, x_strip);
      const RowSegment x_segment{row.data, row.stride, w.c}, d_segment{d, f, f};
      kernels().rows.outer({&x_segment, 1, pixels, d, f, f, total});
      kernels().rows.sum(d, f, pixels, f, total + w.c * f);
      kernels().rows.gemm({&d_segment, 1, pixels, w.conv1_transposed, columns, nullptr, 0, product, columns, columns});
      int64_t stride;
      float* out = dx.target(i, r, at, spare, stride);
      dx_map.row(i, r, at, pixels, out);
      kernels().esa.add_rows(product, columns, out, stride, pixels, w.c);
      dx.write(i, r, at, pixels, out, stride);
    });
  });
  gradients[0] = pointwise_gradient(weights[0], conv1.data(), f);
  gradients[1] = bias_gradient(weights[1], conv1.data() + w.c * f);
  return {dx.finish(), gradients};
}

}  // namespace
}  // namespace fastsr::cpu::esa

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) { m.impl("esa_backward", TORCH_BOX(&fastsr::cpu::esa::backward)); }
