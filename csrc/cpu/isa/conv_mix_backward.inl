// The backward of conv_mix. With q = dw3x3(x), p = pw(d) (both with bias), t = act(p) + shortcut, computed again:
//
//   dt = c5^T dy = d_shortcut,  dp = dt act'(p),  dd = pw^T dp,  dq = dd act'(q),  dx = dd + dw3x3^T(dq)
//   d_c5 = t^T dy,  d_pw = d^T dp,  d_dw[tap] = sum x[. + tap] dq,  biases: sums of dy, dp, dq
//
// A first pass does all but dx in blocks of 24 pixels like the forward, a second one dx, which needs dq of neighbours.
#pragma once

#include "conv_mix_forward.inl"

namespace fastsr::cpu {
namespace {
namespace conv {

ConvMixSums conv_mix_sums(int64_t c, int64_t k) {
  const int64_t columns = conv_mix_columns(c), out_columns = conv_mix_columns(k);
  ConvMixSums s{};
  s.c5_bias = gradient_rows(c) * out_columns;
  s.pw = s.c5_bias + out_columns;
  s.pw_bias = s.pw + gradient_rows(c) * columns;
  s.dw = s.pw_bias + columns;
  s.dw_bias = s.dw + 9 * columns;
  s.size = s.dw_bias + columns;
  return s;
}

// The blocks that the first pass holds, [pixel][channels padded] each.
struct MixBlocks {
  float *q, *d, *p, *t, *dy, *dt, *dd;
  float* patch;
  MixBlocks(float* scratch, int64_t columns, int64_t out_columns) {
    float** blocks[] = {&q, &d, &p, &t, &dt, &dd};
    for (float** block : blocks) {
      *block = scratch;
      scratch += kBlockPixels * columns;
    }
    dy = scratch;
    patch = scratch + kBlockPixels * out_columns;
  }
};

// d_dw[tap][c] += sum_p x[p + tap][c] dq[p][c], and the bias.
template <class T>
void add_depthwise_gradient(const Window<T>& x, const float* dq, int64_t channels, int64_t columns, int64_t pixels,
                            float* d_weight, float* d_bias) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    // The last vector overlaps the one before it in x; only its new lanes are added.
    const int64_t from = vector_begin(c, channels), skip = c - from;
    vf tap[9] = {}, bias{};
    for (int64_t p = 0; p < pixels; ++p) {
      const vf g = load(dq + p * columns + from);
      bias += g;
      const T* at = x.data + p * x.column + from;
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r)
#pragma GCC unroll 3
        for (int q = 0; q < 3; ++q) tap[3 * r + q] += load(at + r * x.row + q * x.column) * g;
    }
    float lanes[kLanes];
    const int64_t end = std::min<int64_t>(kLanes, channels - from);
    for (int i = 0; i < 10; ++i) {
      float* to = (i < 9 ? d_weight + i * columns : d_bias) + from;
      store(lanes, i < 9 ? tap[i] : bias);
      for (int64_t l = skip; l < end; ++l) to[l] += lanes[l];
    }
  }
}

