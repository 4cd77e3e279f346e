// The channel attention of cca_norm, one CTA per image, in float64: its gradients are differences of sums over all
// channels, and an image has no more of these values than a pixel has.
//
//   mean, variance = the parts' moments;  contrast = sqrt(variance) + mean
//   scale = sigmoid(W2 relu(W0 contrast + b0) + b2)
#pragma once

#include "parameter.cuh"

namespace fastsr::cuda {

constexpr int kAttentionThreads = 512;

struct Attention {
  Parameter w0, b0, w2, b2;
  const float* moments;  // [image][part][mean, squares][C], or null: `statistics` are given
  const float* sums;     // [image][part][dscale, dgamma, dbeta][C], for the backward
  double* statistics;    // [image][mean, variance][C]
  float* scale;          // [image][C]
  float* rows;           // [image]: dW0, db0, dW2, db2, dgamma, dbeta; then constant, slope, mean
  int64_t line;          // of rows
  int c, hidden;
  unsigned pixels, part, parts;
};

// In shared memory.
struct AttentionValues {
  double *contrast, *mean, *variance, *hidden, *logit, *spare;  // spare: [2 * kAttentionThreads]

  __device__ __forceinline__ AttentionValues(unsigned char* memory, int c, int r) {
    contrast = reinterpret_cast<double*>(memory);
    mean = contrast + c, variance = mean + c, logit = variance + c, hidden = logit + c, spare = hidden + r;
  }
};

inline int attention_shared(int c, int r) {
  return static_cast<int>(sizeof(double)) * (4 * c + r + 2 * kAttentionThreads);
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

// sum_part term(part, channel) for every channel into to[channel]; threads share the parts of a channel. There are no
// more channels than threads.
template <class Term>
__device__ __forceinline__ void sum_parts_into(double* to, double* spare, int channels, unsigned parts, Term term) {
  const int slots = kAttentionThreads / channels, slot = threadIdx.x / channels, c = threadIdx.x % channels;
  double sum = 0;
  if (slot < slots)
#pragma unroll 8
    for (unsigned i = slot; i < parts; i += slots) sum += term(i, c);
  spare[threadIdx.x] = sum;
  __syncthreads();
  if (slot == 0) {
    for (int i = 1; i < slots; ++i) sum += spare[c + i * channels];
    to[c] = sum;
  }
  __syncthreads();
}

// hidden behind the ReLU, and W2 hidden + b2, from the contrast.
__device__ __forceinline__ void attention_layers(const Attention& a, const AttentionValues& v) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int r = warp; r < a.hidden; r += kAttentionThreads / 32) {
    double sum = 0;
    for (int c = lane; c < a.c; c += 32) sum += static_cast<double>(a.w0[r * a.c + c]) * v.contrast[c];
    sum = warp_sum(sum) + a.b0[r];
    if (lane == 0) v.hidden[r] = sum < 0 ? 0 : sum;  // NaN stays
  }
  __syncthreads();
  for (int c = threadIdx.x; c < a.c; c += kAttentionThreads) {
    double sum = a.b2[c];
    for (int r = 0; r < a.hidden; ++r) sum += static_cast<double>(a.w2[c * a.hidden + r]) * v.hidden[r];
    v.logit[c] = sum;
  }
  __syncthreads();
}

__device__ __forceinline__ double sigmoid(double x) { return 1 / (1 + exp(-x)); }

__device__ __forceinline__ void load_statistics(const Attention& a, const AttentionValues& v,
                                                const double* statistics) {
  for (int c = threadIdx.x; c < a.c; c += kAttentionThreads) {
    v.mean[c] = statistics[c], v.variance[c] = statistics[a.c + c];
    v.contrast[c] = sqrt(v.variance[c]) + v.mean[c];
  }
  __syncthreads();
}

