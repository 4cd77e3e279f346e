// The dense 3x3 convolution behind conv3x3_gelu and upsample.
#include "conv3x3.h"

#include <optional>

#include "rows.h"

namespace fastsr::cpu {
namespace {

constexpr int64_t kPixelsPerRange = 2048, kMaxRanges = 64;  // of the weight gradient

// Winograd has 3.2 times fewer multiplications, but transforms to pay for: measured, it wins from 8 channels on both
// sides on. In smaller images than 2 x 2 tiles it computes too many pixels that do not exist.
bool winograd_pays(int64_t c, int64_t k, int64_t h, int64_t w) { return std::min(c, k) >= 8 && std::min(h, w) >= 6; }

const Conv3x3Algorithm& choose(int64_t c, int64_t k, int64_t h, int64_t w) {
  return winograd_pays(c, k, h, w) ? kernels().conv3x3_gelu.winograd : kernels().conv3x3_gelu.direct;
}
const Conv3x3WeightGradientKernels& choose_gradient(int64_t c, int64_t k, int64_t h, int64_t w) {
  return winograd_pays(c, k, h, w) ? kernels().conv3x3_gelu.winograd_gradient : kernels().conv3x3_gelu.direct_gradient;
}

}  // namespace

PackedConv3x3 pack_conv3x3(const Tensor& weight, const Tensor* bias, int64_t h, int64_t w, bool transposed) {
  const Tensor natural = dense(weight);
  const int64_t k = weight.size(0), c = weight.size(1);
  const float* data = float_data(natural);
  const Conv3x3Algorithm& algorithm = choose(c, k, h, w);
  const Conv3x3Weights weights =
      transposed ? Conv3x3Weights{data, k, c, 9 * c, 9, true} : Conv3x3Weights{data, c, k, 9, 9 * c, false};
  PackedConv3x3 packed{&algorithm, make_buffer<float>(algorithm.packed_size(weights.in, weights.out)),
                       bias ? padded_vector(*bias) : make_buffer<float>(padded_channels(weights.out))};
  if (!bias) std::fill_n(packed.bias.get(), padded_channels(weights.out), 0.f);
  constexpr int64_t kStep = 8;
  parallel_bands((weights.in + kStep - 1) / kStep, [&](int64_t i) {
    algorithm.pack(weights, packed.weights.get(), i * kStep, std::min(weights.in, (i + 1) * kStep));
  });
  return packed;
}

Buffer<float> conv3x3_output_gradient(const Tensor& grad, const Tensor* pre, int64_t activation) {
  const int64_t n = grad.size(0), k = grad.size(1), h = grad.size(2), w = grad.size(3), columns = padded_channels(k);
  Buffer<float> g = make_buffer<float>(n * h * w * columns);
  const MapReader dy("conv3x3", grad);
  std::optional<MapReader> argument;
  if (pre) argument.emplace("conv3x3", *pre);
  parallel_rows(n * h, w, [&](int64_t first, int64_t last) {
    const RowKernels& kernel = kernels().rows;
    float* memory = thread_scratch<float, Conv3x3Scratch>(w * columns);
    for (int64_t row = first; row < last; ++row) {
      float* to = g.get() + row * w * columns;
      if (!argument) {
        dy.copy(row / h, row % h, 0, w, to, columns);
        continue;
      }
      argument->copy(row / h, row % h, 0, w, to, columns);
      dy.copy(row / h, row % h, 0, w, memory, columns);
      kernel.activation_grad(activation, memory, columns, to, to, w, columns);
    }
  });
  return g;
}

// The convolution of g with the filters turned by 180 degrees and input and output channels exchanged.
Tensor conv3x3_input_gradient(const Tensor& x, const Tensor& weight, const float* g, const Tensor* added) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = weight.size(0);
  const int64_t columns = padded_channels(k);
  OutputMap dx(x, {n, c, h, w}, output_format(x));
  const bool is_float = x.scalar_type() == ScalarType::Float;
  const Tensor written = in_dtype(dx.nhwc(), ScalarType::Float);
  Conv3x3Args<float> args{n, k, h, w, c};
  args.x = {g, h * w * columns, w * columns, columns};
  args.y = write_map<float>(written);
  const Tensor addend = added ? side_by_side(in_dtype(*added, ScalarType::Float)) : x;
  if (added) args.shortcut = read_map<float>(addend);
  run_conv3x3(pack_conv3x3(weight, nullptr, h, w, true), args);
  if (!is_float) {
    Tensor rounded = dx.nhwc();
    torch::stable::copy_(rounded, written);
  }
  return dx.finish();
}

// Ranges of the image are summed separately and then together, in an order that depends on its size only.
std::pair<Tensor, Tensor> conv3x3_weight_gradient(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                  const float* g) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), k = weight.size(0);
  const Conv3x3WeightGradientKernels& kernel = choose_gradient(c, k, h, w);
  const int64_t items = kernel.items(n, h, w), size = kernel.sums_size(c, k);
  const int64_t ranges = std::clamp<int64_t>(n * h * w / kPixelsPerRange, 1, std::min(items, kMaxRanges));
  const Buffer<float> sums = make_buffer<float>(ranges * size);
  const Tensor from = side_by_side(x);
  dispatch_storage("conv3x3", x, [&](auto type) {
    using T = decltype(type);
    const Conv3x3WeightGradient<T> args{n, c, h, w, k, read_map<T>(from), g};
    parallel_bands(ranges, [&](int64_t r) {
      float* scratch = thread_scratch<float, Conv3x3Scratch>(kernel.scratch_size(c, k, w));
      std::fill_n(sums.get() + r * size, size, 0.f);
      typed<T>(kernel.run_f32, kernel.run_f16, kernel.run_bf16)(args, scratch, sums.get() + r * size,
                                                                items * r / ranges, items * (r + 1) / ranges);
    });
  });
  Tensor d_weight = torch::stable::new_empty(weight, {k, c, 3, 3}, ScalarType::Float);
  Tensor d_bias = torch::stable::new_empty(weight, {k}, ScalarType::Float);
  float* dw = static_cast<float*>(d_weight.mutable_data_ptr());
  parallel_bands(c, [&](int64_t i) { kernel.finish(sums.get(), ranges, c, k, dw, i, i + 1); });
  sum_ranges(sums.get(), ranges, size, k, static_cast<float*>(d_bias.mutable_data_ptr()));
  return {in_dtype(d_weight, weight.scalar_type()), in_dtype(d_bias, bias.scalar_type())};
}

}  // namespace fastsr::cpu
