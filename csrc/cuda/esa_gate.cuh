// The gate of esa, forward and backward, pixel by pixel:
//
//   z = bilinear(out) + conv_f(c1);  s = sigmoid(conv4(z));  y = x s
//   dgate = grad x s (1 - s);  dz = conv4^T(dgate);  dx begins with grad s
//
// Two pixels a lane, as in product.cuh: z, which the first product leaves with eight adjacent channels a lane, is what
// the second one reads, and dgate what the third one does.
#pragma once

#include "esa_path.cuh"

namespace fastsr::cuda {

// Bilinear enlargement along one axis, as PyTorch's align_corners=False does it.
struct BilinearTaps {
  int from[2];
  float share[2];

  __device__ __forceinline__ BilinearTaps(int to, float ratio, int size) {
    const float at = fmaxf((to + 0.5f) * ratio - 0.5f, 0.f);
    from[0] = min(static_cast<int>(at), size - 1);
    from[1] = min(from[0] + 1, size - 1);
    share[1] = fminf(fmaxf(at - from[0], 0.f), 1.f);
    share[0] = 1.f - share[1];
  }
  // How much of position `i` of the small axis there is in this one.
  __device__ __forceinline__ float of(int i) const {
    return (from[0] == i ? share[0] : 0.f) + (from[1] == i ? share[1] : 0.f);
  }
};

template <class T>
__device__ __forceinline__ float gate_sigmoid(float x) {
  const float e = 1.f + exp2_approx(x * -1.4426950408889634f);
  if constexpr (!kTensorCores<T>) return 1.f / e;
  const float r = rsqrt_approx(e);  // one instruction
  return r * r;
}

// The weights of conv_f and conv4, packed.
struct GateWeights {
  const unsigned char *wf, *w4;
  const float *bf, *b4;
};

template <class T>
int gate_shared(const EsaShape& s) {
  return static_cast<int>((1 + blocks_of(s.c)) *
                          (product_block_bytes<T>(s.f) + kBlock * static_cast<int64_t>(sizeof(float))));
}

// By the CTA itself, in its shared memory; a barrier must follow.
template <class T>
__device__ __forceinline__ GateWeights pack_gate(const Esa<T>& a, unsigned char* memory) {
  const EsaShape& s = a.s;
  unsigned char* w4 = memory + product_block_bytes<T>(s.f);
  float* bf = reinterpret_cast<float*>(w4 + blocks_of(s.c) * product_block_bytes<T>(s.f));
  pack_product<T>(reinterpret_cast<uint32_t*>(memory), 1, s.f,
                  [&](int o, int j) { return matrix_at(a.w.wf, o, j, s.f, s.f); });
  pack_product<T>(reinterpret_cast<uint32_t*>(w4), blocks_of(s.c), s.f,
                  [&](int o, int j) { return matrix_at(a.w.w4, o, j, s.c, s.f); });
  pack_biases(bf, a.w.bf, s.f);
  pack_biases(bf + kBlock, a.w.b4, s.c);
  return {memory, w4, bf, bf + kBlock};
}

template <class T>
__device__ __forceinline__ void gate_input(const Esa<T>& a, const GateWeights& w, const LanePixels& at,
                                           Eight<T> (&z)[2]) {
  const EsaShape& s = a.s;
  const int c = threadIdx.x % 4 * 8;
  float sum[1][2][8];
  int64_t offset[2];
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    offset[p] = at.offset(a.c1, p);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[0][p][i] = w.bf[c + i];
  }
  pixel_products<T, true, 1, 2>(a.c1, offset, w.wf, 0, sum);
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    if (at.x[p] >= 0 && c < s.wide) {
      const BilinearTaps down(at.y[p], s.ratio_h, s.small_h), across(at.x[p], s.ratio_w, s.small_w);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float share = down.share[i / 2] * across.share[i % 2];
        const float4* from = reinterpret_cast<const float4*>(
            a.out + cell(at.image, down.from[i / 2], across.from[i % 2], s.small_h, s.small_w, s.wide) + c);
        const float4 low = from[0], high = from[1];
        const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < 8; ++k) sum[0][p][k] = fmaf(share, v[k], sum[0][p][k]);
      }
    }
    z[p] = to_eight<T>(sum[0][p]);
  }
}

