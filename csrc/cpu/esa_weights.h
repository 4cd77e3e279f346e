// The weights of esa, as the kernels read them, and the form that they tell.
#pragma once

#include "packed.h"
#include "rows.h"

namespace fastsr::cpu::esa {

inline constexpr const char* kOp = "esa";
inline constexpr int64_t kPool = 7, kPoolStep = 3, kGelu = 1;

// A 3x3 convolution f -> f, packed for the forward and, if asked, for the backward.
struct Conv3x3 {
  bool separable;
  int64_t stride, padding, activation;
  int64_t first;                      // of its weights in the operator's list
  const float* weight = nullptr;      // dense: [3][3 f][f]; separable: the pointwise [f][f]
  const float* taps = nullptr;        // separable: [9][f]
  const float* bias = nullptr;        // [f]
  const float* transposed = nullptr;  // dense: [3][f][3 f]; separable: the pointwise [f][f]

  int64_t out_size(int64_t size) const { return (size + 2 * padding - 3) / stride + 1; }
};

struct Weights {
  int64_t c, inner, f;  // channels, inner channels and those padded
  bool separable;
  // Whether conv1 has taken in the pointwise of the strided convolution and conv_f, which is exact for the blueprint
  // form: conv1 then gives [pointwise(conv1 x), conv_f(conv1 x)], 2 f channels, and those two are gone.
  bool folded = false;
  const float *conv1, *conv1_bias;              // [c][f or 2 f]
  const float *conv_f = nullptr, *conv_f_bias;  // [f][f]
  const float *conv4, *conv4_bias;              // [f][padded c]
  const float *conv1_transposed, *conv_f_transposed, *conv4_transposed;
  std::vector<Conv3x3> convs;         // the strided one, then those behind the pool
  int64_t conv_f_index, conv4_index;  // in the operator's list
  std::vector<Buffer<float>> owned;   // what the pointers point into, unless that is a packed tensor

  int64_t reduced_channels() const { return folded ? 2 * f : f; }
  const float* own(Buffer<float> part) { return owned.emplace_back(std::move(part)).get(); }
};

// Checks and packs the weights for `c` channels; `backward` packs the transposed ones, too.
Weights pack(int64_t c, const std::vector<Tensor>& weights, int64_t conv2_padding, bool backward);

// The image must be large enough for the pool.
void check_size(const Tensor& x, int64_t conv2_padding);

// Weights for the forward of x, folded.
Weights forward_weights(const Tensor& x, const std::vector<Tensor>& weights, int64_t conv2_padding);

// The same from what esa_pack returned for weights of that form, for `op`; they point into `packed`.
Weights unpack(const char* op, const Tensor& x, const Tensor& packed, int64_t inner, bool separable,
               int64_t conv2_padding);

// fastsr::esa_pack.
Tensor esa_pack(const std::vector<Tensor>& weights);

}  // namespace fastsr::cpu::esa
