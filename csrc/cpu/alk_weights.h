// The weights of an ALKConv: checks, and packing for the kernels.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "../alk_checks.h"
#include "isa/table.h"
#include "parallel.h"
#include "weights.h"

namespace fastsr::cpu {

inline void check_alk_weights(const char* op, int64_t c, const AlkWeightTensors& w) {
  fastsr::check_alk_weights(op, c, w, AlkConvShape::kMaxTaps);
}
inline void check_alk_weights(const char* op, const Tensor& x, const AlkWeightTensors& w) {
  fastsr::check_alk_weights(op, x, w, AlkConvShape::kMaxTaps);
}

// Of `k` channels out, `d` distilled (0: none), with a large kernel of `taps`.
inline AlkConvShape alk_shape(const Tensor& x, int64_t k, int64_t d, int64_t taps, double eps, int64_t activation,
                              bool residual) {
  const float gelu_width = kernels().alk_conv.gelu_width;
  return {.n = x.size(0),
          .c = x.size(1),
          .h = x.size(2),
          .w = x.size(3),
          .k = k,
          .d = d,
          .taps = taps,
          .halo = std::max<int64_t>(taps / 2, 1),
          .strip_width = x.size(3),
          .eps = static_cast<float>(eps / (gelu_width * gelu_width)),
          .activation = activation,
          .residual = residual};
}

// Where the parts of AlkConvWeights lie in one array of floats.
struct AlkLayout {
  int64_t c, k, d, taps, lanes;

  int64_t size() const { return offsets().back(); }
  AlkConvWeights at(const float* memory) const {
    const auto o = offsets();
    return {memory + o[0],
            memory + o[1],
            memory + o[2],
            memory + o[3],
            memory + o[4],
            d > 0 ? memory + o[5] : nullptr,
            d > 0 ? memory + o[6] : nullptr};
  }
  int64_t padded(int64_t n) const { return (n + lanes - 1) / lanes * lanes; }
  int64_t all_taps() const { return 2 * taps + 9; }
  // Beginnings of the parts in the order of AlkConvWeights, each on a cache line, and the end.
  std::array<int64_t, 8> offsets() const {
    const int64_t groups = padded(k) / lanes;
    const int64_t sizes[] = {
        c * padded(k), groups * all_taps() * lanes, groups * 3 * lanes, padded(k), padded(k), c * padded(d), padded(d)};
    std::array<int64_t, 8> out{};
    for (int i = 0; i < 7; ++i) out[i + 1] = out[i] + (sizes[i] + 15) / 16 * 16;
    return out;
  }
};

// Writes the weights into `memory`, zeros, of the layout's size.
inline void pack_alk_weights(const AlkLayout& layout, const AlkWeightTensors& w, const Tensor* d_weight,
                             const Tensor* d_bias, float* memory) {
  const int64_t lanes = layout.lanes, taps = layout.taps, k_padded = layout.padded(layout.k);
  const auto offsets = layout.offsets();
  const auto part = [&](int i) { return memory + offsets[i]; };
  pack_transposed(w.pw_weight, layout.k, layout.c, part(0), k_padded);
  const float scale = 1.f / kernels().alk_conv.gelu_width;
  const FloatParameter l1(w.lora1_weight), l2(w.lora2_weight), small(w.small_weight), b1(w.lora1_bias),
      b2(w.lora2_bias), b3(w.small_bias), nw(w.norm_weight), nb(w.norm_bias);
  for (int64_t i = 0; i < layout.k; ++i) {
    const int64_t group = i / lanes, lane = i % lanes;
    float* tap = part(1) + group * layout.all_taps() * lanes + lane;
    for (int64_t t = 0; t < taps; ++t) {
      tap[t * lanes] = l1[i * taps + t] * scale;
      tap[(taps + t) * lanes] = l2[i * taps + t] * scale;
    }
    for (int64_t t = 0; t < 9; ++t) tap[(2 * taps + t) * lanes] = small[i * 9 + t] * scale;
    float* bias = part(2) + group * 3 * lanes + lane;
    bias[0] = b1[i] * scale;
    bias[lanes] = b2[i] * scale;
    bias[2 * lanes] = b3[i] * scale;
    part(3)[i] = nw[i];
    part(4)[i] = nb[i];
  }
  if (layout.d > 0) {
    pack_transposed(*d_weight, layout.d, layout.c, part(5), layout.padded(layout.d));
    const FloatParameter bias(*d_bias);
    for (int64_t i = 0; i < layout.d; ++i) part(6)[i] = bias[i];
  }
}

// Weights packed for one call.
class AlkPacked {
 public:
  AlkPacked(const AlkWeightTensors& w, const Tensor* d_weight, const Tensor* d_bias, int64_t lanes, int64_t c)
      : layout_{c, w.pw_weight.size(0), d_weight ? d_weight->size(0) : 0, w.lora1_weight.size(2), lanes},
        memory_(make_buffer<float>(layout_.size())) {
    std::fill_n(memory_.get(), layout_.size(), 0.f);
    pack_alk_weights(layout_, w, d_weight, d_bias, memory_.get());
  }
  AlkConvWeights pointers() const { return layout_.at(memory_.get()); }

 private:
  AlkLayout layout_;
  Buffer<float> memory_;
};

// What the backward needs besides: reversed filters without bias, and the pointwise weights [K' + D'][C'].
class AlkTransposed {
 public:
  AlkTransposed(const AlkWeightTensors& w, const Tensor* d_weight, int64_t lanes, int64_t c) {
    const auto padded = [lanes](int64_t n) { return (n + lanes - 1) / lanes * lanes; };
    const int64_t k = w.pw_weight.size(0), taps = w.lora1_weight.size(2), d = d_weight ? d_weight->size(0) : 0;
    const int64_t groups = padded(k) / lanes, all = 2 * taps + 9, c_padded = padded(c);
    const int64_t taps_size = groups * all * lanes, bias_size = groups * 3 * lanes;
    const int64_t total = taps_size + bias_size + (padded(k) + padded(d)) * c_padded;
    memory_ = make_buffer<float>(total);
    std::fill_n(memory_.get(), total, 0.f);
    bias_at_ = taps_size;
    products_at_ = taps_size + bias_size;

    const FloatParameter l1(w.lora1_weight), l2(w.lora2_weight), small(w.small_weight), pw(w.pw_weight);
    for (int64_t i = 0; i < k; ++i) {
      float* tap = memory_.get() + i / lanes * all * lanes + i % lanes;
      for (int64_t t = 0; t < taps; ++t) {
        tap[t * lanes] = l1[i * taps + taps - 1 - t];
        tap[(taps + t) * lanes] = l2[i * taps + taps - 1 - t];
      }
      for (int64_t t = 0; t < 9; ++t) tap[(2 * taps + t) * lanes] = small[i * 9 + 8 - t];
    }
    float* product = memory_.get() + products_at_;
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < c; ++j) product[i * c_padded + j] = pw[i * c + j];
    if (d > 0) {
      const FloatParameter from(*d_weight);
      product += padded(k) * c_padded;
      for (int64_t i = 0; i < d; ++i)
        for (int64_t j = 0; j < c; ++j) product[i * c_padded + j] = from[i * c + j];
    }
  }
  const float* taps() const { return memory_.get(); }
  const float* no_bias() const { return memory_.get() + bias_at_; }
  const float* products() const { return memory_.get() + products_at_; }

 private:
  Buffer<float> memory_;
  int64_t bias_at_, products_at_;
};

}  // namespace fastsr::cpu
