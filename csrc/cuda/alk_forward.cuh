// alk_conv and alk_stage, forward:
//
//   u = W x;  v = GELU(kx1 u) + GELU(1xk u) + GELU(3x3 u);  z = (v - mean_c v) / sqrt(var_c v + eps) gamma + beta
//   y = act(z) or GELU(z + x);  D = GELU(Wd x + bd)
//
// One CTA per 16 x 16 tile. u lives in shared memory only, v takes its place channel by channel.
#pragma once

#include "alk_convolve.cuh"
#include "gelu.cuh"

namespace fastsr::cuda {

template <class T>
struct AlkForward {
  AlkShape shape;
  Map<T> x;
  Map<T> y, distilled;
  const unsigned char *rows, *filters, *distil;  // packed: 1x1, depthwise, distilling 1x1
  const float *vectors, *distil_bias;            // [5][padded k]: three biases, gamma, beta
  float eps;
  int activation, residual;
  int raw;  // y is v itself: the backward's first step
};

// As many channels in a pass as fit the 99 KB that every architecture has.
template <class T, int S>
using ForwardPlane = Plane<T, S,
                           sizeof(T) == 2 ? (S == 24   ? 8
                                             : S == 32 ? 4
                                                       : 2)
                                          : (S == 24   ? 4
                                             : S == 32 ? 2
                                                       : 1)>;

template <class P>
constexpr int alk_forward_shared() {
  return P::kBytes + kPixels * static_cast<int>(sizeof(float2));
}

// Mean and sum of squared deviations of some channels of a lane's eight pixels. float32 shifts by the first value,
// since the sum of squares would lose what a large mean leaves; in 16 bits v itself has lost more.
template <class T>
struct PixelSums {
  float shift[8], sum[8], squares[8];
  int count;

  __device__ __forceinline__ void start() {
    count = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) shift[i] = sum[i] = squares[i] = 0.f;
  }
  __device__ __forceinline__ void add(int i, float v) {
    if constexpr (sizeof(T) == 4) {
      if (count == 0) shift[i] = v;
      v -= shift[i];
    }
    sum[i] += v;
    squares[i] = fmaf(v, v, squares[i]);
  }
  __device__ __forceinline__ float2 result(int i) const {
    if (count == 0) return make_float2(0.f, 0.f);
    const float mean = sum[i] / count;
    return make_float2(shift[i] + mean, fmaf(-mean, sum[i], squares[i]));
  }
};

template <class T, Gelu Form>
__device__ __forceinline__ void distil_tile(const AlkForward<T>& a, int64_t n, int y0, int x0) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int row = threadIdx.x / 32; row < kTile && y0 + row < a.shape.h; row += kWarps) {
    int64_t from[2];
    bool inside[2];
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      inside[p] = x0 + g + 8 * p < a.shape.w;
      from[p] = a.x.at(n, y0 + row, x0 + g + 8 * p);
    }
    for (int block = 0; block < blocks_of(a.shape.d); ++block) {
      const int c = kBlock * block + 8 * t;
      float out[2][8];
#pragma unroll
      for (int i = 0; i < 8; ++i) out[0][i] = out[1][i] = a.distil_bias[c + i];
      pixel_product(a.x, from, inside, a.distil + block * product_block_bytes<T>(a.shape.c), out);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        Eight<T> e;
#pragma unroll
        for (int i = 0; i < 4; ++i) e.set_pair(i, gelu<Form>(out[p][2 * i]), gelu<Form>(out[p][2 * i + 1]));
        if (inside[p]) a.distilled.store(a.distilled.at(n, y0 + row, x0 + g + 8 * p), c, e);
      }
    }
  }
}

