// The forward of conv_mix:
//
//   d = act(dw3x3(x)) + x,  e = act(pw(d)),  y = c5(e + shortcut)
//
// Blocks of 24 neighbouring pixels of a row go through all of it in the first-level cache: the depthwise convolution
// reads its 3 x 26 pixels of x, then two matrix products follow with their activations in between.
#pragma once

#include "conv_tools.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

constexpr int64_t kMixChunk = 64;

int64_t conv_mix_columns(int64_t channels) { return round_up(channels, 16); }

// Of forward and backward: blocks of pixels, the window of the depthwise convolution, and a tile more to read.
int64_t conv_mix_scratch_size(int64_t c, int64_t k) {
  return kBlockPixels * (6 * conv_mix_columns(c) + conv_mix_columns(k)) + 3 * (kBlockPixels + 2) * conv_mix_columns(c) +
         2 * kTilePixels;
}

// d for `pixels` pixels: the depthwise convolution, its activation, + x; `before` keeps the activation's argument.
template <Activation activation, class T>
void mix_depthwise(const ConvMixArgs<T>& args, const Window<T>& x, int64_t pixels, float* d, float* before = nullptr) {
  const int64_t columns = conv_mix_columns(args.c);
  const float* weight = args.weights.dw;
  for (int64_t first = 0; first < args.c; first += kLanes) {
    const int64_t c = vector_begin(first, args.c);
    vf w[9];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) w[tap] = load(weight + tap * columns + c);
    const vf bias = load(args.weights.dw_bias + c);
    for (int64_t p = 0; p < pixels; ++p) {
      const T* from = x.data + p * x.column + c;
      vf sum = bias, centre;
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
        for (int q = 0; q < 3; ++q) {
          const vf value = load(from + r * x.row + q * x.column);
          sum += value * w[3 * r + q];
          if (r == 1 && q == 1) centre = value;
        }
      if (before) store(before + p * columns + c, sum);
      store(d + p * columns + c, activate<activation>(sum) + centre);
    }
  }
}

template <Activation activation, class T>
void conv_mix_block(const ConvMixArgs<T>& args, float* scratch, int64_t n, int64_t h, int64_t w, int64_t pixels) {
  const int64_t columns = conv_mix_columns(args.c), out_columns = conv_mix_columns(args.k);
  float *d = scratch, *e = d + kBlockPixels * columns, *y = e + kBlockPixels * columns;
  if (args.weights.dw) {
    T* patch = reinterpret_cast<T*>(y + kBlockPixels * out_columns);
    const Window<T> x = window(args.x, args.c, args.h, args.w, n, h - 1, w - 1, 3, pixels + 2, patch);
    mix_depthwise<activation>(args, x, pixels, d);
  } else {
    load_pixels(args.x, n, h, w, args.c, pixels, d, columns);
  }
  block_product<kMixChunk>(d, columns, args.c, args.weights.pw, columns, e, pixels);
  for (int64_t p = 0; p < pixels; ++p) {
    const T* shortcut = args.shortcut.at(n, h, w + p);
    // Here vectors must not overlap: e is replaced.
    for (int64_t c = 0; c < args.c; c += kLanes) {
      float* to = e + p * columns + c;
      const vf added = load_first(shortcut + c, args.c - c);
      store(to, activate<activation>(load(to) + load(args.weights.pw_bias + c)) + added);
    }
  }
  block_product<kMixChunk>(e, columns, args.c, args.weights.c5, out_columns, y, pixels);
  for (int64_t p = 0; p < pixels; ++p) {
    T* to = args.y.at(n, h, w + p);
    for (int64_t first = 0; first < args.k; first += kLanes) {
      const int64_t k = vector_begin(first, args.k);
      store_first(to + k, load(y + p * out_columns + k) + load(args.weights.c5_bias + k), args.k - k);
    }
  }
}

template <class T>
void conv_mix_forward(const ConvMixArgs<T>& args, float* scratch, int64_t first, int64_t last) {
  with_activation(args.activation, [&](auto activation) {
    for (int64_t row = first; row < last; ++row)
      for (int64_t w = 0; w < args.w; w += kBlockPixels)
        conv_mix_block<decltype(activation)::value>(args, scratch, row / args.h, row % args.h, w,
                                                    std::min<int64_t>(kBlockPixels, args.w - w));
  });
}

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
