// Through the three branches of an ALKConv: with u and the sums b_i before each GELU computed again,
//
//   g_i = gv GELU'(b_i);  dw_i[j] = sum_p g_i[p] u[p + j];  dbias_i = sum_p g_i[p]
//
// g_i of a tile and u with its halo are all that the filters' gradients need.
#pragma once

#include "alk_taps.cuh"

namespace fastsr::cuda {

template <class T>
struct AlkBranchBackward {
  AlkShape shape;
  Map<T> x, gv, g[3];  // g: of kx1, 1xk, 3x3
  const unsigned char *rows, *filters;
  const float* vectors;
  float* partials;  // [parts][k][2 taps + 12]: kx1, 1xk, 3x3, three biases
};

// Fewer channels in a pass than forward: gv lies beside u.
template <class T, int S>
using BackwardPlane = Plane<T, S, sizeof(T) == 2 ? (S <= 32 ? 4 : 2) : (S <= 32 ? 2 : 1)>;

template <class P>
constexpr int branch_backward_shared() {
  return P::kBytes + P::kChannels * (P::kResults + P::kSkew) * static_cast<int>(sizeof(typename P::T));
}

template <class T, int S>
__global__ void __launch_bounds__(kThreads, S <= 32 ? 2 : 1) alk_branch_backward_kernel(const AlkBranchBackward<T> a) {
  using P = BackwardPlane<T, S>;
  FASTSR_SHARED_MEMORY(memory);
  T* planes = reinterpret_cast<T*>(memory);
  T* gv_planes = reinterpret_cast<T*>(memory + P::kBytes);  // later g of the 3x3
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int passes = (a.shape.k + P::kChannels - 1) / P::kChannels, padded_k = blocks_of(a.shape.k) * kBlock;
  const int columns = 2 * a.shape.taps + 12;
  float* partials = a.partials + static_cast<int64_t>(blockIdx.x) * a.shape.k * columns;
  for (int i = threadIdx.x; i < a.shape.k * columns; i += kThreads) partials[i] = 0.f;
  for (int64_t tile = blockIdx.x; tile < a.shape.tiles; tile += gridDim.x) {
    int64_t n;
    int y0, x0;
    a.shape.tile_at(tile, &n, &y0, &x0);
    for (int pass = 0; pass < passes; ++pass) {
      fill_planes<P>(planes, a.x, a.shape, n, y0, x0, pass, a.rows);
      for_each_result<P>(a.shape, y0, x0, pass, [&](int block, int group, int c, int y, int x, bool inside) {
        Eight<T> e = Eight<T>::zeros();
        if (inside) e = a.gv.load(a.gv.at(n, y, x), c);
        write_pixels<P>(gv_planes, P::kResults, block, e, P::group(group));
      });
      __syncthreads();
#pragma unroll 1
      for (int i = 0; i < P::kPerWarp; ++i) {
        const int in_pass = warp + kWarps * i, channel = pass * P::kChannels + in_pass;
        if (channel >= a.shape.k) break;
        T *plane = planes + P::of_warp(warp, i), *gv_plane = gv_planes + P::of_warp(warp, i, P::kResults);
        Filters<P> f;
        f.load(a.filters, channel);
        float gv[2][4], grad[3][2][4];  // [half][result], [branch][half][result]
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 pair = pair_at(gv_plane + P::group(8 * i + P::row(g)) + 2 * t);
          gv[i / 2][i % 2 * 2] = pair.x, gv[i / 2][i % 2 * 2 + 1] = pair.y;
        }
#pragma unroll
        for (int branch = 0; branch < 3; ++branch) {
          const float bias = a.vectors[branch * padded_k + channel];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float sum[4] = {bias, bias, bias, bias};
            if (branch == 0) convolve_down<P>(plane, f, half, sum);
            if (branch == 1) convolve_across<P>(plane, f, half, sum);
            if (branch == 2) convolve_small<P>(plane, f, half, sum);
#pragma unroll
            for (int j = 0; j < 4; ++j) grad[branch][half][j] = gv[half][j] * gelu_derivative(sum[j]);
            __syncwarp();  // one at a time: more would not fit the registers
          }
        }
        add_filter_gradients<P>(plane, grad, gv_plane, a.shape.taps, partials + channel * columns);
        __syncwarp();  // all lanes have read the planes
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          put_results<P>(plane, half, grad[0][half]);
          put_results<P>(plane + kPixels, half, grad[1][half]);
          put_results<P>(gv_plane, half, grad[2][half]);
        }
      }
      __syncthreads();
      for_each_result<P>(a.shape, y0, x0, pass, [&](int block, int group, int c, int y, int x, bool inside) {
        const Eight<T> down = read_pixels<P>(planes, P::kSize, block, group);
        const Eight<T> across = read_pixels<P>(planes + kPixels, P::kSize, block, group);
        const Eight<T> small = read_pixels<P>(gv_planes, P::kResults, block, group);
        if (!inside) return;
        a.g[0].store(a.g[0].at(n, y, x), c, down);
        a.g[1].store(a.g[1].at(n, y, x), c, across);
        a.g[2].store(a.g[2].at(n, y, x), c, small);
      });
      __syncthreads();
    }
  }
}

}  // namespace fastsr::cuda
