// From the branches' gradients to those of x and of the 1x1s:
//
//   du = kx1^T g_1 + 1xk^T g_2 + 3x3^T g_3;  gd = gD GELU'(Wd x + bd)
//   dx = gz + W^T du + Wd^T gd;  dW = du x^T;  dWd = gd x^T;  dbd = sum_p gd
//
// du and gd lie side by side in one map, so that one product and one sum over pixels serve both.
#pragma once

#include "alk_branch_backward.cuh"
#include "alk_pack.cuh"

namespace fastsr::cuda {

template <class T>
struct AlkTransposed {
  AlkShape shape;
  Map<T> g[3], du;               // du: channels padded to eight
  const unsigned char* filters;  // reversed
};

// The branches take turns in the planes, so that a pass takes more channels than `BackwardPlane`.
template <class T, int S>
using TransposedPlane = Plane<T, S,
                              sizeof(T) == 2 ? (S <= 32 ? 4 : 2)
                                             : (S == 24   ? 4
                                                : S == 32 ? 2
                                                          : 1)>;

template <class T, int S>
__global__ void __launch_bounds__(kThreads, S == 24 ? 2 : 1) alk_transposed_kernel(const AlkTransposed<T> a) {
  using P = TransposedPlane<T, S>;
  FASTSR_SHARED_MEMORY(memory);
  T* planes = reinterpret_cast<T*>(memory);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int passes = (a.shape.k + P::kChannels - 1) / P::kChannels;
  int64_t n;
  int y0, x0;
  a.shape.tile_at(blockIdx.x, &n, &y0, &x0);
  for (int pass = 0; pass < passes; ++pass) {
    const int left = min(a.shape.k - pass * P::kChannels, P::kChannels), blocks = blocks_of(left);
    float du[P::kPerWarp][2][4] = {};
#pragma unroll
    for (int branch = 0; branch < 3; ++branch) {
      const int above = branch == 0 ? P::kMargin : branch == 1 ? 0 : 1, rows = kTile + 2 * above;
#pragma unroll 1
      for (int i = warp; i < rows * (P::S / 8) * blocks; i += kWarps) {
        const int block = i % blocks, column = i / blocks % (P::S / 8) * 8,
                  row = i / blocks / (P::S / 8) + P::kMargin - above;
        const int y = y0 - P::kMargin + row, x = x0 - P::kMargin + column + g, c = kBlock * block + 8 * t;
        Eight<T> e = Eight<T>::zeros();
        if (y >= 0 && y < a.shape.h && x >= 0 && x < a.shape.w && c < left)
          e = a.g[branch].load(a.g[branch].at(n, y, x), pass * P::kChannels + c);
        for_product<T>(e.word);
        write_pixels<P>(planes, P::kSize, block, e, P::kStart + row * P::kRow + column);
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < P::kPerWarp; ++i) {
        const int in_pass = warp + kWarps * i;
        if (in_pass >= left) continue;
        Filters<P> f;
        f.load(a.filters, pass * P::kChannels + in_pass);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const T* plane = planes + P::first(in_pass);
          if (branch == 0) convolve_down<P>(plane, f, half, du[i][half]);
          if (branch == 1) convolve_across<P>(plane, f, half, du[i][half]);
          if (branch == 2) convolve_small<P>(plane, f, half, du[i][half]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < P::kPerWarp; ++i)  // also channels beyond the last: they are 0
#pragma unroll
      for (int half = 0; half < 2; ++half) put_results<P>(planes + P::first(warp + kWarps * i), half, du[i][half]);
    __syncthreads();
    for_each_result<P>(a.shape, y0, x0, pass, [&](int block, int group, int c, int y, int x, bool inside) {
      const Eight<T> e = read_pixels<P>(planes, P::kSize, block, group);
      if (inside) a.du.store(a.du.at(n, y, x), c, e);
    });
    __syncthreads();
  }
}

template <class T>
struct AlkProducts {
  AlkShape shape;
  Map<T> x, grad_distilled, gd, both, dx;  // both: du and gd
  const unsigned char *distil, *back;
  const float* distil_bias;
  int residual;
};

// gd
template <class T>
__global__ void __launch_bounds__(kThreads, 2) alk_distil_backward_kernel(const AlkProducts<T> a) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  int64_t n;
  int y0, x0;
  a.shape.tile_at(blockIdx.x, &n, &y0, &x0);
  for (int row = threadIdx.x / 32; row < kTile && y0 + row < a.shape.h; row += kWarps) {
    const int x = x0 + g;
    const bool inside[2] = {x < a.shape.w, x + 8 < a.shape.w};
    const int64_t from[2] = {a.x.at(n, y0 + row, x), a.x.at(n, y0 + row, x + 8)};
    for (int block = 0; block < blocks_of(a.shape.d); ++block) {
      const int c = kBlock * block + 8 * t;
      float out[2][8];
#pragma unroll
      for (int i = 0; i < 8; ++i) out[0][i] = out[1][i] = a.distil_bias[c + i];
      pixel_product(a.x, from, inside, a.distil + block * product_block_bytes<T>(a.shape.c), out);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        if (!inside[p]) continue;
        const Eight<T> grad = a.grad_distilled.load(a.grad_distilled.at(n, y0 + row, x + 8 * p), c);
        Eight<T> e;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          e.set_pair(i, grad.pair(i).x * gelu_derivative(out[p][2 * i]),
                     grad.pair(i).y * gelu_derivative(out[p][2 * i + 1]));
        a.gd.store(a.gd.at(n, y0 + row, x + 8 * p), c, e);
      }
    }
  }
}

// dx, which holds gz already if there is a residual.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) alk_input_gradient_kernel(const AlkProducts<T> a) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  int64_t n;
  int y0, x0;
  a.shape.tile_at(blockIdx.x, &n, &y0, &x0);
  for (int row = threadIdx.x / 32; row < kTile && y0 + row < a.shape.h; row += kWarps) {
    const int x = x0 + g;
    const bool inside[2] = {x < a.shape.w, x + 8 < a.shape.w};
    const int64_t from[2] = {a.both.at(n, y0 + row, x), a.both.at(n, y0 + row, x + 8)};
    for (int block = 0; block < blocks_of(a.shape.c); ++block) {
      const int c = kBlock * block + 8 * t;
      float out[2][8] = {};
      pixel_product(a.both, from, inside, a.back + block * product_block_bytes<T>(a.both.channels), out);
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        if (!inside[p]) continue;
        const int64_t to = a.dx.at(n, y0 + row, x + 8 * p);
        Eight<T> e = Eight<T>::zeros();
        if (a.residual) e = a.dx.load(to, c);
#pragma unroll
        for (int i = 0; i < 4; ++i) e.set_pair(i, out[p][2 * i] + e.pair(i).x, out[p][2 * i + 1] + e.pair(i).y);
        a.dx.store(to, c, e);
      }
    }
  }
}

}  // namespace fastsr::cuda
