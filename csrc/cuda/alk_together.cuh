// The weights of many ALKConvs, written by one launch: words and their order are those of alk_pack.cuh and
// alk_condense.cuh.
#pragma once

#include "alk_condense.cuh"
#include "alk_together.h"

namespace fastsr::cuda {

// The orders in which the kernels for maps of T read weights, one behind the other in memory.
template <class T>
struct AlkOrders {
  CondensePack<T> plain;
};
template <>
struct AlkOrders<float> {
  CondensePack<float> plain;
  CondensePack<Tf32> tf32;
};

template <class T>
struct AlkTogether {
  AlkOrders<T> parts[kMostTogether];
  unsigned blocks;  // CTAs for each part, as many as the largest needs
};
// Arguments of a kernel have had room for that since CUDA 12.1.
static_assert(sizeof(AlkTogether<float>) <= 32764 && sizeof(AlkTogether<Half>) <= 32764);

template <class T>
__global__ void __launch_bounds__(kThreads, 4) alk_pack_together_kernel(const AlkTogether<T> a) {
  const AlkOrders<T>& part = a.parts[blockIdx.x / a.blocks];
  int64_t i = static_cast<int64_t>(blockIdx.x % a.blocks) * kThreads + threadIdx.x;
  if (i < part.plain.at.end) {
    part.plain.alk.to[i] = condense_word(i, part.plain);
  } else if constexpr (__is_same(T, float)) {
    i -= part.plain.at.end;
    if (i < part.tf32.at.end) part.tf32.alk.to[i] = condense_word(i, part.tf32);
  }
}

}  // namespace fastsr::cuda
