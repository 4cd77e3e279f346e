// The forward of conv_mix:
//
//   d = act(dw3x3(x)) + x,  e = act(pw(d)),  y = c5(e + shortcut)
//
// Blocks of 24 neighbouring pixels of a row go through all of it in the first-level cache: the depthwise convolution
// reads its 3 x 26 pixels of x, then two matrix products follow with their activations in between.
#pragma once

#include "conv_tools.inl"
#include "prefetch.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

constexpr int64_t kMixChunk = 64;
constexpr int kDepthwiseRun = 4;

int64_t conv_mix_columns(int64_t channels) { return round_up(channels, 16); }

// Of forward and backward: blocks of pixels, the window of the depthwise convolution, and a tile more to read.
int64_t conv_mix_scratch_size(int64_t c, int64_t k) {
  return kBlockPixels * (6 * conv_mix_columns(c) + conv_mix_columns(k)) + 3 * (kBlockPixels + 2) * conv_mix_columns(c) +
         2 * kTilePixels;
}

// q[i] += the depthwise convolution at R neighbouring pixels from `from` on; each value is read once.
template <int R, class T>
FASTSR_INLINE void depthwise_run(const T* from, int64_t row, int64_t column, const vf (&w)[9], vf (&q)[R]) {
#pragma GCC unroll 3
  for (int r = 0; r < 3; ++r)
#pragma GCC unroll 6
    for (int x = 0; x < R + 2; ++x) {
      const vf value = load(from + r * row + x * column);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i)
        if (x - i >= 0 && x - i < 3) q[i] += value * w[3 * r + x - i];
    }
}

// Calls run(constant R, p) for all pixels, R of them at a time.
template <class Run>
FASTSR_INLINE void over_runs(int64_t pixels, Run&& run) {
  int64_t p = 0;
  for (; p + kDepthwiseRun <= pixels; p += kDepthwiseRun) run(std::integral_constant<int, kDepthwiseRun>{}, p);
  for (; p < pixels; ++p) run(std::integral_constant<int, 1>{}, p);
}

// d for `pixels` pixels: the depthwise convolution, its activation, + x; `before` keeps the activation's argument.
template <Activation activation, class T>
void mix_depthwise(const ConvMixArgs<T>& args, const Window<T>& x, int64_t pixels, float* d, float* before = nullptr) {
  const int64_t columns = conv_mix_columns(args.c);
  for (int64_t first = 0; first < args.c; first += kLanes) {
    const int64_t c = vector_begin(first, args.c);
    vf w[9];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) w[tap] = load(args.weights.dw + tap * columns + c);
    const vf bias = load(args.weights.dw_bias + c);
    const auto run = [&](auto count, int64_t p) {
      constexpr int R = decltype(count)::value;
      const T* from = x.data + p * x.column + c;
      vf q[R];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) q[i] = bias;
      depthwise_run<R>(from, x.row, x.column, w, q);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        if (before) store(before + (p + i) * columns + c, q[i]);
        store(d + (p + i) * columns + c, activate<activation>(q[i]) + load(from + x.row + (i + 1) * x.column));
      }
    };
    over_runs(pixels, run);
  }
}

// Rows that the block of pixels behind the one at (n, h, w) is the first to read, to be fetched meanwhile.
struct MixAhead {
  Prefetch x, shortcut, dy;
};

// dy: of the backward, or null.
template <class T>
MixAhead mix_ahead(const ConvMixArgs<T>& args, const ConvMap<const T>* dy, int64_t n, int64_t h, int64_t w,
                   int64_t pixels) {
  w += pixels;
  if (w == args.w) {
    w = 0;
    if (++h == args.h) {
      h = 0;
      ++n;
    }
  }
  if (n == args.n) return {};
  const int64_t next = std::min<int64_t>(kBlockPixels, args.w - w);
  const int64_t below = std::min(args.h - 1, h + (args.weights.dw ? 1 : 0));
  return {Prefetch(args.x, n, below, w, next, args.c), Prefetch(args.shortcut, n, h, w, next, args.c),
          dy ? Prefetch(*dy, n, h, w, next, args.k) : Prefetch()};
}

constexpr int64_t kMixFetch = 24;  // lines between two register tiles

template <Activation activation, class T>
void conv_mix_block(const ConvMixArgs<T>& args, float* scratch, int64_t n, int64_t h, int64_t w, int64_t pixels) {
  const int64_t columns = conv_mix_columns(args.c), out_columns = conv_mix_columns(args.k);
  float *d = scratch, *e = d + kBlockPixels * columns;
  // Fetched meanwhile: what this block ends in, and what the next one is the first to read.
  Prefetch y(args.y, n, h, w, pixels, args.k);
  MixAhead ahead = mix_ahead<T>(args, nullptr, n, h, w, pixels);
  if (args.weights.dw) {
    T* patch = reinterpret_cast<T*>(e + kBlockPixels * columns);
    const Window<T> from = window(args.x, args.c, args.h, args.w, n, h - 1, w - 1, 3, pixels + 2, patch);
    mix_depthwise<activation>(args, from, pixels, d);
  } else {
    load_pixels(args.x, n, h, w, args.c, pixels, d, columns);
  }
  block_product<kMixChunk>(
      d, columns, args.c, args.weights.pw, columns, pixels,
      [&](int64_t p, int64_t c, vf sum) { store(e + p * columns + c, sum); }, [&] { y.some(kMixFetch); });
  for (int64_t p = 0; p < pixels; ++p) {
    const T* shortcut = args.shortcut.at(n, h, w + p);
    for (int64_t c = 0; c < args.c; c += kLanes) {
      float* to = e + p * columns + c;
      store(to, activate<activation>(load(to) + load(args.weights.pw_bias + c)) + load_first(shortcut + c, args.c - c));
    }
  }
  block_product<kMixChunk>(
      e, columns, args.c, args.weights.c5, out_columns, pixels,
      [&](int64_t p, int64_t k, vf sum) {
        store_first(args.y.at(n, h, w + p) + k, sum + load(args.weights.c5_bias + k), args.k - k);
      },
      [&] {
        ahead.shortcut.some(kMixFetch);
        ahead.x.some(kMixFetch);
      });
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
