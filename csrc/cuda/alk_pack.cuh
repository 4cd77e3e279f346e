// Writes the weights of an ALKConv in the order in which its kernels read them: fragments of matrix products, Toeplitz
// matrices of the filters, float32 vectors. One thread per 32-bit word.
#pragma once

#include "alk_tile.cuh"
#include "parameter.cuh"
#include "product_pack.cuh"

namespace fastsr::cuda {

struct AlkParameters {
  Parameter d_weight, d_bias, pw_weight, lora1_weight, lora1_bias, lora2_weight, lora2_bias, small_weight, small_bias,
      norm_weight, norm_bias;
};

// Where the parts begin, in words, each on 16 bytes. `back` and `reversed` are for the backward only.
struct AlkPacked {
  int64_t rows, filters, vectors, distil, distil_bias, back, reversed, end;
};

template <class T>
struct AlkPack {
  AlkParameters w;
  AlkPacked at;
  uint32_t* to;
  int c, k, d, filter_taps, side, pass_channels;
};

// As `product_word`, for the product that makes u, whose rows are the channels out.
template <class T, class Weight>
__device__ __forceinline__ uint32_t row_word(int64_t i, int inputs, Weight weight) {
  if constexpr (!kTensorCores<T>) {
    return product_word<T>(i, inputs, weight);
  } else {
    constexpr int kChunk = 128 * kSteps<T>, kOfWord = 4 / static_cast<int>(sizeof(T));
    const int chunks = blocks_of(inputs);
    const int word = i % 4, lane = i / 4 % 32, step = i / 128 % kSteps<T>;
    const int chunk = i / kChunk % chunks, tile = static_cast<int>(i / kChunk / chunks);
    const int g = lane / 4, t = lane % 4;
    const int output = 16 * tile + g + word % 2 * 8, input = kBlock * chunk + 8 * t + (2 * step + word / 2) * kOfWord;
    return as_word<T>(weight(output, input), kOfWord == 2 ? weight(output, input + 1) : 0.f);
  }
}

// Word `i` of the filters, reversed if asked for: per channel, registers of the lanes (`Plane::kRegisters`), diagonals
// in TF32, taps in float32.
template <class T>
__device__ __forceinline__ uint32_t filter_word(int64_t i, const AlkPack<T>& a, bool reversed) {
  const int margin = a.side / 2 - 8, window = 2 * margin + 1, shift = margin - a.filter_taps / 2;
  const auto large = [&](const Parameter& p, int channel, int tap) {
    tap -= shift;
    if (tap < 0 || tap >= a.filter_taps) return 0.f;
    return p[static_cast<int64_t>(channel) * a.filter_taps + (reversed ? a.filter_taps - 1 - tap : tap)];
  };
  const auto small = [&](int channel, int row, int tap) {
    if (tap < 0 || tap >= 3) return 0.f;
    return a.w.small_weight[channel * 9 + (reversed ? 8 - 3 * row - tap : 3 * row + tap)];
  };
  if constexpr (kTensorCores<T> && sizeof(T) == 4) {
    const int words = diagonals_of(a.side), diagonal = i % words, channel = static_cast<int>(i / words);
    if (diagonal < a.side) return as_word<T>(large(a.w.lora2_weight, channel, diagonal - kBeforeDiagonals), 0.f);
    if (diagonal < 2 * a.side)
      return as_word<T>(large(a.w.lora1_weight, channel, diagonal - a.side - kBeforeDiagonals), 0.f);
    const int in_small = diagonal - 2 * a.side, start = (margin - 1) / 4 * 4;
    const int tap = in_small % kSmallDiagonals - kBeforeDiagonals + start - margin + 1;
    return as_word<T>(small(channel, in_small / kSmallDiagonals, tap), 0.f);
  } else if constexpr (sizeof(T) == 4) {
    const int words = (2 * window + 9 + 3) / 4 * 4, tap = i % words, channel = static_cast<int>(i / words);
    if (tap < window) return as_word<T>(large(a.w.lora1_weight, channel, tap), 0.f);
    if (tap < 2 * window) return as_word<T>(large(a.w.lora2_weight, channel, tap - window), 0.f);
    const int in_small = tap - 2 * window;
    if (in_small < 9) return as_word<T>(small(channel, in_small / 3, in_small % 3), 0.f);
    return 0;
  } else {
    const int across = (a.side - 8) / 8, down = a.side / 8, registers = across + 6 + down;
    const int groups = (registers + 3) / 4, lane = i / 4 % 32, channel = static_cast<int>(i / 128 / groups);
    const int r = i / 128 % groups * 4 + i % 4, g = lane / 4, t = lane % 4;
    if (r < across) {  // a pair of registers covers 16 columns, four adjacent ones a lane
      const int column = r / 2 * 2 + 1 < across ? r / 2 * 16 + 4 * t + r % 2 * 2 : 8 * r + 2 * t;
      return as_word<T>(large(a.w.lora2_weight, channel, column - g), large(a.w.lora2_weight, channel, column + 1 - g));
    }
    if (r < across + 6) {
      const int row = (r - across) / 2, start = (margin - 1) / 4 * 4;
      const int tap = start + 4 * t + (r - across) % 2 * 2 - g - margin + 1;
      return as_word<T>(small(channel, row, tap), small(channel, row, tap + 1));
    }
    if (r < registers) {
      const int tap = 8 * (r - across - 6) + 2 * t - Plane<T, 24, 1>::row(g);
      return as_word<T>(large(a.w.lora1_weight, channel, tap), large(a.w.lora1_weight, channel, tap + 1));
    }
    return 0;
  }
}

template <class T>
__device__ __forceinline__ uint32_t alk_word(int64_t i, const AlkPack<T>& a) {
  const AlkPacked& at = a.at;
  const int padded_k = blocks_of(a.k) * kBlock;
  const auto pointwise = [&](const Parameter& p, int outputs, int output, int input) {
    return output < outputs && input < a.c ? p[static_cast<int64_t>(output) * a.c + input] : 0.f;
  };
  uint32_t word = 0;
  if (i < at.filters) {
    word = row_word<T>(i - at.rows, a.c, [&](int o, int j) { return pointwise(a.w.pw_weight, a.k, o, j); });
  } else if (i < at.vectors) {
    word = filter_word<T>(i - at.filters, a, false);
  } else if (i < at.distil) {
    const int which = static_cast<int>((i - at.vectors) / padded_k),
              channel = static_cast<int>((i - at.vectors) % padded_k);
    const Parameter& part = which == 0   ? a.w.lora1_bias
                            : which == 1 ? a.w.lora2_bias
                            : which == 2 ? a.w.small_bias
                            : which == 3 ? a.w.norm_weight
                                         : a.w.norm_bias;
    word = __float_as_uint(channel < a.k ? part[channel] : 0.f);
  } else if (i < at.distil_bias) {
    word = product_word<T>(i - at.distil, a.c, [&](int o, int j) { return pointwise(a.w.d_weight, a.d, o, j); });
  } else if (i < at.back) {
    word = __float_as_uint(i - at.distil_bias < a.d ? a.w.d_bias[i - at.distil_bias] : 0.f);
  } else if (i < at.reversed) {  // inputs are u's gradients and then D's, outputs are x's
    const int k8 = padded_to_eight(a.k);
    word = product_word<T>(i - at.back, k8 + a.d, [&](int o, int j) {
      if (o >= a.c || (j >= a.k && j < k8) || j >= k8 + a.d) return 0.f;
      return j < a.k ? a.w.pw_weight[static_cast<int64_t>(j) * a.c + o]
                     : a.w.d_weight[static_cast<int64_t>(j - k8) * a.c + o];
    });
  } else {
    word = filter_word<T>(i - at.reversed, a, true);
  }
  return word;
}

template <class T>
__global__ void __launch_bounds__(kThreads) alk_pack_kernel(const AlkPack<T> a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < a.at.end) a.to[i] = alk_word(i, a);
}

// The same weights for FMA and for TF32.
template <class T>
struct AlkPacks {
  AlkPack<T> plain;
  AlkPack<Tf32> tf32;
};

template <class T>
__global__ void __launch_bounds__(kThreads) alk_packs_kernel(const AlkPacks<T> a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, behind = i - a.plain.at.end;
  if (behind < 0)
    a.plain.to[i] = alk_word(i, a.plain);
  else if (behind < a.tf32.at.end)
    a.tf32.to[behind] = alk_word(behind, a.tf32);
}

}  // namespace fastsr::cuda
