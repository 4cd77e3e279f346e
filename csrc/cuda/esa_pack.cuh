// The weights of esa as its kernels read them. Blueprint convolutions, a 1x1 and a depthwise 3x3 with nothing between,
// become dense 3x3 ones: both forms are the same from here on.
//
// The forward's kernels pack what they need themselves, each CTA once for all of its tiles: a few thousand numbers, for
// which a launch of their own would take longer. The backward's have too many tiles for that; esa_pack_kernel does it.
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

// An element of a 1x1 convolution's weights; 0 outside.
__device__ __forceinline__ float matrix_at(const Parameter& p, int o, int j, int outputs, int inputs) {
  return o < outputs && j < inputs ? p[static_cast<int64_t>(o) * inputs + j] : 0.f;
}
__device__ __forceinline__ float vector_at(const Parameter& p, int64_t k, int channels) {
  return k < channels ? p[k] : 0.f;
}

struct EsaWeights {
  Parameter w1, b1, wf, bf, w4, b4;
  EsaConv conv[4];  // conv2, then those of the small map
};

// Channels inside as the maps and filters have them: padded to whole products.
__host__ __device__ constexpr int padded_inside(int f) { return (f + 15) / 16 * 16; }

// Floats of a small convolution: [tap][input][output], then the biases.
__host__ __device__ constexpr int64_t esa_layer_words(int wide) { return kEsaTaps * wide * wide + wide; }

__device__ __forceinline__ float layer_weight(const EsaConv& conv, int64_t i, int f, int wide) {
  const int o = i % wide, k = i / wide % wide, tap = static_cast<int>(i / wide / wide);
  return tap == kEsaTaps ? vector_at(conv.bias, o, f) : conv.dense(f, o, k, tap);
}

// The small map is float32: its convolutions are products on tensor cores in TF32, and FMAs elsewhere.
template <class T>
constexpr bool kSmallProducts = kTensorCores<T> && sizeof(T) == sizeof(float);

// conv2, [tap][16 outputs][16 inputs][step][lane] uint4, or [tap][input][output]: its kernel has four adjacent channels
// in and out of two pixels on a lane, one product deep in 16 bits and two in TF32.
template <class T>
__host__ __device__ constexpr int conv2_words(int wide) {
  return kEsaTaps * wide * wide * static_cast<int>(sizeof(T)) / 4;
}
template <class T>
__device__ __forceinline__ uint32_t conv2_word(const EsaConv& conv, int i, int f, int wide) {
  if constexpr (!kTensorCores<T>) return __float_as_uint(layer_weight(conv, i, f, wide));
  constexpr int kSteps = 16 / product_depth<T>, kOfWord = 4 / static_cast<int>(sizeof(T));
  const int word = i % 4, lane = i / 4 % 32, step = i / 128 % kSteps, block = i / 128 / kSteps, blocks = wide / 16;
  const int in = block % blocks, out = block / blocks % blocks, tap = block / blocks / blocks;
  const int g = lane / 4, t = lane % 4;
  const int output = 16 * out + g / 2 * 4 + word / 2 * 2 + g % 2;
  const int input = 16 * in + 4 * t + (2 * step + word % 2) * kOfWord;
  return as_word<T>(conv.dense(f, output, input, tap), kOfWord == 2 ? conv.dense(f, output, input + 1, tap) : 0.f);
}

// The same of a small convolution for the forward, and behind it the biases; esa_layer_words.
template <class T>
__device__ __forceinline__ uint32_t layer_word(const EsaConv& conv, int i, int f, int wide) {
  if (kSmallProducts<T> && i < conv2_words<T>(wide)) return conv2_word<T>(conv, i, f, wide);
  return __float_as_uint(layer_weight(conv, i, f, wide));
}

// Where the parts begin in what the backward reads, in words.
struct EsaPacked {
  int64_t wf, w4, bf, b4, small, w1t, w2t, wft, w4t, end;
};

template <class T>
struct EsaPack {
  EsaWeights w;
  EsaPacked at;
  uint32_t* to;
  uint4* border;  // c1 with a margin of a pixel, which is set to 0
  int64_t border_parts;
  int c, f, wide, layers, h, width;
};

template <class T>
__device__ __forceinline__ uint32_t esa_word(int64_t i, const EsaPack<T>& a) {
  const EsaPacked& at = a.at;
  const EsaWeights& w = a.w;
  const int f = a.f, c = a.c;
  const int64_t tap_words = product_block_bytes<T>(f) / 4;
  if (i < at.w4) return product_word<T>(i - at.wf, f, [&](int o, int j) { return matrix_at(w.wf, o, j, f, f); });
  if (i < at.bf) return product_word<T>(i - at.w4, f, [&](int o, int j) { return matrix_at(w.w4, o, j, c, f); });
  if (i < at.b4) return __float_as_uint(vector_at(w.bf, i - at.bf, f));
  if (i < at.small) return __float_as_uint(vector_at(w.b4, i - at.b4, c));
  if (i < at.w1t) {
    const int64_t j = i - at.small, words = esa_layer_words(a.wide);
    return __float_as_uint(layer_weight(w.conv[1 + j / words], j % words, f, a.wide));
  }
  if (i < at.w2t) return product_word<T>(i - at.w1t, f, [&](int o, int j) { return matrix_at(w.w1, j, o, f, c); });
  if (i < at.wft)
    return product_word<T>((i - at.w2t) % tap_words, f, [&](int o, int j) {
      return w.conv[0].dense(f, j, o, static_cast<int>((i - at.w2t) / tap_words));
    });
  if (i < at.w4t) return product_word<T>(i - at.wft, f, [&](int o, int j) { return matrix_at(w.wf, j, o, f, f); });
  return product_word<T>(i - at.w4t, c, [&](int o, int j) { return matrix_at(w.w4, j, o, c, f); });
}

template <class T>
__global__ void __launch_bounds__(kProductThreads) esa_pack_kernel(const EsaPack<T> a) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kProductThreads + threadIdx.x;
  if (i < a.at.end) {
    a.to[i] = esa_word<T>(i, a);
    return;
  }
  i -= a.at.end;
  if (i >= a.border_parts) return;
  const int of_pixel = a.wide * static_cast<int>(sizeof(T)) / 16;
  const int64_t around = 2 * (static_cast<int64_t>(a.width) + 2) + 2 * a.h, n = i / of_pixel / around;
  const int64_t k = i / of_pixel % around, across = a.width + 2;
  int64_t y = 0, x = k;  // the first row, the last one, the first and last columns
  if (k >= 2 * across)
    y = 1 + (k - 2 * across) / 2, x = (k - 2 * across) % 2 * (across - 1);
  else if (k >= across)
    y = a.h + 1, x = k - across;
  a.border[((n * (a.h + 2) + y) * across + x) * of_pixel + i % of_pixel] = make_uint4(0, 0, 0, 0);
}

}  // namespace fastsr::cuda
