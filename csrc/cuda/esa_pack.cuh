// The weights of esa in the order in which its kernels read them. Blueprint convolutions, a 1x1 and a depthwise 3x3
// with nothing between, become dense 3x3 ones: both forms are the same from here on.
#pragma once

#include "parameter.cuh"
#include "product_pack.cuh"

namespace fastsr::cuda {

constexpr int kEsaTaps = 9;

// A 3x3 convolution of f channels: dense w [f, f, 3, 3], or w [f, f] and dw [f, 3, 3].
struct EsaConv {
  Parameter w, dw, bias;

  __device__ __forceinline__ float dense(int f, int o, int i, int tap) const {
    if (o >= f || i >= f) return 0.f;
    return dw.data ? w[o * f + i] * dw[o * kEsaTaps + tap] : w[(o * f + i) * kEsaTaps + tap];
  }
};

// Where the parts begin, in words. Channels are padded to `wide`, with zeros.
struct EsaPacked {
  int64_t w1, w2, wf, w4, b1, b2, bf, b4, small, forward_end;
  int64_t w1t, w2t, wft, w4t, end;  // transposed, for the backward
};

template <class T>
struct EsaPack {
  Parameter w1, b1, wf, bf, w4, b4;
  EsaConv conv[4];  // conv2, then those of the small map
  EsaPacked at;
  uint32_t* to;
  uint32_t* border;  // c1 with a margin of a pixel, which is set to 0
  int64_t border_words;
  int c, f, wide, layers, h, w;
  int64_t words;  // that are packed
};

// Words of the small convolutions: per layer [tap][input][output], then the biases.
__host__ __device__ constexpr int64_t esa_layer_words(int wide) { return kEsaTaps * wide * wide + wide; }

template <class T>
__device__ __forceinline__ uint32_t esa_word(int64_t i, const EsaPack<T>& a) {
  const EsaPacked& at = a.at;
  const int f = a.f, c = a.c;
  const int64_t tap_words = product_block_bytes<T>(f) / 4;
  const auto vector = [](const Parameter& p, int64_t k, int channels) {
    return __float_as_uint(k < channels ? p[k] : 0.f);
  };
  const auto matrix = [](const Parameter& p, int o, int j, int outputs, int inputs) {
    return o < outputs && j < inputs ? p[static_cast<int64_t>(o) * inputs + j] : 0.f;
  };
  if (i < at.w2) return product_word<T>(i - at.w1, c, [&](int o, int j) { return matrix(a.w1, o, j, f, c); });
  if (i < at.wf)
    return product_word<T>((i - at.w2) % tap_words, f, [&](int o, int j) {
      return a.conv[0].dense(f, o, j, static_cast<int>((i - at.w2) / tap_words));
    });
  if (i < at.w4) return product_word<T>(i - at.wf, f, [&](int o, int j) { return matrix(a.wf, o, j, f, f); });
  if (i < at.b1) return product_word<T>(i - at.w4, f, [&](int o, int j) { return matrix(a.w4, o, j, c, f); });
  if (i < at.b2) return vector(a.b1, i - at.b1, f);
  if (i < at.bf) return vector(a.conv[0].bias, i - at.b2, f);
  if (i < at.b4) return vector(a.bf, i - at.bf, f);
  if (i < at.small) return vector(a.b4, i - at.b4, c);
  if (i < at.forward_end) {
    const int64_t j = i - at.small, words = esa_layer_words(a.wide);
    const EsaConv& conv = a.conv[1 + j / words];
    const int in_layer = static_cast<int>(j % words), o = in_layer % a.wide, k = in_layer / a.wide % a.wide;
    const int tap = in_layer / a.wide / a.wide;
    return tap == kEsaTaps ? vector(conv.bias, o, f) : __float_as_uint(conv.dense(f, o, k, tap));
  }
  if (i < at.w2t) return product_word<T>(i - at.w1t, f, [&](int o, int j) { return matrix(a.w1, j, o, f, c); });
  if (i < at.wft)
    return product_word<T>((i - at.w2t) % tap_words, f, [&](int o, int j) {
      return a.conv[0].dense(f, j, o, static_cast<int>((i - at.w2t) / tap_words));
    });
  if (i < at.w4t) return product_word<T>(i - at.wft, f, [&](int o, int j) { return matrix(a.wf, j, o, f, f); });
  return product_word<T>(i - at.w4t, c, [&](int o, int j) { return matrix(a.w4, j, o, c, f); });
}

template <class T>
__global__ void __launch_bounds__(kProductThreads) esa_pack_kernel(const EsaPack<T> a) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kProductThreads + threadIdx.x;
  if (i < a.words) {
    a.to[i] = esa_word<T>(i, a);
    return;
  }
  i -= a.words;
  if (i >= a.border_words) return;
  const int pixel_words = a.wide * static_cast<int>(sizeof(T)) / 4;
  const int64_t around = 2 * (static_cast<int64_t>(a.w) + 2) + 2 * a.h, n = i / pixel_words / around;
  const int64_t k = i / pixel_words % around, across = a.w + 2;
  int64_t y = 0, x = k;  // the first row, the last one, the first and last columns
  if (k >= 2 * across)
    y = 1 + (k - 2 * across) / 2, x = (k - 2 * across) % 2 * (across - 1);
  else if (k >= across)
    y = a.h + 1, x = k - across;
  a.border[((n * (a.h + 2) + y) * across + x) * pixel_words + i % pixel_words] = 0;
}

}  // namespace fastsr::cuda
