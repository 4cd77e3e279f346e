// The side path of esa: conv1, the strided convolution, max pool, the small convolutions, and their enlargement.
#include "esa_path.h"

namespace fastsr::cpu::esa {
void over_rows(const PaddedMap& map, const std::function<void(int64_t, int64_t)>& body) {
  parallel_rows(map.n * map.h, map.w, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i / map.h, i % map.h);
  });
}

namespace {

// Element (k, c, i, j) of a weight [K, C, kh, kw], 0 beyond its extents.
class Natural {
 public:
  explicit Natural(const Tensor& w)
      : values_(to_floats(w)), k_(w.size(0)), c_(w.size(1)), kh_(w.size(2)), kw_(w.size(3)) {}
  float operator()(int64_t k, int64_t c, int64_t i = 0, int64_t j = 0) const {
    return k < k_ && c < c_ ? values_[((k * c_ + c) * kh_ + i) * kw_ + j] : 0.f;
  }

 private:
  std::vector<float> values_;
  int64_t k_, c_, kh_, kw_;
};

void pack_conv(Weights& w, Conv3x3& conv, const std::vector<Tensor>& weights, bool backward) {
  const int64_t f = w.f;
  const Natural natural(weights[conv.first]);
  if (conv.separable) {
    const Natural dw(weights[conv.first + 1]);
    conv.weight = w.own(pack_matrix(f, f, [&](int64_t c, int64_t k) { return natural(k, c); }));
    conv.taps = w.own(pack_matrix(9, f, [&](int64_t t, int64_t k) { return dw(k, 0, t / 3, t % 3); }));
    conv.bias = w.own(padded_vector(weights[conv.first + 2]));
    if (backward) conv.transposed = w.own(pack_matrix(f, f, [&](int64_t k, int64_t c) { return natural(k, c); }));
  } else {
    conv.weight =
        w.own(pack_matrix(9 * f, f, [&](int64_t r, int64_t k) { return natural(k, r % f, r / f / 3, r / f % 3); }));
    conv.bias = w.own(padded_vector(weights[conv.first + 1]));
    if (backward)
      conv.transposed =
          w.own(pack_matrix(3 * f, 3 * f, [&](int64_t r, int64_t n) { return natural(r % f, n % f, r / f, n / f); }));
  }
}

void check(int64_t c, const std::vector<Tensor>& weights) {
  STD_TORCH_CHECK(weights.size() == 10 || weights.size() == 18, kOp, ": ", weights.size(),
                  " weights; pass 10 (plain form) or 18 (blueprint form)");
  STD_TORCH_CHECK(weights[0].dim() == 4, kOp, ": conv1_weight has ", weights[0].dim(), " dimensions; pass 4");
  const int64_t f = weights[0].size(0), last = static_cast<int64_t>(weights.size());
  check_weight(kOp, weights[0], {f, c, 1, 1}, "conv1_weight");
  check_vector(kOp, weights[1], f, "conv1_bias");
  if (last == 10) {
    for (int64_t i = 2; i < 6; i += 2) {
      check_weight(kOp, weights[i], {f, f, 3, 3}, "a 3x3 weight");
      check_vector(kOp, weights[i + 1], f, "a 3x3 bias");
    }
  } else {
    for (int64_t i = 2; i < 14; i += 3) {
      check_weight(kOp, weights[i], {f, f, 1, 1}, "a pointwise weight");
      check_weight(kOp, weights[i + 1], {f, 1, 3, 3}, "a depthwise weight");
      check_vector(kOp, weights[i + 2], f, "a depthwise bias");
    }
  }
  check_weight(kOp, weights[last - 4], {f, f, 1, 1}, "conv_f_weight");
  check_vector(kOp, weights[last - 3], f, "conv_f_bias");
  check_weight(kOp, weights[last - 2], {c, f, 1, 1}, "conv4_weight");
  check_vector(kOp, weights[last - 1], c, "conv4_bias");
}

// One row of `out` of a convolution; for a separable one its u must be there.
void convolve_row(const Conv3x3& conv, const PaddedMap& in, const PaddedMap& u, const PaddedMap& out, int64_t n,
                  int64_t r) {
  const PaddedMap& from = conv.separable ? u : in;
  const float* rows[3];
  for (int64_t i = 0; i < 3; ++i) rows[i] = from.row(n, r * conv.stride - conv.padding + i) - conv.padding * from.f;
  if (conv.separable) {
    kernels().esa.depthwise(rows, from.f, conv.taps, conv.bias, out.row(n, r), out.w, conv.stride, out.f);
    return;
  }
  const int64_t f = in.f;
  const RowSegment segments[3] = {
      {rows[0], conv.stride * f, 3 * f}, {rows[1], conv.stride * f, 3 * f}, {rows[2], conv.stride * f, 3 * f}};
  kernels().rows.gemm({segments, 3, out.w, conv.weight, f, conv.bias, 0, out.row(n, r), f, f});
}

void pointwise_row(const Conv3x3& conv, const PaddedMap& in, int64_t n, int64_t r, const PaddedMap& u) {
  const RowSegment segment{in.row(n, r), in.f, in.f};
  kernels().rows.gemm({&segment, 1, in.w, conv.weight, in.f, nullptr, 0, u.row(n, r), in.f, in.f});
}

PaddedMap pool(const PaddedMap& x, std::vector<uint8_t>* index) {
  PaddedMap y(x.n, (x.h - kPool) / kPoolStep + 1, (x.w - kPool) / kPoolStep + 1, x.f);
  if (index) index->resize(y.n * y.h * y.w * y.f);
  over_rows(y, [&](int64_t n, int64_t r) {
    uint8_t* at = index ? index->data() + (n * y.h + r) * y.w * y.f : nullptr;
    kernels().esa.max_pool(x.row(n, r * kPoolStep), x.row_stride(), y.row(n, r), at, y.w, kPool, kPoolStep, x.f);
  });
  return y;
}

}  // namespace

