// fastsr::mixer_block and its backward on the CPU: MLRN's two 3x3 convolutions and its mixer, the block up to its ESA.
//
//   y1 = act(conv3x3(x)),  y2 = act(conv3x3(y1)),  y = conv_mix(y2, x)
//
// Without autograd the three run one behind the other down an image, a band of rows at a time, so that y1 and y2 exist
// for a few rows only: two maps fewer in the peak of a network's memory. With it, the arguments of the two activations
// are kept in place of y1 and y2: the backward gets those back for one activation each, and need not repeat the
// convolutions.
#include "conv3x3.h"
#include "conv_mix.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "mixer_block";
constexpr int64_t kBandPixels = 8192;

void check_conv(const Tensor& weight, const Tensor& bias, int64_t in, int64_t out, const char* name) {
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(0) == out && weight.size(1) == in && weight.size(2) == 3 && weight.size(3) == 3,
      kOp, ": ", name, "_weight must be [", out, ", ", in, ", 3, 3]");
  check_vector(kOp, bias, out, name);
}

void check(const Tensor& x, const Tensor& c1_weight, const Tensor& c1_bias, const Tensor& c2_weight,
           const Tensor& c2_bias, const MixParameters& mix) {
  check_conv_mix(x, x, mix);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, kOp, ": x has a dtype without kernel; pass float32");
  check_conv(c1_weight, c1_bias, x.size(1), x.size(1), "c1");
  check_conv(c2_weight, c2_bias, x.size(1), x.size(1), "c2");
}

// The rows of a map that a band needs; they move down the image with it.
class MovingRows {
 public:
  // For about `rows` rows at a time; more is possible and costs an allocation.
  MovingRows(int64_t width, int64_t channels, int64_t rows) : channels_(channels), row_(width * channels) {
    grow(rows);
  }

  // Forgets the rows before `first` and makes room for those before `last`.
  void move(int64_t first, int64_t last) {
    const int64_t kept = std::max<int64_t>(0, last_ - first);
    const float* from = memory_.get() + (first - first_) * row_;
    if (last - first > capacity_) {
      const Buffer<float> before = grow(last - first);
      std::copy_n(from, kept * row_, memory_.get());
    } else if (kept > 0 && first > first_) {
      std::memmove(memory_.get(), from, kept * row_ * sizeof(float));
    }
    first_ = first;
    last_ = last;
  }
  // As a map of the whole image, of which only these rows exist.
  template <class T = float>
  ConvMap<T> map() const {
    return {memory_.get() - first_ * row_, 0, row_, channels_};
  }

 private:
  Buffer<float> grow(int64_t rows) {
    capacity_ = rows;
    return std::exchange(memory_, make_buffer<float>(rows * row_));
  }

  int64_t channels_, row_, capacity_ = 0, first_ = 0, last_ = 0;
  Buffer<float> memory_;
};

// One image in bands: each convolution goes as far as the rows before it allow.
void run_in_bands(const Conv3x3Algorithm& conv, Conv3x3Args<float> first, Conv3x3Args<float> second,
                  ConvMixArgs<float> mix) {
  const int64_t h = first.h, w = first.w, step = std::max<int64_t>(6, kBandPixels / w);
  // A band, and the rows behind it that the next convolution could not finish.
  const int64_t room = std::min(h, step + 12);
  MovingRows y1(w, first.k, room), y2(w, second.k, room);
  int64_t items1 = 0, items2 = 0, rows = 0;
  for (int64_t target = step; rows < h; target += step) {
    const int64_t end = std::min(h, target), next1 = conv.items_within(h, w, end);
    y1.move(std::max<int64_t>(0, conv.rows_completed(h, w, items2) - 1), end);
    first.y = y1.map();
    run_conv3x3(conv, first, items1, next1);
    items1 = next1;

    const int64_t complete1 = conv.rows_completed(h, w, items1), end2 = complete1 == h ? h : complete1 - 1;
    const int64_t next2 = conv.items_within(h, w, std::max<int64_t>(0, end2));
    y2.move(std::max<int64_t>(0, rows - 1), std::max<int64_t>(rows, end2));
    second.x = y1.map<const float>();
    second.y = y2.map();
    run_conv3x3(conv, second, items2, next2);
    items2 = next2;

    const int64_t complete2 = conv.rows_completed(h, w, items2);
    const int64_t next = complete2 == h ? h : std::max(rows, complete2 - 1);
    mix.x = y2.map<const float>();
    run_conv_mix(mix, rows, next);
    rows = next;
  }
}

