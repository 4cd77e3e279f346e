// fastsr::mixer_block and its backward on the CPU: MLRN's two 3x3 convolutions and its mixer, the block up to its ESA.
//
//   y1 = act(conv3x3(x)),  y2 = act(conv3x3(y1)),  y = conv_mix(y2, x)
//
// Without autograd the three go down an image together, each some rows behind the one before it, so that y1 and y2
// exist for a few rows only: two maps fewer in the peak of a network's memory. With it, the arguments of the two
// activations are kept in place of y1 and y2: the backward gets those back for one activation each, and need not repeat
// the convolutions.
#include "conv3x3.h"
#include "conv_mix.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "mixer_block";
// Of a step. Fewer make threads wait for one another more often, more no longer stay in the shared cache.
constexpr int64_t kBandPixels = 12288;

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

// What is done together: items of the two convolutions and rows of the mixer, which need only what was done before.
struct Step {
  int64_t first1, last1, first2, last2, first_row, last_row;
  int64_t oldest1, oldest2;  // the first rows of y1 and y2 that are still read
};
// The steps of one image, and how many rows of y1 and y2 exist at a time.
struct Plan {
  std::vector<Step> steps;
  int64_t rows1 = 0, rows2 = 0;
};

// In every step the first convolution does a band of rows, and the others go as far as the rows complete before allow.
Plan plan(const Conv3x3Algorithm& conv, int64_t h, int64_t w) {
  const int64_t band = std::max<int64_t>(6, kBandPixels / w);
  // The rows that a 3x3 convolution can do when only the first `complete` rows of its input are there; also the first
  // one that it reads when it has done `complete` of its own.
  const auto above = [&](int64_t complete) { return complete == h ? h : std::max<int64_t>(0, complete - 1); };
  Plan plan;
  Step s{};
  for (int64_t target = band; s.last_row < h; target += band) {
    const int64_t complete1 = conv.rows_completed(h, w, s.last1), complete2 = conv.rows_completed(h, w, s.last2);
    const int64_t end1 = std::min(h, target), end2 = above(complete1);
    s = {s.last1,    conv.items_within(h, w, end1),          s.last2,          conv.items_within(h, w, end2),
         s.last_row, std::max(s.last_row, above(complete2)), above(complete2), above(s.last_row)};
    plan.rows1 = std::max(plan.rows1, end1 - s.oldest1);
    plan.rows2 = std::max(plan.rows2, end2 - s.oldest2);
    plan.steps.push_back(s);
  }
  return plan;
}

// Memory for the last `rows` rows of w * channels numbers, which take turns in it.
class RowRing {
 public:
  RowRing(int64_t w, int64_t channels, int64_t rows)
      : channels_(channels), row_(w * channels), rows_(rows), memory_(make_buffer<float>(rows * row_)) {}
  // As a map of the image, of which only the rows from `oldest` on exist.
  template <class T = float>
  ConvMap<T> map(int64_t oldest) const {
    const int64_t begin = oldest / rows_ * rows_;
    return {memory_.get() - begin * row_, 0, row_, channels_, begin + rows_, rows_ * row_};
  }

 private:
  int64_t channels_, row_, rows_;
  Buffer<float> memory_;
};

void run_in_steps(const Conv3x3Algorithm& conv, Conv3x3Args<float> first, Conv3x3Args<float> second,
                  ConvMixArgs<float> mix) {
  const auto [steps, rows1, rows2] = plan(conv, first.h, first.w);
  const RowRing y1(first.w, first.k, rows1), y2(first.w, second.k, rows2);
  const int64_t mix_rows = conv_mix_rows_per_task(mix.w);
  for (const Step& s : steps) {
    first.y = y1.map(s.oldest1);
    second.x = y1.map<const float>(s.oldest1);
    second.y = y2.map(s.oldest2);
    mix.x = y2.map<const float>(s.oldest2);
    const int64_t count1 = s.last1 - s.first1, count2 = s.last2 - s.first2;
    const int64_t tasks = (s.last_row - s.first_row + mix_rows - 1) / mix_rows;
    parallel_runs(tasks + count2 + count1, [&](int64_t i, bool) {
      if (i < tasks) {
        const int64_t row = s.first_row + i * mix_rows;
        run_conv_mix_rows(mix, row, std::min(s.last_row, row + mix_rows));
      } else if (i < tasks + count2) {
        run_conv3x3_item(conv, second, s.first2 + i - tasks);
      } else {
        run_conv3x3_item(conv, first, s.first1 + i - tasks - count2);
      }
    });
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
    first.y = write_map<float>(y1);
    first.pre = write_map<float>(pre1);
    run_conv3x3(*packed1.algorithm, first);
    second.x = read_map<float>(y1);
    second.y = write_map<float>(y2);
    second.pre = write_map<float>(pre2);
    run_conv3x3(*packed2.algorithm, second);
    mix.x = read_map<float>(y2);
    run_conv_mix(mix);
  } else {
    first.n = second.n = mix.n = 1;
    for (int64_t i = 0; i < n; ++i) {
      run_in_steps(*packed1.algorithm, first, second, mix);
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