// CTAs of the gate that a multiprocessor has registers for.
template <class T>
constexpr int kGateResident = kTensorCores<T> ? 2 : 1;

template <class T>
__global__ void __launch_bounds__(kProductThreads, kGateResident<T>) esa_gate_kernel(const Esa<T> a) {
  FASTSR_SHARED_MEMORY(memory);
  const GateWeights w = pack_gate(a, memory);
  __syncthreads();
  const int t = threadIdx.x % 4;
  for (int64_t tile = blockIdx.x; tile < a.s.n * a.tiles; tile += gridDim.x) {
    const LanePixels at(static_cast<unsigned>(tile / a.tiles), static_cast<unsigned>(tile % a.tiles) * kProductPixels,
                        static_cast<unsigned>(a.s.h) * a.s.w, a.s.w);
    Eight<T> z[2];
    gate_input(a, w, at, z);
#pragma unroll 1
    for (int block = 0; block < blocks_of(a.s.c); ++block) {
      const int c = block * kBlock + 8 * t;
      Eight<T> x[2];
      const auto fetch = [&](int p) {
        if (at.x[p] >= 0 && c < a.s.c) x[p] = a.x.load(at.offset(a.x, p), c);
      };
      if constexpr (kTensorCores<T>) fetch(0), fetch(1);  // FMA leaves no registers for it
      float sum[2][8];
#pragma unroll
      for (int i = 0; i < 16; ++i) sum[i / 8][i % 8] = w.b4[c + i % 8];
      lane_product<T>(z, w.w4 + block * product_block_bytes<T>(a.s.f), a.s.f, 0, sum);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        if constexpr (!kTensorCores<T>) fetch(p);
        if (at.x[p] < 0 || c >= a.s.c) continue;
        float v[8];
        to_floats(x[p], v);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= gate_sigmoid<T>(sum[p][i]);
        a.y.store(at.offset(a.y, p), c, to_eight<T>(v));
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kProductThreads, 2) esa_gate_backward_kernel(const Esa<T> a) {
  const int t = threadIdx.x % 4;
  const LanePixels at(a.tiles, static_cast<unsigned>(a.s.h) * a.s.w, a.s.w);
  Eight<T> z[2];
  gate_input(a, {a.wf, a.w4, a.bf, a.b4}, at, z);
  float dz[2][8] = {};
#pragma unroll 1
  for (int block = 0; block < blocks_of(a.s.c); ++block) {
    const int c = block * kBlock + 8 * t;
    float sum[2][8];
#pragma unroll
    for (int i = 0; i < 16; ++i) sum[i / 8][i % 8] = a.b4[c + i % 8];
    lane_product<T>(z, a.w4 + block * product_block_bytes<T>(a.s.f), a.s.f, 0, sum);
    Eight<T> dgate[2];
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      dgate[p] = Eight<T>::zeros();
      if (at.x[p] < 0 || c >= a.s.c) continue;
      float x[8], grad[8];
      to_floats(a.x.load(at.offset(a.x, p), c), x);
      to_floats(a.grad.load(at.offset(a.grad, p), c), grad);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float s = gate_sigmoid<T>(sum[p][i]);
        x[i] *= grad[i] * s * (1.f - s);
        grad[i] *= s;
      }
      dgate[p] = to_eight<T>(x);
      a.dgate.store(at.offset(a.dgate, p), c, dgate[p]);
      a.dx.store(at.offset(a.dx, p), c, to_eight<T>(grad));
    }
    lane_product<T>(dgate, a.w4t, a.s.c, block, dz);
  }
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    if (at.x[p] < 0 || 8 * t >= a.s.wide) continue;
    a.z.store(at.offset(a.z, p), 8 * t, z[p]);
    a.dz.store(at.offset(a.dz, p), 8 * t, to_eight<T>(dz[p]));
  }
}

}  // namespace fastsr::cuda
