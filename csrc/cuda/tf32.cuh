// Tf32 as a kernel's number type: float32 maps whose products may be of TF32, on the tensor cores.
#pragma once

#include "map.cuh"

namespace fastsr::cuda {

struct Tf32 {  // in memory as float is
  float value;
};
__device__ __forceinline__ float to_float(Tf32 x) { return x.value; }

// In float32 proper, products are FMAs.
template <class T>
constexpr bool kTensorCores = !__is_same(T, float);

// Channels of a product, K: 32 bytes.
template <class T>
constexpr int product_depth = 32 / static_cast<int>(sizeof(T));

// Two words of every row of either operand.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  if constexpr (__is_same(T, Tf32))
    mma_tf32(d, a0, a1, a2, a3, b0, b1);
  else
    mma_k16<T>(d, a0, a1, a2, a3, b0, b1);
}

// Makes of words of T, as they were loaded, what products take.
template <class T, int Words>
__device__ __forceinline__ void for_product(uint32_t (&word)[Words]) {
  if constexpr (__is_same(T, Tf32)) {
#pragma unroll
    for (int i = 0; i < Words; ++i) word[i] = to_tf32(__uint_as_float(word[i]));
  }
}

// The same for one number that is computed.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return __is_same(T, Tf32) ? __uint_as_float(to_tf32(x)) : x;
}

// What kernels without products take in place of T.
template <class T>
using Stored = std::conditional_t<__is_same(T, Tf32), float, T>;

}  // namespace fastsr::cuda
