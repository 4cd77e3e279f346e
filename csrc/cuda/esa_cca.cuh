// esa and cca_norm behind one another, for inference. The gate takes the statistics of what it writes along, and what
// applies the channel attention makes it first, each CTA for itself:
//
//   v = x sigmoid(conv4(z));  mean, sum of squared deviations of each part of the pixels       esa_moments_kernel
//   scale = sigmoid(W2 relu(W0 (sqrt(variance) + mean) + b0) + b2);  y = norm(v scale) + shortcut   cca_finish_kernel
#pragma once

#include "cca_attention.cuh"
#include "cca_norm.cuh"
#include "esa_gate.cuh"

namespace fastsr::cuda {

constexpr int kMomentBlocks = 2, kMomentWarps = kProductThreads / 32;  // blocks of channels that a CTA takes

template <class T>
struct EsaMoments {
  Esa<T> esa;
  float* moments;        // [image][part][mean, sum of squares][C]
  unsigned part, parts;  // pixels of a part, parts of an image
};

// Mean and sum of squared deviations of eight channels, by running means (Welford) and Chan's rule: no digits are lost
// where the mean is large, and a constant channel has exactly 0 deviations.
struct RunningMoments {
  float mean[8] = {}, squares[8] = {};

  // `share`: 1 / the number of values, with this one.
  __device__ __forceinline__ void add(const float (&v)[8], float share) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float d = v[i] - mean[i];
      mean[i] = fmaf(d, share, mean[i]);
      squares[i] = fmaf(d, v[i] - mean[i], squares[i]);
    }
  }
};

// Takes `more` values of another mean into `count` ones.
__device__ __forceinline__ void merge_moments(float& mean, float& squares, float count, float other_mean,
                                              float other_squares, float more) {
  const float total = count + more, share = total > 0.f ? more / total : 0.f, d = other_mean - mean;
  mean = fmaf(d, share, mean);
  squares += fmaf(d * d, count * share, other_squares);
}

// CTAs that a multiprocessor has registers for.
template <class T>
constexpr int kMomentsResident = sizeof(T) == 4 ? 1 : 2;

template <class T>
int esa_moments_shared(const EsaShape& s) {
  return gate_shared<T>(s) + kMomentWarps * (kMomentBlocks * kBlock * static_cast<int>(sizeof(float2)) + 4);
}

template <class T>
__global__ void __launch_bounds__(kProductThreads, kMomentsResident<T>) esa_moments_kernel(const EsaMoments<T> m) {
  FASTSR_SHARED_MEMORY(memory);
  const Esa<T>& a = m.esa;
  const EsaShape& s = a.s;
  const GateWeights w = pack_gate(a, memory);
  // [warp][channel], spread
  float2* of_warps = reinterpret_cast<float2*>(const_cast<float*>(w.b4) + blocks_of(s.c) * kBlock);
  float* counts = reinterpret_cast<float*>(of_warps + kMomentWarps * kMomentBlocks * kBlock);
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4;
  const unsigned groups = (blocks_of(s.c) + kMomentBlocks - 1) / kMomentBlocks, of_all = blockIdx.x / groups;
  const unsigned image = of_all / m.parts, first = of_all % m.parts * m.part;
  const unsigned end = min(first + m.part, static_cast<unsigned>(s.h) * s.w);
  const int c0 = static_cast<int>(blockIdx.x % groups) * kMomentBlocks * kBlock;
  RunningMoments running[kMomentBlocks];
  float count = 0.f;
  for (unsigned begin = first; begin < end; begin += kProductPixels) {
    const LanePixels at(image, begin, end, s.w);
    Eight<T> x[kMomentBlocks][2];  // on their way while z is computed
    const auto fetch = [&](int block, int p) {
      const int c = c0 + block * kBlock + 8 * t;
      if (at.x[p] >= 0 && c < s.c) x[block][p] = a.x.load(at.offset(a.x, p), c);
    };
    if constexpr (kTensorCores<T>) {
#pragma unroll
      for (int i = 0; i < 2 * kMomentBlocks; ++i) fetch(i / 2, i % 2);
    }
    Eight<T> z[2];
    gate_input(a, w, at, z);
    const float share[2] = {1.f / (count + 1.f), 1.f / (count + 2.f)};
#pragma unroll
    for (int block = 0; block < kMomentBlocks; ++block) {
      const int c = c0 + block * kBlock + 8 * t;
      if (c0 + block * kBlock >= s.c) break;
      float sum[2][8];
#pragma unroll
      for (int i = 0; i < 16; ++i) sum[i / 8][i % 8] = w.b4[c + i % 8];
      lane_product<T>(z, w.w4 + (c0 / kBlock + block) * product_block_bytes<T>(s.f), s.f, 0, sum);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        if constexpr (!kTensorCores<T>) fetch(block, p);
        if (at.x[p] < 0 || c >= s.c) continue;
        float v[8];
        to_floats(x[block][p], v);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= gate_sigmoid<T>(sum[p][i]);
        a.y.store(at.offset(a.y, p), c, to_eight<T>(v));
        running[block].add(v, share[p]);
      }
    }
    count += (at.x[0] >= 0 ? 1.f : 0.f) + (at.x[1] >= 0 ? 1.f : 0.f);
  }
  // Lanes of the same channels, then warps.