void check_size(const Tensor& x, int64_t conv2_padding) {
  check_feature_map(kOp, x, "x");
  STD_TORCH_CHECK(conv2_padding == 0 || conv2_padding == 1, kOp, ": conv2_padding is ", conv2_padding, "; pass 0 or 1");
  const int64_t least = 2 * kPool + 1 - 2 * conv2_padding;
  STD_TORCH_CHECK(x.size(2) >= least && x.size(3) >= least, kOp, ": x is ", x.size(2), "x", x.size(3),
                  " pixels; pass at least ", least, "x", least);
}

Weights outline(int64_t c, int64_t inner, bool separable, int64_t conv2_padding) {
  Weights w{};
  w.c = c;
  w.inner = inner;
  w.f = padded_channels(inner);
  w.separable = separable;
  const int64_t step = separable ? 3 : 2, count = separable ? 4 : 2;
  w.conv_f_index = 2 + step * count;
  w.conv4_index = w.conv_f_index + 2;
  for (int64_t i = 0; i < count; ++i) {
    const bool hidden = i > 0 && i + 1 < count;  // the blueprint form's inner convolutions have a GELU
    w.convs.push_back({separable, i == 0 ? 2 : 1, i == 0 ? conv2_padding : 1, hidden ? kGelu : 0, 2 + i * step});
  }
  return w;
}

Weights pack(int64_t c, const std::vector<Tensor>& weights, int64_t conv2_padding, bool backward) {
  check(c, weights);
  Weights w = outline(c, weights[0].size(0), weights.size() == 18, conv2_padding);
  const int64_t f = w.f;
  const Natural conv1(weights[0]), conv_f(weights[w.conv_f_index]), conv4(weights[w.conv4_index]);
  w.conv1 = w.own(pack_matrix(w.c, f, [&](int64_t c, int64_t k) { return conv1(k, c); }));
  w.conv1_bias = w.own(padded_vector(weights[1]));
  w.conv_f = w.own(pack_matrix(f, f, [&](int64_t c, int64_t k) { return conv_f(k, c); }));
  w.conv_f_bias = w.own(padded_vector(weights[w.conv_f_index + 1]));
  w.conv4 = w.own(pack_matrix(f, w.c, [&](int64_t c, int64_t k) { return conv4(k, c); }));
  w.conv4_bias = w.own(padded_vector(weights[w.conv4_index + 1]));
  if (backward) {
    w.conv1_transposed = w.own(pack_matrix(f, w.c, [&](int64_t k, int64_t c) { return conv1(k, c); }));
    w.conv_f_transposed = w.own(pack_matrix(f, f, [&](int64_t k, int64_t c) { return conv_f(k, c); }));
    w.conv4_transposed = w.own(pack_matrix(w.c, f, [&](int64_t k, int64_t c) { return conv4(k, c); }));
  }
  for (Conv3x3& conv : w.convs) pack_conv(w, conv, weights, backward);
  return w;
}

