// Sums over pixels without atomics: kernels with a fixed grid write one row of float32 partial sums per CTA, and this
// adds the rows up in a fixed order. The grid does not depend on the device, so results are bit-equal everywhere.
#pragma once

#include "device.cuh"

namespace fastsr::cuda {

constexpr int kMaxParts = 256;

// One gradient: element i is the sum over rows of column begin + i / width * pitch + i % width * step.
struct PartialSum {
  const float* rows;
  void* to;
  int64_t count, width, pitch, begin, row_size, step = 1;
  bool in_float32 = false;  // whatever the dtype of the others is
};

struct PartialSums {
  static constexpr int kMost = 14;
  PartialSum sums[kMost];
  int64_t first_block[kMost + 1];  // of each gradient
  int parts, dtype;                // number of rows; dtype of the gradients
};

constexpr int kSumColumns = 32, kSumThreads = 256;

inline void add_sum(PartialSums& all, int* count, const PartialSum& sum) {
  if (*count == 0) all.first_block[0] = 0;
  all.sums[*count] = sum;
  all.first_block[*count + 1] = all.first_block[*count] + (sum.count + kSumColumns - 1) / kSumColumns;
  ++*count;
  for (int i = *count + 1; i <= PartialSums::kMost; ++i) all.first_block[i] = all.first_block[*count];
}

template <int Threads>
__global__ void __launch_bounds__(Threads) sum_partials_kernel(const PartialSums all) {
  FASTSR_SHARED_MEMORY(memory);
  float* sums = reinterpret_cast<float*>(memory);  // [8 rows][32 columns]
  int which = 0;
  while (which + 1 < PartialSums::kMost && all.first_block[which + 1] <= blockIdx.x) ++which;
  const PartialSum& s = all.sums[which];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t i = (blockIdx.x - all.first_block[which]) * kSumColumns + lane;
  float sum = 0.f;
  if (i < s.count) {
    const float* from = s.rows + s.begin + i / s.width * s.pitch + i % s.width * s.step;
#pragma unroll 4
    for (int row = warp; row < all.parts; row += Threads / 32) sum += from[row * s.row_size];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || i >= s.count) return;
#pragma unroll
  for (int w = 1; w < Threads / 32; ++w) sum += sums[w * 32 + lane];
  const int dtype = s.in_float32 ? 0 : all.dtype;
  if (dtype == 0)
    static_cast<float*>(s.to)[i] = sum;
  else if (dtype == 1)
    static_cast<Half*>(s.to)[i] = from_float<Half>(sum);
  else
    static_cast<BFloat16*>(s.to)[i] = from_float<BFloat16>(sum);
}

// Of the `count` gradients that were added.
inline cudaError_t sum_partials(const PartialSums& all, int count, cudaStream_t stream) {
  constexpr int kShared = kSumThreads * static_cast<int>(sizeof(float));
  return launch(sum_partials_kernel<kSumThreads>, all.first_block[count], kSumThreads, kShared, stream, all);
}

// Rows of partial sums for a kernel that has `blocks` CTAs for each: enough CTAs, but few rows.
inline int sum_parts(int64_t tiles, int64_t blocks) {
  const int64_t wanted = blocks < 1 ? kMaxParts : (2 * kMaxParts + blocks - 1) / blocks;
  const int64_t parts = wanted < 32 ? 32 : wanted < kMaxParts ? wanted : kMaxParts;
  return static_cast<int>(tiles < parts ? tiles : parts);
}

// The same if each of `images` has rows of its own.
inline unsigned parts_of_image(int64_t images) {
  return images < kMaxParts ? static_cast<unsigned>(kMaxParts / images) : 1;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

}  // namespace fastsr::cuda
