// The three depthwise convolutions of a plane of u. On tensor cores a convolution is a product with a Toeplitz matrix
// of the filter: 1xk is data x Toeplitz, kx1 Toeplitz x data, 3x3 three data x Toeplitz on shifted rows. float32 takes
// FMA.
#pragma once

#include "alk_tile.cuh"

namespace fastsr::cuda {

// One channel's filters as a lane needs them.
template <class P>
struct Filters {
  using T = typename P::T;
  uint32_t r[kTensorCores<T> ? (P::kRegisters + 3) / 4 * 4 : 1];
  const float* taps;

  __device__ __forceinline__ void load(const unsigned char* packed, int channel) {
    packed += static_cast<int64_t>(channel) * P::kFilterBytes;
    taps = reinterpret_cast<const float*>(packed);
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < (P::kRegisters + 3) / 4; ++i) {
        const uint4 q = reinterpret_cast<const uint4*>(packed)[i * 32 + threadIdx.x % 32];
        r[4 * i] = q.x, r[4 * i + 1] = q.y, r[4 * i + 2] = q.z, r[4 * i + 3] = q.w;
      }
    } else if constexpr (kTensorCores<T>) {
      const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
      const uint32_t* diagonal = reinterpret_cast<const uint32_t*>(packed) + kBeforeDiagonals - g;
#pragma unroll
      for (int i = 0; i < P::kOfAcross; ++i) {
        r[i] = diagonal[i / 2 * 8 + 2 * t + i % 2];                                      // columns 2 t, 2 t + 1
        r[P::kOfAcross + P::kOfSmall + i] = diagonal[P::S + i / 2 * 8 + t + i % 2 * 4];  // rows t, t + 4
      }
#pragma unroll
      for (int i = 0; i < P::kOfSmall; ++i)
        r[P::kOfAcross + i] = diagonal[2 * P::S + i / 4 * kSmallDiagonals + i % 4 / 2 * 8 + 2 * t + i % 2];
    }
  }
};

// The three convolutions of one plane in columns [8 half, 8 half + 8) of the tile, each added to `sum`. Lane (g, t)
// holds rows r, r, r + 8, r + 8 for r = P::row(g), and columns 2 t, 2 t + 1, 2 t, 2 t + 1.

// 16 columns (8 in TF32) of a row and of the eighth below it times two registers of a Toeplitz matrix. Four (two)
// adjacent pixels a lane: the packed filters have their rows in this order.
template <class P, class T = typename P::T>
__device__ __forceinline__ void multiply_rows(const T* row, uint32_t b0, uint32_t b1, float (&sum)[4]) {
  const int first = threadIdx.x % 4 * 8 / static_cast<int>(sizeof(T));
  const uint2 a = *reinterpret_cast<const uint2*>(row + first);
  const uint2 b = *reinterpret_cast<const uint2*>(row + 8 * P::kRow + first);
  mma<T>(sum, a.x, b.x, a.y, b.y, b0, b1);
}

// kx1: Toeplitz x data.
template <class P, class T = typename P::T>
__device__ __forceinline__ void convolve_down(const T* plane, const Filters<P>& f, int half, float (&sum)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t* a = f.r + P::kOfAcross + P::kOfSmall;
  if constexpr (sizeof(T) == 2) {  // a: of rows r; those of rows r + 8 are the step before
#pragma unroll
    for (int j = 0; j < P::kDown; j += 4) {
      uint32_t b[4];
      const int row = min(8 * j + lane, P::S - 1);
      load_matrices_transposed(b, plane + P::kStart + row * P::kRow + P::kMargin + 8 * half);
#pragma unroll
      for (int i = 0; i < 4 && j + i < P::kDown; i += 2) {
        const uint32_t before = j + i > 0 ? a[j + i - 1] : 0;
        if (j + i + 1 < P::kDown)
          mma_k16<T>(sum, a[j + i], before, a[j + i + 1], a[j + i], b[i], b[i + 1]);
        else
          mma_k8<T>(sum, a[j + i], before, b[i]);
      }
    }
  } else if constexpr (kTensorCores<T>) {  // two words of rows g a step
    const T* b = plane + t * P::kRow + P::kMargin + 8 * half + g;
#pragma unroll
    for (int j = 0; j < P::kDown; ++j, b += 8 * P::kRow) {
      const uint32_t b0 = __float_as_uint(to_float(b[0])), b1 = __float_as_uint(to_float(b[4 * P::kRow]));
      uint32_t of_step[4] = {};
      if (j < P::kAcross) of_step[0] = a[2 * j], of_step[2] = a[2 * j + 1];
      if (j > 0) of_step[1] = a[2 * j - 2], of_step[3] = a[2 * j - 1];
      mma_tf32(sum, of_step[0], of_step[1], of_step[2], of_step[3], b0, b1);
    }
  } else {
    const float* from = plane + g * P::kRow + P::kMargin + 8 * half + 2 * t;
#pragma unroll 3
    for (int i = 0; i < P::kWindow; ++i)
#pragma unroll
      for (int hi = 0; hi < 2; ++hi) {
        const float2 v = *reinterpret_cast<const float2*>(from + (i + 8 * hi) * P::kRow);
        sum[2 * hi] = fmaf(f.taps[i], v.x, sum[2 * hi]);
        sum[2 * hi + 1] = fmaf(f.taps[i], v.y, sum[2 * hi + 1]);
      }
  }
}