void fold(Weights& w) {
  if (!w.separable) return;
  const int64_t f = w.f;
  const float *conv1 = w.conv1, *bias = w.conv1_bias, *pointwise = w.convs[0].weight, *conv_f = w.conv_f;
  const float* conv_f_bias = w.conv_f_bias;
  // Column k of what both make of a row of f channels.
  const auto product = [&](const float* row, int64_t k) {
    const float* column = k < f ? pointwise + k : conv_f + k - f;
    double sum = 0;
    for (int64_t j = 0; j < f; ++j) sum += static_cast<double>(row[j]) * column[j * f];
    return sum;
  };
  w.conv1 = w.own(
      pack_matrix(w.c, 2 * f, [&](int64_t c, int64_t k) { return static_cast<float>(product(conv1 + c * f, k)); }));
  w.conv1_bias = w.own(pack_matrix(1, 2 * f, [&](int64_t, int64_t k) {
    return static_cast<float>(product(bias, k) + (k < f ? 0.0 : conv_f_bias[k - f]));
  }));
  w.folded = true;
}

Path run_path(const MapReader& x, const Tensor& shape, const Weights& w, bool with_index) {
  const int64_t n = shape.size(0), h = shape.size(2), width = shape.size(3), f = w.f;
  Path path;
  path.in.emplace_back(n, h, width, w.reduced_channels());
  for (size_t i = 0; i < w.convs.size(); ++i) {
    const Conv3x3& conv = w.convs[i];
    const PaddedMap& in = path.in[i];
    const bool folded = w.folded && i == 0;  // then u lies in `in`, before conv_f's result
    path.u.emplace_back(w.separable && !folded ? n : 0, in.h, in.w, f);
    const PaddedMap& u = folded ? in : path.u[i];
    if (i == 0) {
      struct Scratch;
      over_rows(in, [&](int64_t image, int64_t r) {
        float* memory = thread_scratch<float, Scratch>(x.scratch(width));
        const FloatRow row = x.row(image, r, 0, width, memory);
        const RowSegment segment{row.data, row.stride, w.c};
        kernels().rows.gemm({&segment, 1, width, w.conv1, in.f, w.conv1_bias, 0, in.row(image, r), in.f, in.f});
        if (conv.separable && !folded) pointwise_row(conv, in, image, r, u);
      });
    } else if (conv.separable) {
      over_rows(in, [&](int64_t image, int64_t r) { pointwise_row(conv, in, image, r, u); });
    }
    path.out.emplace_back(n, conv.out_size(in.h), conv.out_size(in.w), f);
    const PaddedMap& out = path.out[i];
    over_rows(out, [&](int64_t image, int64_t r) { convolve_row(conv, in, u, out, image, r); });
    if (i == 0) {
      path.in.push_back(pool(out, with_index ? &path.index : nullptr));
    } else if (i + 1 < w.convs.size()) {
      path.in.emplace_back(n, out.h, out.w, f);
      const PaddedMap& next = path.in.back();
      over_rows(out, [&](int64_t image, int64_t r) {
        kernels().esa.activate(conv.activation, out.row(image, r), next.row(image, r), out.w * f);
      });
    }
  }
  return path;
}

Enlargement enlargement(const PaddedMap& low, int64_t h, int64_t w) {
  return {bilinear_taps(low.h, h, static_cast<float>(low.h) / static_cast<float>(h)),
          bilinear_taps(low.w, w, static_cast<float>(low.w) / static_cast<float>(w))};
}

void blend_rows(const Path& path, const Enlargement& to, int64_t n, int64_t h, float* blended) {
  const PaddedMap& low = path.low();
  const BilinearTap& tap = to.rows[h];
  kernels().esa.blend(tap.first, low.row(n, tap.i), tap.second, low.row(n, tap.j), blended, low.w * low.f);
}

void gate_input(const Weights& weights, const Path& path, const Enlargement& to, const float* blended, int64_t n,
                int64_t h, int64_t w, int64_t pixels, float* z) {
  const int64_t f = weights.f;
  const PaddedMap& reduced = path.reduced();
  const float* from = reduced.row(n, h) + w * reduced.f;
  const BilinearTap* taps = to.columns.data() + w;
  if (weights.folded) return kernels().esa.add_enlarged(blended, taps, from + f, reduced.f, z, pixels, f);
  const RowSegment segment{from, f, f};
  kernels().rows.gemm({&segment, 1, pixels, weights.conv_f, f, weights.conv_f_bias, 0, z, f, f});
  kernels().esa.add_enlarged(blended, taps, z, f, z, pixels, f);
}

}  // namespace fastsr::cpu::esa
