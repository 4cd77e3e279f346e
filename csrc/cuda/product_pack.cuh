// The order in which product.cuh reads weights.
#pragma once

#include "product.cuh"

namespace fastsr::cuda {

// Channels that lie on 16 bytes in float16.
__host__ __device__ constexpr int padded_to_eight(int channels) { return (channels + 7) / 8 * 8; }

template <class T>
__device__ __forceinline__ uint32_t as_word(float low, float high) {
  if constexpr (__is_same(T, Tf32))
    return to_tf32(low);
  else if constexpr (sizeof(T) == 4)
    return __float_as_uint(low);
  else
    return pack2<T>(low, high);
}

// Word `i` of a product's weights [outputs][inputs], given by `weight(output, input)` that is 0 outside.
template <class T, class Weight>
__device__ __forceinline__ uint32_t product_word(int64_t i, int inputs, Weight weight) {
  const int chunks = blocks_of(inputs);
  if constexpr (!kTensorCores<T>) {
    const int64_t row = i / 8;
    return as_word<T>(weight(static_cast<int>(row / (chunks * kBlock)) * 8 + static_cast<int>(i % 8),
                             static_cast<int>(row % (chunks * kBlock))),
                      0.f);
  } else {
    constexpr int kChunk = 256 * kSteps<T>, kOfWord = 4 / static_cast<int>(sizeof(T));
    const int word = i % 4, lane = i / 4 % 32, half = i / 128 % 2, step = i / 256 % kSteps<T>;
    const int chunk = i / kChunk % chunks, block = static_cast<int>(i / kChunk / chunks);
    const int g = lane / 4, t = lane % 4, m = 2 * half + word / 2;
    const int output = kBlock * block + g / 2 * 8 + 2 * m + g % 2;
    const int input = kBlock * chunk + 8 * t + (2 * step + word % 2) * kOfWord;
    return as_word<T>(weight(output, input), kOfWord == 2 ? weight(output, input + 1) : 0.f);
  }
}

// Packs a product's weights for `blocks` blocks of outputs, by all threads of a CTA, to where it alone reads them.
template <class T, class Weight>
__device__ __forceinline__ void pack_product(uint32_t* to, int blocks, int inputs, Weight weight) {
  const int words = blocks * static_cast<int>(product_block_bytes<T>(inputs) / 4);
#pragma unroll 1
  for (int i = threadIdx.x; i < words; i += kProductThreads) to[i] = product_word<T>(i, inputs, weight);
}

}  // namespace fastsr::cuda
