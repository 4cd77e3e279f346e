// The weights of a 3x3 convolution in shared memory, in the order in which its kernel reads them.
//
// Each CTA writes them itself, once for all of its tiles: a kernel that packs would be one launch more per call, and a
// copy that outlives the call could be out of date.
#pragma once

#include "parameter.cuh"
#include "tf32.cuh"

namespace fastsr::cuda {

// [outputs][inputs][3][3]; transposed, the adjoint of the convolution with [inputs][outputs][3][3].
struct Conv3x3Weights {
  Parameter data;
  int outputs, inputs, transposed;

  __device__ __forceinline__ int64_t filter(int output, int input) const {
    return 9 * (transposed ? static_cast<int64_t>(input) * outputs + output
                           : static_cast<int64_t>(output) * inputs + input);
  }
};

// Channels in at a time: 73 KB of weights for 64 channels out, or 38 KB.
template <class T>
constexpr int conv_inputs = kTensorCores<T> ? 128 / static_cast<int>(sizeof(T)) : 16;

// float32: [input][tap][output], inputs apart by so much that they begin on different banks.
__host__ __device__ constexpr int conv_float_pitch(int n) { return 9 * 16 * n + 4; }

// 32-bit words for 16 * `n` channels out.
template <class T>
constexpr int conv_weight_words(int n) {
  return kTensorCores<T> ? conv_inputs<T> / product_depth<T> * 9 * n * 128 : conv_inputs<T> * conv_float_pitch(n);
}

template <class T, class P>
__device__ __forceinline__ uint32_t packed_pair(const P& low, const P& high) {
  if constexpr (__is_same(T, P))
    return reinterpret_cast<const uint16_t&>(low) | static_cast<uint32_t>(reinterpret_cast<const uint16_t&>(high))
                                                        << 16;
  else
    return pack2<T>(to_float(low), to_float(high));
}

// Outputs from k0 on, inputs [c0, c0 + channels) and zeros up to the next multiple of 16 (of 8 in TF32, 4 in float32).
template <class T, int N, int Threads>
__device__ __forceinline__ void pack_conv_weights(const Conv3x3Weights& w, int k0, int c0, int channels, uint32_t* to) {
  // Filters are read in the order of memory; an invalid one is read from the beginning and then masked.
  const int turn = w.transposed ? 8 : 0, step = w.transposed ? -1 : 1;
  w.data.typed([&](const auto* filters) {
    if constexpr (sizeof(T) == 2) {
      // Fragments: [16 inputs][tap][16 outputs][lane][4]. A thread takes two inputs of an output, all taps.
      const int pairs = (channels + 15) / 16 * 8;
#pragma unroll 1
      for (int i = threadIdx.x; i < conv_inputs<T> / 2 * 16 * N; i += Threads) {
        const int pair = i % (conv_inputs<T> / 2), output = i / (conv_inputs<T> / 2), input = 2 * pair;
        if (pair >= pairs) continue;
        const bool low = k0 + output < w.outputs && input < channels, high = low && input + 1 < channels;
        const uint32_t mask = high ? 0xffffffffu : low ? 0xffffu : 0u;
        const auto* first = filters + (low ? w.filter(k0 + output, c0 + input) : 0);
        const auto* second = filters + (high ? w.filter(k0 + output, c0 + input + 1) : 0);
        const int lane = output % 8 * 4 + pair % 4, word = output / 8 % 2 * 2 + pair / 4 % 2;
        uint32_t* at = to + ((pair / 8 * 9 + turn) * N + output / 16) * 128 + 4 * lane + word;
#pragma unroll
        for (int tap = 0; tap < 9; ++tap, at += step * N * 128) *at = mask & packed_pair<T>(first[tap], second[tap]);
      }
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < conv_inputs<T> * 16 * N; i += Threads) {
        const int input = i % conv_inputs<T>, output = i / conv_inputs<T>;
        constexpr int kUpTo = kTensorCores<T> ? 8 : 4, kTap = kTensorCores<T> ? 128 * N : 16 * N;
        if (input >= (channels + kUpTo - 1) / kUpTo * kUpTo) continue;
        const bool inside = k0 + output < w.outputs && input < channels;
        const auto* filter = filters + (inside ? w.filter(k0 + output, c0 + input) : 0);
        uint32_t* at = to + turn * kTap;
        if constexpr (kTensorCores<T>)  // fragments: [8 inputs][tap][16 outputs][lane][4]
          at += (input / 8 * 9 * N + output / 16) * 128 + output % 8 * 16 + input % 4 * 4 + output / 8 % 2 * 2 +
                input / 4 % 2;
        else
          at += input * conv_float_pitch(N) + output;
#pragma unroll
        for (int tap = 0; tap < 9; ++tap, at += step * kTap)
          *at = !inside ? 0 : kTensorCores<T> ? to_tf32(to_float(filter[tap])) : __float_as_uint(to_float(filter[tap]));
      }
    }
  });
}

}  // namespace fastsr::cuda