template <Activation activation, class T>
void conv_mix_backward_block(const ConvMixGradient<T>& args, float* scratch, float* sums, int64_t n, int64_t h,
                             int64_t w, int64_t pixels) {
  const ConvMixArgs<T>& f = args.forward;
  const int64_t columns = conv_mix_columns(f.c), out_columns = conv_mix_columns(f.k), size = pixels * columns;
  const ConvMixSums at = conv_mix_sums(f.c, f.k);
  const MixBlocks b(scratch, columns, out_columns);
  const int64_t pixel = (n * f.h + h) * f.w + w;
  Window<T> x{};
  if (f.weights.dw) {
    x = window(f.x, f.c, f.h, f.w, n, h - 1, w - 1, 3, pixels + 2, reinterpret_cast<T*>(b.patch));
    mix_depthwise<activation>(f, x, pixels, b.d, b.q);
  } else {
    load_pixels(f.x, n, h, w, f.c, pixels, b.d, columns);
  }
  load_pixels(args.dy, n, h, w, f.k, pixels, b.dy, out_columns);
  load_pixels(f.shortcut, n, h, w, f.c, pixels, b.t, columns);
  // Fetched meanwhile: where results go, and what the next block is the first to read.
  MixAhead ahead = mix_ahead(f, &args.dy, n, h, w, pixels);
  Prefetch d_shortcut(args.d_shortcut, n, h, w, pixels, f.c);
  const auto to = [columns](float* y) {
    return [=](int64_t p, int64_t o, vf sum) { store(y + p * columns + o, sum); };
  };
  block_product<kMixChunk>(b.d, columns, f.c, f.weights.pw, columns, pixels, to(b.p),
                           [&] { d_shortcut.some(kMixFetch); });
  block_product<kMixChunk>(b.dy, out_columns, f.k, args.c5_rows, columns, pixels, to(b.dt),
                           [&] { ahead.dy.some(kMixFetch); });
  store_pixels(b.dt, columns, args.d_shortcut, n, h, w, f.c, pixels);
  for (int64_t i = 0; i < size; i += columns)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const vf p = load(b.p + i + c) + load(f.weights.pw_bias + c);
      store(b.t + i + c, load(b.t + i + c) + activate<activation>(p));
      store(b.p + i + c, load(b.dt + i + c) * activate_grad<activation>(p));  // dp
    }
  add_weight_gradient(b.t, columns, f.c, b.dy, out_columns, pixels, sums + at.c5);
  add_column_sums(b.dy, out_columns, pixels, sums + at.c5_bias);
  add_weight_gradient(b.d, columns, f.c, b.p, columns, pixels, sums + at.pw);
  add_column_sums(b.p, columns, pixels, sums + at.pw_bias);
  if (!f.weights.dw) {
    block_product<kMixChunk>(b.p, columns, f.c, args.pw_rows, columns, pixels, to(b.dd), [] {});
    return store_pixels(b.dd, columns, args.dx, n, h, w, f.c, pixels);
  }
  float *dd = b.dd, *dq = args.dq + pixel * columns;
  block_product<kMixChunk>(b.p, columns, f.c, args.pw_rows, columns, pixels, to(dd), [&] {
    ahead.shortcut.some(kMixFetch);
    ahead.x.some(kMixFetch);
  });
  for (int64_t i = 0; i < size; i += kLanes) {
    const vf g = load(dd + i);
    store(args.dd + pixel * columns + i, g);
    store(dq + i, g * activate_grad<activation>(load(b.q + i)));
  }
  add_depthwise_gradient(x, dq, f.c, columns, pixels, sums + at.dw, sums + at.dw_bias);
}

template <class T>
void conv_mix_backward(const ConvMixGradient<T>& args, float* scratch, float* sums, int64_t first, int64_t last) {
  with_activation(args.forward.activation, [&](auto activation) {
    const ConvMixArgs<T>& f = args.forward;
    for (int64_t row = first; row < last; ++row)
      for (int64_t w = 0; w < f.w; w += kBlockPixels)
        conv_mix_backward_block<decltype(activation)::value>(args, scratch, sums, row / f.h, row % f.h, w,
                                                             std::min<int64_t>(kBlockPixels, f.w - w));
  });
}

// dx = dd + dw3x3^T(dq): the depthwise convolution of dq with the filters turned by 180 degrees.
template <class T>
void conv_mix_finish_backward(const ConvMixGradient<T>& args, float* scratch, int64_t first, int64_t last) {
  const ConvMixArgs<T>& f = args.forward;
  const int64_t columns = conv_mix_columns(f.c);
  const ConvMap<const float> dq{args.dq, f.h * f.w * columns, f.w * columns, columns};
  float *sum = scratch, *patch = sum + kBlockPixels * columns;
  for (int64_t row = first; row < last; ++row)
    for (int64_t w = 0; w < f.w; w += kBlockPixels) {
      const int64_t n = row / f.h, h = row % f.h, pixels = std::min<int64_t>(kBlockPixels, f.w - w);
      const Window<float> g = window(dq, columns, f.h, f.w, n, h - 1, w - 1, 3, pixels + 2, patch);
      const float* dd = args.dd + ((n * f.h + h) * f.w + w) * columns;
      for (int64_t c = 0; c < columns; c += kLanes) {
        vf weight[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) weight[tap] = load(f.weights.dw + (8 - tap) * columns + c);
        const auto run = [&](auto count, int64_t p) {
          constexpr int R = decltype(count)::value;
          vf s[R];
#pragma GCC unroll 4
          for (int i = 0; i < R; ++i) s[i] = load(dd + (p + i) * columns + c);
          depthwise_run<R>(g.data + p * g.column + c, g.row, g.column, weight, s);
#pragma GCC unroll 4
          for (int i = 0; i < R; ++i) store(sum + (p + i) * columns + c, s[i]);
        };
        over_runs(pixels, run);
      }
      store_pixels(sum, columns, args.dx, n, h, w, f.c, pixels);
    }
}

}  // namespace conv
}  // namespace
}  // namespace fastsr::cpu
