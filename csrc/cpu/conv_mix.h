// What conv_mix and mixer_block share: checks, packed weights, division of the work, gradients.
#pragma once

#include <optional>

#include "conv_tensors.h"
#include "isa/table.h"

namespace fastsr::cpu {

// conv_mix's parameters; both of the depthwise convolution's are left out or neither.
struct MixParameters {
  std::optional<Tensor> dw_weight, dw_bias;
  Tensor pw_weight, pw_bias, c5_weight, c5_bias;
  int64_t activation;
};

void check_conv_mix(const Tensor& x, const Tensor& shortcut, const MixParameters& p);

struct PackedMix {
  Buffer<float> dw, dw_bias, pw, pw_bias, c5, c5_bias;
  explicit PackedMix(const MixParameters& p);
  ConvMixWeights view() const { return {dw.get(), dw_bias.get(), pw.get(), pw_bias.get(), c5.get(), c5_bias.get()}; }
};

inline const auto& conv_mix_kernels(float) { return kernels().conv_mix.f32; }
inline const auto& conv_mix_kernels(Half) { return kernels().conv_mix.f16; }
inline const auto& conv_mix_kernels(BFloat16) { return kernels().conv_mix.bf16; }

struct MixScratch {};

// Rows [first, last) of the n * h rows, on this thread.
template <class T>
void run_conv_mix_rows(const ConvMixArgs<T>& args, int64_t first, int64_t last) {
  float* scratch = thread_scratch<float, MixScratch>(kernels().conv_mix.scratch_size(args.c, args.k));
  conv_mix_kernels(T{}).forward(args, scratch, first, last);
}
// Rows that are worth a task.
inline int64_t conv_mix_rows_per_task(int64_t w) { return std::max<int64_t>(1, 192 / w); }

// All rows.
template <class T>
void run_conv_mix(const ConvMixArgs<T>& args) {
  const int64_t rows = args.n * args.h, step = conv_mix_rows_per_task(args.w);
  parallel_runs((rows + step - 1) / step,
                [&](int64_t i, bool) { run_conv_mix_rows(args, i * step, std::min(rows, (i + 1) * step)); });
}

// Of x, shortcut and the parameters in the order of the operator's arguments; empty for those that are left out.
using MixGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
MixGradients conv_mix_gradients(const Tensor& grad, const Tensor& x, const Tensor& shortcut, const MixParameters& p);

}  // namespace fastsr::cpu
