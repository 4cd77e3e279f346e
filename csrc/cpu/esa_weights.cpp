// The weights of esa: checks, packing, folding.
#include "esa_weights.h"

namespace fastsr::cpu::esa {
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

// Calls visit(pointer, floats) for all that the forward reads, in a fixed order.
template <class Visit>
void over_parts(Weights& w, Visit&& visit) {
  visit(w.conv1, w.c * w.reduced_channels());
  visit(w.conv1_bias, w.reduced_channels());
  if (!w.folded) {
    visit(w.conv_f, w.f * w.f);
    visit(w.conv_f_bias, w.f);
  }
  visit(w.conv4, w.f * padded_channels(w.c));
  visit(w.conv4_bias, padded_channels(w.c));
  for (size_t i = 0; i < w.convs.size(); ++i) {
    Conv3x3& conv = w.convs[i];
    if (!conv.separable || i > 0 || !w.folded) visit(conv.weight, (conv.separable ? 1 : 9) * w.f * w.f);
    if (conv.separable) visit(conv.taps, 9 * w.f);
    visit(conv.bias, w.f);
  }
}

// The weights' sizes and convolutions, without what they point to.
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

// Folds weights of the blueprint form (Weights::folded), in double; others it leaves as they are.
void fold(Weights& w) {
  if (!w.separable) return;
  const int64_t f = w.f, columns = 2 * f;
  // A row of f channels times both pointwise weights, side by side, added to `bias`.
  const auto product = [&](const float* row, const float* bias, float* to) {
    std::vector<double> sum(columns, 0.0);
    if (bias) std::copy_n(bias, f, sum.begin() + f);
    for (int64_t j = 0; j < f; ++j)
      for (int64_t k = 0; k < f; ++k) {
        sum[k] += static_cast<double>(row[j]) * w.convs[0].weight[j * f + k];
        sum[f + k] += static_cast<double>(row[j]) * w.conv_f[j * f + k];
      }
    std::copy(sum.begin(), sum.end(), to);
  };
  Buffer<float> conv1 = make_buffer<float>(w.c * columns), bias = make_buffer<float>(columns);
  for (int64_t c = 0; c < w.c; ++c) product(w.conv1 + c * f, nullptr, conv1.get() + c * columns);
  product(w.conv1_bias, w.conv_f_bias, bias.get());
  w.conv1 = w.own(std::move(conv1));
  w.conv1_bias = w.own(std::move(bias));
  w.folded = true;
}

}  // namespace

void check_size(const Tensor& x, int64_t conv2_padding) {
  check_feature_map(kOp, x, "x");
  STD_TORCH_CHECK(conv2_padding == 0 || conv2_padding == 1, kOp, ": conv2_padding is ", conv2_padding, "; pass 0 or 1");
  const int64_t least = 2 * kPool + 1 - 2 * conv2_padding;
  STD_TORCH_CHECK(x.size(2) >= least && x.size(3) >= least, kOp, ": x is ", x.size(2), "x", x.size(3),
                  " pixels; pass at least ", least, "x", least);
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

Weights forward_weights(const Tensor& x, const std::vector<Tensor>& weights, int64_t conv2_padding) {
  check_size(x, conv2_padding);
  Weights w = pack(x.size(1), weights, conv2_padding, false);
  fold(w);
  return w;
}

Tensor esa_pack(const std::vector<Tensor>& weights) {
  STD_TORCH_CHECK(!weights.empty() && weights[0].dim() == 4, "esa_pack: the first weight is not [f, C, 1, 1]");
  Weights w = pack(weights[0].size(1), weights, 0, false);
  fold(w);
  int64_t size = 0;
  over_parts(w, [&](const float*, int64_t count) { size += count; });
  PackedWeights packed(weights[0], PackedFor::kEsa, {w.c, w.inner, w.separable}, size);
  float* to = packed.mutable_data();
  over_parts(w, [&](const float* from, int64_t count) { to = std::copy_n(from, count, to); });
  return packed.tensor();
}

Weights unpack(const char* op, const Tensor& x, const Tensor& packed, int64_t inner, bool separable,
               int64_t conv2_padding) {
  check_size(x, conv2_padding);
  const PackedWeights weights(op, PackedFor::kEsa, packed);
  STD_TORCH_CHECK(weights.fact(0) == x.size(1), op, ": packed are weights for ", weights.fact(0),
                  " channels, and x has ", x.size(1));
  const auto form = [](bool is_blueprint) { return is_blueprint ? "blueprint" : "plain"; };
  STD_TORCH_CHECK(inner > 0 && weights.fact(1) == inner && weights.fact(2) == separable, op, ": packed are ",
                  form(weights.fact(2) == 1), " weights with ", weights.fact(1), " inner channels; pass ",
                  form(separable), " ones with ", inner);
  Weights w = outline(weights.fact(0), inner, separable, conv2_padding);
  w.folded = w.separable;
  int64_t size = 0;
  over_parts(w, [&](const float*& part, int64_t count) {
    part = weights.data() + size;
    size += count;
  });
  weights.check_size(op, size);
  return w;
}

}  // namespace fastsr::cpu::esa