template <class T, int S, Gelu Form>
__global__ void __launch_bounds__(kThreads, S == 24 ? 2 : 1) alk_forward_kernel(const AlkForward<T> a) {
  using P = ForwardPlane<T, S>;
  FASTSR_SHARED_MEMORY(memory);
  T* planes = reinterpret_cast<T*>(memory);
  float2* norm = reinterpret_cast<float2*>(memory + P::kBytes);  // [group][pixel]: 1 / sigma, -mean / sigma
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  const int passes = (a.shape.k + P::kChannels - 1) / P::kChannels, padded_k = blocks_of(a.shape.k) * kBlock;
  int64_t n;
  int y0, x0;
  a.shape.tile_at(blockIdx.x, &n, &y0, &x0);

  if (a.shape.d > 0) distil_tile<T, Form>(a, n, y0, x0);

  PixelSums<T> sums;
  sums.start();
  for (int pass = 0; pass < passes; ++pass) {
    fill_planes<P>(planes, a.x, a.shape, n, y0, x0, pass, a.rows);
    __syncthreads();
    for (int i = 0; i < P::kPerWarp; ++i) {
      const int in_pass = warp + kWarps * i, channel = pass * P::kChannels + in_pass;
      if (channel >= a.shape.k) break;
      T* plane = planes + P::of_warp(warp, i);
      Filters<P> f;
      f.load(a.filters, channel);
      const float b0 = a.vectors[channel], b1 = a.vectors[padded_k + channel], b2 = a.vectors[2 * padded_k + channel];
      float v[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float down[4] = {b0, b0, b0, b0}, across[4] = {b1, b1, b1, b1}, small[4] = {b2, b2, b2, b2};
        convolve_down<P>(plane, f, half, down);
        convolve_across<P>(plane, f, half, across);
        convolve_small<P>(plane, f, half, small);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[half][j] = gelu<Form>(down[j]) + gelu<Form>(across[j]) + gelu<Form>(small[j]);
          sums.add(4 * half + j, v[half][j]);
        }
      }
      ++sums.count;
      __syncwarp();  // all lanes have read the plane
      put_results<P>(plane, 0, v[0]);
      put_results<P>(plane, 1, v[1]);
    }
    __syncthreads();
    if (a.raw || pass + 1 < passes) {
      for_each_result<P>(a.shape, y0, x0, pass, [&](int block, int group, int c, int y, int x, bool inside) {
        const Eight<T> v = read_pixels<P>(planes, P::kSize, block, group);
        if (inside) a.y.store(a.y.at(n, y, x), c, v);
      });
      __syncthreads();
    }
  }
  if (a.raw) return;

  // The warps' means and deviations meet behind the results in each warp's own planes.
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float2* to = reinterpret_cast<float2*>(planes + P::of_warp(warp, i % P::kPerWarp) + kPixels);
    to[i / P::kPerWarp * 32 + lane] = sums.result(i);
  }
  __syncthreads();
  {
    const int i = warp;  // thread (i, lane) sums pixel i of that lane
    float mean = 0.f, squares = 0.f;
    float2 part[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const T* from = planes + P::of_warp(w, i % P::kPerWarp) + kPixels;
      part[w] = reinterpret_cast<const float2*>(from)[i / P::kPerWarp * 32 + lane];
      mean = fmaf(part[w].x, static_cast<float>((a.shape.k - w + kWarps - 1) / kWarps), mean);
    }
    mean /= a.shape.k;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float off = part[w].x - mean;
      squares += fmaf(off * off, static_cast<float>((a.shape.k - w + kWarps - 1) / kWarps), part[w].y);
    }
    const float r = rsqrtf(fmaxf(squares, 0.f) / a.shape.k + a.eps);
    const int t = lane % 4, row = P::row(g) + i % 4 / 2 * 8, group = i / 4 * 16 + row;
    norm[8 * group + 2 * t + i % 2] = make_float2(r, -mean * r);
  }
  __syncthreads();

  const float *gamma = a.vectors + 3 * padded_k, *beta = gamma + padded_k;
  for (int pass = 0; pass < passes; ++pass) {
    for_each_result<P>(a.shape, y0, x0, pass, [&](int block, int group, int c, int y, int x, bool inside) {
      Eight<T> v = read_pixels<P>(planes, P::kSize, block, group);
      if (!inside) return;
      const int64_t to = a.y.at(n, y, x);
      if (pass + 1 < passes) v = a.y.load(to, c);
      Eight<T> shortcut = Eight<T>::zeros();
      if (a.residual) shortcut = a.x.load(a.x.at(n, y, x), c);
      const float2 scale = norm[8 * group + g];
      float z[8];
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const float4 w = *reinterpret_cast<const float4*>(gamma + c + i),
                     b = *reinterpret_cast<const float4*>(beta + c + i);
        const float2 p0 = v.pair(i / 2), p1 = v.pair(i / 2 + 1), q0 = shortcut.pair(i / 2),
                     q1 = shortcut.pair(i / 2 + 1);
        z[i] = fmaf(fmaf(p0.x, scale.x, scale.y), w.x, b.x) + q0.x;
        z[i + 1] = fmaf(fmaf(p0.y, scale.x, scale.y), w.y, b.y) + q0.y;
        z[i + 2] = fmaf(fmaf(p1.x, scale.x, scale.y), w.z, b.z) + q1.x;
        z[i + 3] = fmaf(fmaf(p1.y, scale.x, scale.y), w.w, b.w) + q1.y;
      }
      activate_all<Form>(z, a.activation);
#pragma unroll
      for (int i = 0; i < 4; ++i) v.set_pair(i, z[2 * i], z[2 * i + 1]);
      a.y.store(to, c, v);
    });
  }
}

}  // namespace fastsr::cuda