// 1xk: data x Toeplitz.
template <class P, class T = typename P::T>
__device__ __forceinline__ void convolve_across(const T* plane, const Filters<P>& f, int half, float (&sum)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const T* corner = plane + P::kStart + (P::row(g) + P::kMargin) * P::kRow + 8 * half;
  if constexpr (kTensorCores<T>) {
    constexpr int kGroups = 4 / sizeof(T);  // of eight columns, in a product
#pragma unroll
    for (int i = 0; i + kGroups <= P::kAcross; i += kGroups)
      multiply_rows<P>(corner + 8 * i, f.r[2 * i / kGroups], f.r[2 * i / kGroups + 1], sum);
    if constexpr (P::kAcross % kGroups == 1) {
      const T* row = corner + 8 * (P::kAcross - 1) + 2 * t;
      mma_k8<T>(sum, *reinterpret_cast<const uint32_t*>(row), *reinterpret_cast<const uint32_t*>(row + 8 * P::kRow),
                f.r[P::kAcross - 1]);
    }
  } else {
    const float* taps = f.taps + P::kWindow;
#pragma unroll 3
    for (int i = 0; i < P::kWindow; ++i)
#pragma unroll
      for (int hi = 0; hi < 2; ++hi) {
        const float* v = corner + 8 * hi * P::kRow + 2 * t + i;
        sum[2 * hi] = fmaf(taps[i], v[0], sum[2 * hi]);
        sum[2 * hi + 1] = fmaf(taps[i], v[1], sum[2 * hi + 1]);
      }
  }
}

// 3x3: data x Toeplitz for each row of the filter.
template <class P, class T = typename P::T>
__device__ __forceinline__ void convolve_small(const T* plane, const Filters<P>& f, int half, float (&sum)[4]) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const T* corner = plane + P::kStart + (P::row(g) + P::kMargin - 1) * P::kRow + 8 * half;
  if constexpr (kTensorCores<T>) {
    constexpr int kOfRow = sizeof(T) / 2;  // products
    const uint32_t* b = f.r + P::kOfAcross;
#pragma unroll
    for (int i = 0; i < 3 * kOfRow; ++i)
      multiply_rows<P>(corner + i / kOfRow * P::kRow + P::kSmallStart + i % kOfRow * 8, b[2 * i], b[2 * i + 1], sum);
  } else {
    const float* taps = f.taps + 2 * P::kWindow;
#pragma unroll
    for (int i = 0; i < 3; ++i)
#pragma unroll
      for (int j = 0; j < 3; ++j)
#pragma unroll
        for (int hi = 0; hi < 2; ++hi) {
          const float* v = corner + (i + 8 * hi) * P::kRow + P::kMargin - 1 + j + 2 * t;
          sum[2 * hi] = fmaf(taps[3 * i + j], v[0], sum[2 * hi]);
          sum[2 * hi + 1] = fmaf(taps[3 * i + j], v[1], sum[2 * hi + 1]);
        }
  }
}

}  // namespace fastsr::cuda
