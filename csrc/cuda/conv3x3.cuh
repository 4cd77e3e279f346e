// y = act(conv3x3(x, w) + b) + other, or with `gradient` other * act'(conv3x3(x, w) + b).
#pragma once

#include "conv3x3_tiles.cuh"
#include "gelu.cuh"

namespace fastsr::cuda {

template <class T>
struct Conv3x3 {
  Convolution<T> conv;
  PixelMap<T> y, other;  // the same `vector`; other.data is null without one
  int activation, accuracy, gradient;
};

// 16 pixels from (y, x0) on: bias, activation and `other`, from a warp's sums to memory. `bias` and the sums begin at
// channel k0. A lane keeps its channels and goes along the row.
template <class B, class T = typename B::T>
__device__ __forceinline__ void finish_row(const Conv3x3<T>& a, const float* sums, const float* bias, int64_t n, int y,
                                           int x0, int k0) {
  const int lane = threadIdx.x % 32;
  with_vector<T>(a.y.vector, [&](auto vector) {
    constexpr int V = decltype(vector)::value, kLanes = B::kOut / V < 32 ? B::kOut / V : 32;
    constexpr int kTogether = V > 2 ? 2 : 4;  // pixels, so that loads of `other` overlap
    const bool across = V > 1 || a.y.c_stride == 1;
    const int first = across ? lane / kLanes : lane % kTileColumns, step = across ? 32 / kLanes : kTileColumns;
#pragma unroll 1
    for (int c = across ? lane % kLanes * V : lane / kTileColumns; c < B::kOut; c += across ? kLanes * V : 2) {
      const int k = k0 + c;
      if (k >= a.y.channels) break;
      const bool has_other = a.other.data && k < a.other.channels;
      float b[V];
#pragma unroll
      for (int j = 0; j < V; ++j) b[j] = bias[c + j];
      T* to = a.y.data + a.y.at(n, y, x0 + first) + k * a.y.c_stride;
      const T* from = a.other.data + (has_other ? a.other.at(n, y, x0 + first) + k * a.other.c_stride : 0);
#pragma unroll 1
      for (int pixel = first; pixel < kTileColumns; pixel += kTogether * step) {
        float beside[kTogether][V] = {};
#pragma unroll
        for (int i = 0; i < kTogether; ++i, from += step * a.other.w_stride)
          if (has_other && pixel + i * step < kTileColumns && x0 + pixel + i * step < a.conv.tiles.w)
            load_vector<V>(from, beside[i]);
#pragma unroll
        for (int i = 0; i < kTogether; ++i, to += step * a.y.w_stride) {
          if (pixel + i * step >= kTileColumns || x0 + pixel + i * step >= a.conv.tiles.w) continue;
          float v[V];
#pragma unroll
          for (int j = 0; j < V; ++j) v[j] = sums[(pixel + i * step) * B::kStagePitch + c + j] + b[j];
          if (a.gradient) {
#pragma unroll
            for (int j = 0; j < V; ++j) v[j] = beside[i][j] * activation_derivative(v[j], a.activation);
          } else {
            activate_all<T>(v, a.activation, a.accuracy);
#pragma unroll
            for (int j = 0; j < V; ++j) v[j] += beside[i][j];
          }
          store_vector<V>(to, v);
        }
      }
    }
  });
}

template <class T, int N>
__global__ void __launch_bounds__(kConvThreads, ConvBlock<T, N>::kResident) conv3x3_kernel(const Conv3x3<T> a) {
  using B = ConvBlock<T, N>;
  convolve_tiles<B>(a.conv, [&](const float* sums, const float* bias, int64_t n, int y, int x0, int k0) {
    finish_row<B>(a, sums, bias, n, y, x0, k0);
  });
}

}  // namespace fastsr::cuda
