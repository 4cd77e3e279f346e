// Through the activation, the residual and the pixel norm of an ALKConv, pixel by pixel:
//
//   gz = gy act'(z + x);  h = gz gamma;  gv = (h - mean_c h - xhat mean_c(h xhat)) / sigma
//   dgamma = sum_p gz xhat;  dbeta = sum_p gz
//
// Four lanes hold a pixel. gv takes the place of v.
#pragma once

#include "alk_tile.cuh"
#include "gelu.cuh"
#include "partials.cuh"

namespace fastsr::cuda {

template <class T>
struct AlkNormBackward {
  AlkShape shape;
  Map<T> v, grad, x, gz;      // gz only with the residual: it is the beginning of dx
  const float *gamma, *beta;  // padded
  float* partials;            // [parts][2][k]
  float eps;
  int activation, residual;
};

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <int Blocks>
constexpr int norm_backward_shared() {
  return kWarps * 2 * Blocks * kBlock * static_cast<int>(sizeof(float));
}

template <class T, int Blocks>
__global__ void __launch_bounds__(kThreads, Blocks == 1 || (Blocks == 2 && sizeof(T) == 2) ? 2 : 1)
    alk_norm_backward_kernel(const AlkNormBackward<T> a) {
  FASTSR_SHARED_MEMORY(memory);
  float* sums = reinterpret_cast<float*>(memory);  // [warp][2][channel]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, k = a.shape.k;
  const float scale = 1.f / k;
  float d_gamma[Blocks][8] = {}, d_beta[Blocks][8] = {};
  for (int64_t tile = blockIdx.x; tile < a.shape.tiles; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.shape.tile_at(tile, &n, &y0, &x0);
    for (int group = warp; group < 32; group += kWarps) {
      const int y = y0 + group % 16, x = x0 + group / 16 * 8 + g;
      const bool inside = y < a.shape.h && x < a.shape.w;
      float v[Blocks][8], h[Blocks][8], sum = 0.f;
#pragma unroll
      for (int b = 0; b < Blocks; ++b) {
        Eight<T> e = Eight<T>::zeros();
        if (inside) e = a.v.template load<false>(a.v.at(n, y, x), kBlock * b + 8 * t);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          v[b][i] = i % 2 ? e.pair(i / 2).y : e.pair(i / 2).x;
          sum += v[b][i];
        }
      }
      const float mean = quad_sum(sum) * scale;
      float squares = 0.f;
#pragma unroll
      for (int b = 0; b < Blocks; ++b)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          v[b][i] = kBlock * b + 8 * t + i < k ? v[b][i] - mean : 0.f;
          squares = fmaf(v[b][i], v[b][i], squares);
        }
      const float r = rsqrtf(quad_sum(squares) * scale + a.eps);
      float sum_h = 0.f, sum_hx = 0.f;
#pragma unroll
      for (int b = 0; b < Blocks; ++b) {
        const int c = kBlock * b + 8 * t;
        Eight<T> grad = Eight<T>::zeros(), shortcut = grad;
        if (inside) grad = a.grad.template load<false>(a.grad.at(n, y, x), c);
        if (inside && a.residual) shortcut = a.x.template load<false>(a.x.at(n, y, x), c);
        Eight<T> gz;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 gy = grad.pair(i), from_x = shortcut.pair(i);
          const float2 gammas = *reinterpret_cast<const float2*>(a.gamma + c + 2 * i);
          const float2 betas = *reinterpret_cast<const float2*>(a.beta + c + 2 * i);
          float two[2];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int o = 2 * i + j;
            const float gamma = j ? gammas.y : gammas.x, beta = j ? betas.y : betas.x;
            v[b][o] *= r;  // xhat
            const float z = fmaf(v[b][o], gamma, beta) + (j ? from_x.y : from_x.x);
            two[j] = (j ? gy.y : gy.x) * activation_derivative(z, a.activation);
            d_gamma[b][o] = fmaf(two[j], v[b][o], d_gamma[b][o]);
            d_beta[b][o] += two[j];
            h[b][o] = two[j] * gamma;
            sum_h += h[b][o];
            sum_hx = fmaf(h[b][o], v[b][o], sum_hx);
          }
          gz.set_pair(i, two[0], two[1]);
        }
        if (inside && a.residual) a.gz.template store<false>(a.gz.at(n, y, x), c, gz);
      }
      const float mean_h = quad_sum(sum_h) * scale, mean_hx = quad_sum(sum_hx) * scale;
#pragma unroll
      for (int b = 0; b < Blocks; ++b) {
        Eight<T> gv;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          gv.set_pair(i, r * (h[b][2 * i] - fmaf(v[b][2 * i], mean_hx, mean_h)),
                      r * (h[b][2 * i + 1] - fmaf(v[b][2 * i + 1], mean_hx, mean_h)));
        if (inside) a.v.template store<false>(a.v.at(n, y, x), kBlock * b + 8 * t, gv);
      }
    }
  }
#pragma unroll
  for (int b = 0; b < Blocks; ++b)
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        float s = which ? d_beta[b][i] : d_gamma[b][i];
#pragma unroll
        for (int bits = 4; bits < 32; bits *= 2) s += __shfl_xor_sync(0xffffffffu, s, bits);
        if (g == 0) sums[(warp * 2 + which) * Blocks * kBlock + kBlock * b + 8 * t + i] = s;
      }
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * k; i += kThreads) {
    float s = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) s += sums[(w * 2 + i / k) * Blocks * kBlock + i % k];
    a.partials[static_cast<int64_t>(blockIdx.x) * 2 * k + i] = s;
  }
}

}  // namespace fastsr::cuda