// The result, and the arguments of the two activations where `keeps`, else two empty tensors.
std::tuple<Tensor, Tensor, Tensor> mixer_block(const Tensor& x, const Tensor& c1_weight, const Tensor& c1_bias,
                                               const Tensor& c2_weight, const Tensor& c2_bias,
                                               const std::optional<Tensor>& dw_weight,
                                               const std::optional<Tensor>& dw_bias, const Tensor& pw_weight,
                                               const Tensor& pw_bias, const Tensor& c5_weight, const Tensor& c5_bias,
                                               int64_t activation, bool keeps) {
  const MixParameters parameters{dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias, activation};
  check(x, c1_weight, c1_bias, c2_weight, c2_bias, parameters);
  const std::array<int64_t, 4> inner{x.size(0), x.size(1), x.size(2), x.size(3)};
  const auto [n, c, h, w] = inner;
  const int64_t k = c5_weight.size(0);
  const auto kept = [&] {
    return keeps ? empty_feature_map(x, inner, MemoryFormat::ChannelsLast) : torch::stable::new_empty(x, {0});
  };
  const Tensor pre1 = kept(), pre2 = kept();
  OutputMap out(x, {n, k, h, w}, output_format(x));
  if (n * h * w == 0 || c == 0) {
    if (out.nhwc().numel() > 0) STD_TORCH_CHECK(false, kOp, ": x has no channels; pass at least one");
    return {out.finish(), pre1, pre2};
  }

  const Tensor from = side_by_side(x);
  const PackedConv3x3 packed1 = pack_conv3x3(c1_weight, &c1_bias, h, w, false),
                      packed2 = pack_conv3x3(c2_weight, &c2_bias, h, w, false);
  const PackedMix packed(parameters);
  Conv3x3Args<float> first{n, c, h, w, c};
  first.x = read_map<float>(from);
  first.packed = packed1.weights.get();
  first.bias = packed1.bias.get();
  first.activation = activation;
  Conv3x3Args<float> second = first;
  second.packed = packed2.weights.get();
  second.bias = packed2.bias.get();
  ConvMixArgs<float> mix{
      n, c, h, w, k, activation, packed.view(), {}, read_map<float>(from), write_map<float>(out.nhwc())};

  if (keeps) {
    const Tensor y1 = empty_feature_map(x, inner, MemoryFormat::ChannelsLast),
                 y2 = empty_feature_map(x, inner, MemoryFormat::ChannelsLast);
    const int64_t items = packed1.algorithm->items(n, h, w);
    first.y = write_map<float>(y1);
    first.pre = write_map<float>(pre1);
    run_conv3x3(*packed1.algorithm, first, 0, items);
    second.x = read_map<float>(y1);
    second.y = write_map<float>(y2);
    second.pre = write_map<float>(pre2);
    run_conv3x3(*packed2.algorithm, second, 0, items);
    mix.x = read_map<float>(y2);
    run_conv_mix(mix, 0, n * h);
  } else {
    first.n = second.n = mix.n = 1;
    for (int64_t i = 0; i < n; ++i) {
      run_in_bands(*packed1.algorithm, first, second, mix);
      first.x.data += first.x.stride_n;
      mix.shortcut.data += mix.shortcut.stride_n;
      mix.y.data += mix.y.stride_n;
    }
  }
  return {out.finish(), pre1, pre2};
}

// act(pre), in its layout.
Tensor activated(const Tensor& pre, int64_t activation) {
  const Tensor y = empty_feature_map(pre, {pre.size(0), pre.size(1), pre.size(2), pre.size(3)}, output_format(pre));
  const float* from = float_data(pre);
  float* to = static_cast<float*>(y.mutable_data_ptr());
  constexpr int64_t kPart = 16384;
  const int64_t count = pre.numel();
  parallel_bands((count + kPart - 1) / kPart, [&](int64_t i) {
    kernels().rows.activation(activation, from + i * kPart, to + i * kPart, std::min(kPart, count - i * kPart));
  });
  return y;
}

using BlockGradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Gradients of x and all parameters; empty for those of a depthwise convolution that is left out.
BlockGradients mixer_block_backward(const Tensor& grad, const Tensor& x, const Tensor& pre1, const Tensor& pre2,
                                    const Tensor& c1_weight, const Tensor& c1_bias, const Tensor& c2_weight,
                                    const Tensor& c2_bias, const std::optional<Tensor>& dw_weight,
                                    const std::optional<Tensor>& dw_bias, const Tensor& pw_weight,
                                    const Tensor& pw_bias, const Tensor& c5_weight, const Tensor& c5_bias,
                                    int64_t activation) {
  const MixParameters parameters{dw_weight, dw_bias, pw_weight, pw_bias, c5_weight, c5_bias, activation};
  check(x, c1_weight, c1_bias, c2_weight, c2_bias, parameters);
  for (const Tensor* pre : {&pre1, &pre2}) {
    check_same_shape(kOp, x, *pre, "a kept map");
    STD_TORCH_CHECK(pre->scalar_type() == ScalarType::Float && is_nhwc(*pre), kOp,
                    ": a kept map is not as the forward pass leaves it, float32 and channels last");
  }
  auto [dy2, d_shortcut, d_dw, d_dw_bias, d_pw, d_pw_bias, d_c5, d_c5_bias] =
      conv_mix_gradients(grad, activated(pre2, activation), x, parameters);
  if (x.numel() == 0)
    return {d_shortcut,
            torch::stable::new_zeros(c1_weight, c1_weight.sizes()),
            torch::stable::new_zeros(c1_bias, c1_bias.sizes()),
            torch::stable::new_zeros(c2_weight, c2_weight.sizes()),
            torch::stable::new_zeros(c2_bias, c2_bias.sizes()),
            d_dw,
            d_dw_bias,
            d_pw,
            d_pw_bias,
            d_c5,
            d_c5_bias};
  Buffer<float> g = conv3x3_output_gradient(dy2, &pre2, activation);
  const Tensor y1 = activated(pre1, activation);
  auto [d_c2, d_c2_bias] = conv3x3_weight_gradient(y1, c2_weight, c2_bias, g.get());
  const Tensor dy1 = conv3x3_input_gradient(y1, c2_weight, g.get());
  g = conv3x3_output_gradient(dy1, &pre1, activation);
  auto [d_c1, d_c1_bias] = conv3x3_weight_gradient(x, c1_weight, c1_bias, g.get());
  const Tensor dx = conv3x3_input_gradient(x, c1_weight, g.get(), &d_shortcut);
  return {dx, d_c1, d_c1_bias, d_c2, d_c2_bias, d_dw, d_dw_bias, d_pw, d_pw_bias, d_c5, d_c5_bias};
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("mixer_block", TORCH_BOX(&fastsr::cpu::mixer_block));
  m.impl("mixer_block_backward", TORCH_BOX(&fastsr::cpu::mixer_block_backward));
}
