// The dense 3x3 convolution with padding 1 that conv3x3_gelu and upsample share: choice of algorithm, packed weights,
// division of the work, gradients.
#pragma once

#include <type_traits>

#include "conv_tensors.h"
#include "isa/table.h"

namespace fastsr::cpu {

struct PackedConv3x3 {
  const Conv3x3Algorithm* algorithm;
  Buffer<float> weights, bias;
};

// Packs a weight [K, C, 3, 3] (and bias, zeros if null) for maps of h x w pixels; `transposed` for the convolution with
// the filters turned by 180 degrees and input and output channels exchanged.
PackedConv3x3 pack_conv3x3(const Tensor& weight, const Tensor* bias, int64_t h, int64_t w, bool transposed);

// The one of three function pointers that is for T.
template <class T, class F32, class F16, class BF16>
auto typed(F32 f32, F16 f16, BF16 bf16) {
  if constexpr (std::is_same_v<T, float>) return f32;
  if constexpr (std::is_same_v<T, Half>) return f16;
  if constexpr (std::is_same_v<T, BFloat16>) return bf16;
}

struct Conv3x3Scratch {};

// `shortcut` is to be written over by a convolution of x, which reads x around every pixel.
inline void check_over(const char* op, const Tensor& x, const Tensor& shortcut) {
  STD_TORCH_CHECK(shortcut.numel() == 0 || is_nhwc(shortcut), op, ": a map to be written over must be channels last");
  STD_TORCH_CHECK(x.numel() == 0 || x.const_data_ptr() != shortcut.const_data_ptr(), op,
                  ": x itself is to be written over; pass another map as shortcut");
}

// One item of args' convolution by `algorithm`, on this thread.
template <class T>
void run_conv3x3_item(const Conv3x3Algorithm& algorithm, const Conv3x3Args<T>& args, int64_t item) {
  float* scratch = thread_scratch<float, Conv3x3Scratch>(algorithm.scratch_size(args.c, args.k, args.w));
  typed<T>(algorithm.run_f32, algorithm.run_f16, algorithm.run_bf16)(args, scratch, item);
}
// All of it.
template <class T>
void run_conv3x3(const Conv3x3Algorithm& algorithm, const Conv3x3Args<T>& args) {
  parallel_runs(algorithm.items(args.n, args.h, args.w),
                [&](int64_t i, bool) { run_conv3x3_item(algorithm, args, i); });
}
// All of it; `packed` and `bias` of args are filled in here.
template <class T>
void run_conv3x3(const PackedConv3x3& packed, Conv3x3Args<T>& args) {
  args.packed = packed.weights.get();
  args.bias = packed.bias.get();
  run_conv3x3(*packed.algorithm, args);
}

// g = dy * act'(pre) in float, the channels of each pixel padded to whole vectors of 16; without `pre`, dy itself.
Buffer<float> conv3x3_output_gradient(const Tensor& grad, const Tensor* pre, int64_t activation);
// Gradients from such a g. `added` is added to that of x.
Tensor conv3x3_input_gradient(const Tensor& x, const Tensor& weight, const float* g, const Tensor* added = nullptr);
// Of weight and bias, in their dtypes.
std::pair<Tensor, Tensor> conv3x3_weight_gradient(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                  const float* g);

}  // namespace fastsr::cpu
