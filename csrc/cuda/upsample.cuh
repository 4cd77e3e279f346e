// upsample: 3x3 convolution, pixel shuffle and residual. The shuffle is an address.
//
//   y[c, h s + i, w s + j] = conv3x3(x)[(c s + i) s + j, h, w] + residual[c, h s + i, w s + j]
//   residual = lr[c, h, w] (anchor), bilinear(lr, s) or 0
#pragma once

#include "bilinear.cuh"
#include "conv3x3_tiles.cuh"

namespace fastsr::cuda {

enum Residual : int { kNoResidual = 0, kAnchor = 1, kBilinear = 2 };  // the operator's codes

template <class T>
struct Upsample {
  Convolution<T> conv;
  Map<T> y, lr;  // lr.data is null without a residual
  int scale, residual;
};

// Calls body(Constant<channels>(), Constant<scale>()) for the images of the networks, with zeros for others: divisions
// by what is not constant would be most of the work.
template <class Body>
__device__ __forceinline__ void with_image(int channels, int scale, Body body) {
  if (channels == 3 && scale == 2)
    body(Constant<3>(), Constant<2>());
  else if (channels == 3 && scale == 3)
    body(Constant<3>(), Constant<3>());
  else if (channels == 3 && scale == 4)
    body(Constant<3>(), Constant<4>());
  else
    body(Constant<0>(), Constant<0>());
}

// Item `i` of the scale x scale blocks of a row of 16 LR pixels. Neighbouring lanes take neighbours in memory.
struct ShuffledItem {
  int channel, pixel, row, column;  // of the image; within the row of LR pixels; within the block

  __device__ __forceinline__ ShuffledItem(int i, int channels, int scale, bool channels_adjacent) {
    int across;
    if (channels_adjacent) {
      channel = i % channels, i /= channels;
      across = i % (kTileColumns * scale), row = i / (kTileColumns * scale);
    } else {
      across = i % (kTileColumns * scale), i /= kTileColumns * scale;
      row = i % scale, channel = i / scale;
    }
    pixel = across / scale, column = across % scale;
  }
};

// A row of 16 LR pixels from (y, x0) on, from a warp's sums [pixel][channel] to the image.
template <class B, class T = typename B::T>
__device__ __forceinline__ void finish_blocks(const Upsample<T>& a, const float* sums, const float* bias, int64_t n,
                                              int y, int x0, int k0) {
  with_image(a.y.channels, a.scale, [&](auto fixed_channels, auto fixed_scale) {
    constexpr int C = decltype(fixed_channels)::value, S = decltype(fixed_scale)::value;
    const int channels = C ? C : a.y.channels, s = S ? S : a.scale, h = a.conv.tiles.h, w = a.conv.tiles.w;
    const float step = 1.f / s;
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < channels * s * s * kTileColumns; i += 32) {
      const ShuffledItem item(i, channels, s, a.y.c_stride == 1);
      const int x = x0 + item.pixel, c = item.channel, k = (c * s + item.row) * s + item.column - k0;
      if (x >= w || k < 0 || k >= B::kOut) continue;
      float value = sums[item.pixel * B::kStagePitch + k] + bias[k];
      const int to_y = y * s + item.row, to_x = x * s + item.column;
      const T* image = a.lr.data + n * a.lr.n_stride + c * a.lr.c_stride;
      const auto lr = [&](int from_y, int from_x) {
        return to_float(image[from_y * a.lr.h_stride + from_x * a.lr.w_stride]);
      };
      if (a.residual == kAnchor) value += lr(y, x);
      if (a.residual == kBilinear) {
        const BilinearTap down(to_y, step, h), across(to_x, step, w);
        const float above =
            lr(down.first, across.first) * (1.f - across.share) + lr(down.first, across.second) * across.share;
        const float below =
            lr(down.second, across.first) * (1.f - across.share) + lr(down.second, across.second) * across.share;
        value += above * (1.f - down.share) + below * down.share;
      }
      a.y.data[a.y.at(n, to_y, to_x) + c * a.y.c_stride] = from_float<T>(value);
    }
  });
}

template <class T, int N>
__global__ void __launch_bounds__(kConvThreads, ConvBlock<T, N>::kResident) upsample_kernel(const Upsample<T> a) {
  using B = ConvBlock<T, N>;
  convolve_tiles<B>(a.conv, [&](const float* sums, const float* bias, int64_t n, int y, int x0, int k0) {
    finish_blocks<B>(a, sums, bias, n, y, x0, k0);
  });
}

}  // namespace fastsr::cuda
