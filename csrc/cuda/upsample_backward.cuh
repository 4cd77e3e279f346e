// upsample, backward: what is not that of the convolution.
//
//   g[(c s + i) s + j, h, w] = grad[c, h s + i, w s + j]
//   d_lr[c, h, w] = sum of grad[c, p, q] over the pixels (p, q) that lr[c, h, w] went to, times its weight there
#pragma once

#include "upsample.cuh"

namespace fastsr::cuda {

template <class T>
struct UpsampleBackward {
  Tiles tiles;  // of 1 x 16 LR pixels
  Map<T> grad, g, d_lr;
  int scale, residual;
};

constexpr int kShuffleThreads = 256;

// One warp per row of 16 LR pixels. Reads follow the image, writes the channels of g; its padding is written as 0.
template <class T>
__global__ void __launch_bounds__(kShuffleThreads, 2) unshuffle_kernel(const UpsampleBackward<T> a) {
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kShuffleThreads / 32) + threadIdx.x / 32;
  if (tile >= a.tiles.count) return;
  int64_t n;
  int y, x0;
  a.tiles.at(tile, &n, &y, &x0);
  const int outputs = a.grad.channels * a.scale * a.scale;
  with_image(a.grad.channels, a.scale, [&](auto fixed_channels, auto fixed_scale) {
    constexpr int C = decltype(fixed_channels)::value, S = decltype(fixed_scale)::value;
    const int channels = C ? C : a.grad.channels, s = S ? S : a.scale;
    const T* from = a.grad.data + n * a.grad.n_stride;
    T* to = a.g.data + a.g.at(n, y, x0);
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < channels * s * s * kTileColumns; i += 32) {
      const ShuffledItem item(i, channels, s, a.grad.c_stride == 1);
      const int x = x0 + item.pixel, k = (item.channel * s + item.row) * s + item.column;
      if (x < a.tiles.w)
        to[item.pixel * a.g.w_stride + k] =
            from[(y * s + item.row) * a.grad.h_stride + (x * s + item.column) * a.grad.w_stride +
                 item.channel * a.grad.c_stride];
    }
  });
  const int padding = a.g.channels - outputs;
  for (int i = threadIdx.x % 32; i < padding * kTileColumns; i += 32)
    if (x0 + i / padding < a.tiles.w)
      a.g.data[a.g.at(n, y, x0 + i / padding) + outputs + i % padding] = from_float<T>(0.f);
}

// One thread per pixel and channel of lr, which gathers.
template <class T>
__global__ void __launch_bounds__(kShuffleThreads, 2) lr_gradient_kernel(const UpsampleBackward<T> a) {
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * (kShuffleThreads / 32) + threadIdx.x / 32;
  if (tile >= a.tiles.count) return;
  int64_t n;
  int y, x0;
  a.tiles.at(tile, &n, &y, &x0);
  const int s = a.scale, height = a.tiles.h * s, width = a.tiles.w * s;
  const float step = 1.f / s;
  // An LR pixel reaches its own block, and by bilinear enlargement half of each neighbour's.
  const int before = a.residual == kBilinear ? s / 2 : 0, span = a.residual == kBilinear ? 2 * s : s;
  for (int i = threadIdx.x % 32; i < a.d_lr.channels * kTileColumns; i += 32) {
    const int x = x0 + i % kTileColumns, c = i / kTileColumns;
    if (x >= a.tiles.w) continue;
    float sum = 0.f;
#pragma unroll 1
    for (int p = max(y * s - before, 0); p < min(y * s - before + span, height); ++p) {
      const float down = a.residual == kBilinear ? BilinearTap(p, step, a.tiles.h).of(y) : 1.f;
      float row = 0.f;
#pragma unroll 1
      for (int q = max(x * s - before, 0); q < min(x * s - before + span, width); ++q) {
        const float across = a.residual == kBilinear ? BilinearTap(q, step, a.tiles.w).of(x) : 1.f;
        row = fmaf(across, to_float(a.grad.data[a.grad.at(n, p, q) + c * a.grad.c_stride]), row);
      }
      sum = fmaf(down, row, sum);
    }
    a.d_lr.data[a.d_lr.at(n, y, x) + c * a.d_lr.c_stride] = from_float<T>(sum);
  }
}

}  // namespace fastsr::cuda