#pragma unroll
  for (int bit = 4; bit < 32; bit *= 2) {
    const float more = __shfl_xor_sync(0xffffffffu, count, bit);
#pragma unroll
    for (int i = 0; i < 8 * kMomentBlocks; ++i) {
      RunningMoments& r = running[i / 8];
      const float mean = __shfl_xor_sync(0xffffffffu, r.mean[i % 8], bit);
      const float squares = __shfl_xor_sync(0xffffffffu, r.squares[i % 8], bit);
      merge_moments(r.mean[i % 8], r.squares[i % 8], count, mean, squares, more);
    }
    count += more;
  }
  if (lane < 4) {
#pragma unroll
    for (int i = 0; i < 8 * kMomentBlocks; i += 2) {
      const RunningMoments& r = running[i / 8];
      float2* to = of_warps + spread<float2>((warp * kMomentBlocks + i / 8) * kBlock + 8 * t + i % 8);
      *reinterpret_cast<float4*>(to) =
          make_float4(r.mean[i % 8], r.squares[i % 8], r.mean[i % 8 + 1], r.squares[i % 8 + 1]);
    }
    if (lane == 0) counts[warp] = count;
  }
  __syncthreads();
  const int c = c0 + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= kMomentBlocks * kBlock || c >= s.c) return;
  float mean = 0.f, squares = 0.f, all = 0.f;
#pragma unroll 1
  for (int i = 0; i < kMomentWarps; ++i) {
    const float2 other = of_warps[spread<float2>(i * kMomentBlocks * kBlock + threadIdx.x)];
    merge_moments(mean, squares, all, other.x, other.y, counts[i]);
    all += counts[i];
  }
  float* to = m.moments + static_cast<int64_t>(of_all) * 2 * s.c + c;
  to[0] = mean, to[s.c] = squares;
}

constexpr int kFinishThreads = 1024;

template <class T>
struct CcaFinish {
  Cca<T> cca;
  Attention attention;
  unsigned blocks;  // CTAs of an image
};

inline int cca_finish_shared(int c, int hidden) {
  return static_cast<int>(sizeof(float)) * (2 * c + hidden + 3 * kFinishThreads);
}

// The attention of an image from the parts' moments into scale[C], behind which there is memory for the rest. In
// float32: unlike its gradients, it is no difference of large sums.
__device__ __forceinline__ void make_scale(const Attention& a, unsigned image, float* scale) {
  float *contrast = scale + a.c, *hidden = contrast + a.c, *counts = hidden + a.hidden,
        *means = counts + kFinishThreads;
  float* squares = means + kFinishThreads;  // of [slot][channel]
  const int slots = kFinishThreads / a.c, slot = threadIdx.x / a.c, c = threadIdx.x % a.c;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float* moments = a.moments + static_cast<int64_t>(image) * a.parts * 2 * a.c + c;
  float mean = 0.f, square = 0.f, count = 0.f;
  if (slot < slots) {
#pragma unroll 8
    for (unsigned i = slot; i < a.parts; i += slots) {
      const float* of_part = moments + static_cast<int64_t>(i) * 2 * a.c;
      const float more = static_cast<float>(min(a.part, a.pixels - i * a.part));
      merge_moments(mean, square, count, of_part[0], of_part[a.c], more);
      count += more;
    }
  }
  means[threadIdx.x] = mean, squares[threadIdx.x] = square, counts[threadIdx.x] = count;
  __syncthreads();
  if (slot == 0) {
    for (int i = 1; i < slots; ++i) {
      const int other = i * a.c + c;
      merge_moments(mean, square, count, means[other], squares[other], counts[other]);
      count += counts[other];
    }
    contrast[c] = sqrtf(square / count) + mean;
  }
  __syncthreads();
  for (int r = warp; r < a.hidden; r += kFinishThreads / 32) {
    float sum = 0.f;
    for (int k = lane; k < a.c; k += 32) sum = fmaf(a.w0[r * a.c + k], contrast[k], sum);
#pragma unroll
    for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    if (lane == 0) hidden[r] = relu_nan(sum + a.b0[r]);
  }
  __syncthreads();
  if (slot == 0) {
    float sum = a.b2[c];
    for (int r = 0; r < a.hidden; ++r) sum = fmaf(a.w2[c * a.hidden + r], hidden[r], sum);
    scale[c] = 1.f / (1.f + expf(-sum));
  }
  __syncthreads();
}

// One CTA per multiprocessor, so that each reads the moments (128 KB for 64 channels) once.
template <class T, int Lanes>
__global__ void __launch_bounds__(kFinishThreads, 1) cca_finish_kernel(const CcaFinish<T> a) {
  constexpr unsigned kSlots = kFinishThreads / Lanes;
  FASTSR_SHARED_MEMORY(memory);
  float* scale = reinterpret_cast<float*>(memory);
  const unsigned image = blockIdx.x / a.blocks, first = blockIdx.x % a.blocks * kSlots;
  make_scale(a.attention, image, scale);
  const PixelWalk at(first + threadIdx.x / Lanes, kSlots * a.blocks, a.cca.w);
  apply_to_pixels<Lanes>(a.cca, scale, image, at, first, a.cca.pixels);
}

}  // namespace fastsr::cuda