template <int Threads>
__global__ void __launch_bounds__(Threads) cca_attention_kernel(const Attention a) {
  FASTSR_SHARED_MEMORY(memory);
  const AttentionValues v(memory, a.c, a.hidden);
  const int64_t image = blockIdx.x;
  double* statistics = a.statistics + image * 2 * a.c;
  if (a.moments) {
    const float* moments = a.moments + image * a.parts * 2 * a.c;
    const auto count = [&](unsigned i) { return static_cast<double>(min(a.part, a.pixels - i * a.part)); };
    sum_parts_into(v.mean, v.spare, a.c, a.parts,
                   [&](unsigned i, int c) { return count(i) * moments[static_cast<int64_t>(i) * 2 * a.c + c]; });
    for (int c = threadIdx.x; c < a.c; c += kAttentionThreads) v.mean[c] /= a.pixels;
    __syncthreads();
    sum_parts_into(v.variance, v.spare, a.c, a.parts, [&](unsigned i, int c) {
      const float* of_part = moments + static_cast<int64_t>(i) * 2 * a.c + c;
      const double off = of_part[0] - v.mean[c];
      return of_part[a.c] + count(i) * off * off;
    });
    for (int c = threadIdx.x; c < a.c; c += kAttentionThreads)
      statistics[c] = v.mean[c], statistics[a.c + c] = v.variance[c] / a.pixels;
    __syncthreads();
  }
  load_statistics(a, v, statistics);
  attention_layers(a, v);
  for (int c = threadIdx.x; c < a.c; c += kAttentionThreads)
    a.scale[image * a.c + c] = static_cast<float>(sigmoid(v.logit[c]));
}

// The attention's gradients, and what the last pass adds to dx.
template <int Threads>
__global__ void __launch_bounds__(Threads) cca_attention_backward_kernel(const Attention a) {
  FASTSR_SHARED_MEMORY(memory);
  const AttentionValues v(memory, a.c, a.hidden);
  const int64_t image = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float* sums = a.sums + image * a.parts * 3 * a.c;
  float *d_w0 = a.rows + image * a.line, *d_b0 = d_w0 + a.hidden * a.c, *d_w2 = d_b0 + a.hidden;
  float *d_b2 = d_w2 + a.c * a.hidden, *d_norm = d_b2 + a.c, *terms = d_norm + 2 * a.c;
  load_statistics(a, v, a.statistics + image * 2 * a.c);
  attention_layers(a, v);
  double *d_scale = v.spare + kAttentionThreads, *d_hidden = d_scale;  // [c], later [hidden]
  for (int which = 1; which < 3; ++which) {
    sum_parts_into(d_scale, v.spare, a.c, a.parts,
                   [&](unsigned i, int c) { return sums[(static_cast<int64_t>(i) * 3 + which) * a.c + c]; });
    for (int c = threadIdx.x; c < a.c; c += kAttentionThreads)
      d_norm[(which - 1) * a.c + c] = static_cast<float>(d_scale[c]);
    __syncthreads();
  }
  sum_parts_into(d_scale, v.spare, a.c, a.parts,
                 [&](unsigned i, int c) { return sums[static_cast<int64_t>(i) * 3 * a.c + c]; });
  for (int c = threadIdx.x; c < a.c; c += kAttentionThreads) {
    const double s = sigmoid(v.logit[c]), d = d_scale[c] * s * (1 - s);
    v.logit[c] = d;  // its gradient from here on
    d_b2[c] = static_cast<float>(d);
    for (int r = 0; r < a.hidden; ++r) d_w2[c * a.hidden + r] = static_cast<float>(d * v.hidden[r]);
  }
  __syncthreads();
  for (int r = warp; r < a.hidden; r += kAttentionThreads / 32) {
    double sum = 0;
    for (int c = lane; c < a.c; c += 32) sum += static_cast<double>(a.w2[c * a.hidden + r]) * v.logit[c];
    sum = warp_sum(sum);
    if (!(v.hidden[r] > 0)) sum = 0;
    if (lane == 0) d_hidden[r] = sum, d_b0[r] = static_cast<float>(sum);
  }
  __syncthreads();
  for (int c = threadIdx.x; c < a.c; c += kAttentionThreads) {
    double sum = 0;
    for (int r = 0; r < a.hidden; ++r) {
      sum += static_cast<double>(a.w0[r * a.c + c]) * d_hidden[r];
      d_w0[r * a.c + c] = static_cast<float>(d_hidden[r] * v.contrast[c]);
    }
    sum /= a.pixels;
    terms[c] = static_cast<float>(sum);
    // The deviation of a constant map has gradient 0.
    terms[a.c + c] = v.variance[c] > 0 ? static_cast<float>(sum / sqrt(v.variance[c])) : 0.f;
    terms[2 * a.c + c] = static_cast<float>(v.mean[c]);
  }
}

}  // namespace fastsr::cuda
