// The backward of alk_conv and alk_stage for one instruction set. Everything but x and the weights is computed again.
//
//   gy = grad act'(y)                    at the norm's output; also the residual's part of dx
//   dv = the norm's backward of gy,  da_i = dv gelu'(a_i) for the three branches' pre-activations a_i
//   du = transposed dw_i of da_i, summed,  gz = grad_distilled gelu'(z)
//   dx = pw^T du + d^T gz + gy
//   d_pw, d_d = x outer (du | gz),  d_tap[t] = sum da(p) u(p + t)
//
// A tile runs down its rows two at a time: u for rows b + halo, then da for rows b, then du and all that follows for
// rows b - halo. u, da and gy live in rings. The tile computes da on a halo around itself and u on a halo around that;
// sums of weight gradients take the tile's own pixels only.
#pragma once

#include "alk_conv.inl"
#include "outer.inl"

namespace fastsr::cpu {
namespace {
namespace alk {

constexpr int kBackStep = branches::kRows;
constexpr int64_t kBackChunk = 16;  // pixels of v and the slopes, which fill L1 for two rows of 64 channels
static_assert(kBackChunk % kLanes == 0 && kBackChunk % branches::kPixels == 0);

// Partial sums of weight gradients, one block of floats.
struct Gradients {
  float* products;                 // [C][K' + D']: d_pw and d_d
  float* taps;                     // [group][2k + 9 + 3][lanes]
  float *norm_weight, *norm_bias;  // [K']
  float* d_bias;                   // [D']

  Gradients(const AlkConvShape& s, float* memory) {
    const int64_t k = round_up(s.k, kLanes), d = round_up(s.d, kLanes);
    products = memory;
    taps = products + s.c * (k + d);
    norm_weight = taps + k / kLanes * branches::gradient_size(s.taps);
    norm_bias = norm_weight + k;
    d_bias = norm_bias + k;
  }
  static int64_t size(const AlkConvShape& s) {
    const int64_t k = round_up(s.k, kLanes), d = round_up(s.d, kLanes);
    return s.c * (k + d) + k / kLanes * branches::gradient_size(s.taps) + 2 * k + d;
  }
};

struct BackwardScratch {
  rows::Ring u, da[3];
  int64_t k, d, gy_slots, gy_row, v_row;
  float *gy, *v, *slopes, *cat, *row, *sums;

  BackwardScratch(const AlkConvShape& s, float* memory) : BackwardScratch(s) {
    u.data = memory;
    float* next = u.data + u.size();
    for (rows::Ring& ring : da) {
      ring.data = next;
      next += ring.size();
    }
    const auto part = [&](float*& p, int64_t size) {
      p = next;
      next += round_up(size, 16);
    };
    part(gy, gy_slots * gy_row);
    part(v, kBackStep * v_row);
    part(slopes, 3 * kBackStep * v_row);
    part(cat, round_up(s.strip_width, branches::kPixels) * (k + d) * kBackStep);
    part(row, (s.strip_width + 4 * s.halo) * s.c);
    part(sums, s.strip_width * d);
  }
  static int64_t size(const AlkConvShape& s) {
    const BackwardScratch b(s);
    return b.u.size() + 3 * b.da[0].size() + b.gy_slots * b.gy_row + 4 * kBackStep * b.v_row +
           (s.strip_width + 4) * (b.k + b.d) * kBackStep + (s.strip_width + 4 * s.halo) * s.c + s.strip_width * b.d +
           6 * 16;
  }
  float* gy_at(int64_t y) const { return gy + (y + gy_slots) % gy_slots * gy_row; }

 private:
  explicit BackwardScratch(const AlkConvShape& s) {
    k = round_up(s.k, kLanes);
    d = round_up(s.d, kLanes);
    const int64_t slots = kBackStep + 2 * s.halo, width = round_up(s.strip_width, kBackChunk);
    u = {nullptr, slots, k / kLanes, width + 4 * s.halo + kBackChunk};
    for (rows::Ring& ring : da) ring = {nullptr, slots, k / kLanes, width + 2 * s.halo + kBackChunk};
    gy_slots = kBackStep + s.halo;
    gy_row = (s.strip_width + 2 * s.halo) * k;
    v_row = kBackChunk * k + kLanes;
  }
};

// Up to kLanes pixels of one row, from v and the slopes to gy and the branches' gradients.
template <class T>
struct NormBackward {
  const AlkConvBackward<T>& a;
  const channel_norm::Channels& channels;
  const float *v, *slopes;
  int64_t slope_stride, count;
  const T *grad, *x;
  float* gy;     // [pixel][K']
  float* da[3];  // at pixel 0 of group 0
  int64_t pitch;
  int64_t own_first, own_last;  // pixels that count for the parameters' gradients
  const Gradients& gradients;
};

template <class T, Activation activation, bool residual, int G>
void norm_backward(const NormBackward<T>& b) {
  const int64_t groups = G > 0 ? G : b.channels.groups, k = b.a.shape.k;
  const AlkConvWeights& w = b.a.weights;
  channel_norm::Moments m;
  channel_norm::moments<G>(b.v, b.channels, b.a.shape.eps, m);
  vf g_sums[kLanes] = {}, gx_sums[kLanes] = {};
  for (int64_t i = 0; i < b.count; ++i) {
    const vf mean = splat(m.mean[i]), rstd = splat(m.rstd[i]);
    vf g_sum{}, gx_sum{};
#pragma GCC unroll 4
    for (int64_t g = 0; g < groups; ++g) {
      const vf weight = load(w.norm_weight + g * kLanes);
      const vf xhat = (load(b.v + (i * groups + g) * kLanes) - mean) * rstd;
      vf gy = rows::load_group(b.grad + i * b.a.grad.stride_w, g, k);
      if constexpr (activation != Activation::kNone) {
        vf y = xhat * weight + load(w.norm_bias + g * kLanes);
        if constexpr (residual) y += rows::load_group(b.x + i * b.a.x.stride_w, g, k);
        gy *= activate_grad<activation>(y);
      }
      store(b.gy + (i * groups + g) * kLanes, gy);
      const vf scaled = gy * weight;
      g_sum += scaled;
      gx_sum += scaled * xhat;
    }
    g_sums[i] = g_sum;
    gx_sums[i] = gx_sum;
  }
  const float inverse = 1.f / static_cast<float>(k);
  alignas(64) float g_means[kLanes], gx_means[kLanes];
  store(g_means, channel_norm::lane_sums(g_sums) * inverse);
  store(gx_means, channel_norm::lane_sums(gx_sums) * inverse);
  for (int64_t g = 0; g < groups; ++g) {  // outside, so that the parameters' sums stay in registers
    const vf weight = load(w.norm_weight + g * kLanes);
    vf w_sum{}, b_sum{};
    for (int64_t i = 0; i < b.count; ++i) {
      const int64_t at = (i * groups + g) * kLanes, to = g * b.pitch + i * kLanes;
      const vf xhat = (load(b.v + at) - m.mean[i]) * m.rstd[i], gy = load(b.gy + at);
      if (i >= b.own_first && i < b.own_last) {
        w_sum += gy * xhat;
        b_sum += gy;
      }
      // The statistics are of v / width.
      const vf dv = (m.rstd[i] * kInverseWidth) * (gy * weight - g_means[i] - xhat * gx_means[i]);
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j) store(b.da[j] + to, dv * load(b.slopes + j * b.slope_stride + at));
    }
    float *dw = b.gradients.norm_weight + g * kLanes, *db = b.gradients.norm_bias + g * kLanes;
    store(dw, load(dw) + w_sum);
    store(db, load(db) + b_sum);
  }
}

template <class T, int G>
auto norm_backward_for(const AlkConvShape& s) -> void (*)(const NormBackward<T>&) {
  if (s.residual) return &norm_backward<T, Activation::kGelu, true, G>;
  switch (static_cast<Activation>(s.activation)) {
    case Activation::kGelu:
      return &norm_backward<T, Activation::kGelu, false, G>;
    case Activation::kLeakyRelu:
      return &norm_backward<T, Activation::kLeakyRelu, false, G>;
    default:
      return &norm_backward<T, Activation::kNone, false, G>;
  }
}

template <class T>
struct BackwardTile {
  const AlkConvBackward<T>& a;
  const StripTile& t;
  const AlkConvShape& s;
  const BackwardScratch scratch;
  const Gradients gradients;
  const channel_norm::Channels channels;
  const branches::Drivers& drivers;
  void (*const norm)(const NormBackward<T>&);
  const float* u_rows[kMaxRows];

  BackwardTile(const AlkConvBackward<T>& a, const StripTile& t, float* memory, float* sums)
      : a(a),
        t(t),
        s(a.shape),
        scratch(s, memory),
        gradients(s, sums),
        channels(s.k),
        drivers(branches::drivers(s.taps)),
        norm(channels.groups == 64 / kLanes ? norm_backward_for<T, 64 / kLanes>(s) : norm_backward_for<T, 0>(s)) {}

  // Gradients of the branches for rows [b, b + 2) and the tile's columns with their halo.
  void branch_rows(int64_t b) {
    const int64_t first = std::max<int64_t>(t.x0 - s.halo, 0), last = std::min(t.x1 + s.halo, s.w);
    const int64_t ring_first = t.x0 - s.halo, u_first = t.x0 - 2 * s.halo;
    for (int64_t r = 0; r < kBackStep; ++r)
      for (const rows::Ring& ring : scratch.da) {
        if (b + r < 0 || b + r >= s.h) {
          ring.clear_row(b + r);
        } else {
          ring.clear_pixels(b + r, 0, first - ring_first);
          ring.clear_pixels(b + r, last - ring_first, t.x1 + s.halo - ring_first);
        }
      }
    if (b + kBackStep <= 0 || b >= s.h) return;
    const branches::Filters filters{a.weights.taps, a.weights.bias, s.taps, s.halo};
    const int64_t slope_stride = kBackStep * scratch.v_row;
    for (int64_t x = first; x < last; x += kBackChunk) {
      const int64_t count = std::min(kBackChunk, last - x);
      drivers.gelus_and_slopes(
          filters,
          {{u_rows, u_rows, u_rows}, (x - u_first) * kLanes, scratch.u.pitch(), channels.groups, kBackStep, count},
          scratch.v, scratch.v_row, scratch.slopes, slope_stride);
      for (int64_t r = 0; r < kBackStep; ++r) {
        const int64_t y = b + r;
        if (y < 0 || y >= s.h) continue;
        for (int64_t i = 0; i < count; i += kLanes) {
          const int64_t start = r * scratch.v_row + i * scratch.k, to = (x + i - ring_first) * kLanes;
          const bool own = y >= t.y0 && y < t.y1;
          norm({a,
                channels,
                scratch.v + start,
                scratch.slopes + start,
                slope_stride,
                std::min<int64_t>(kLanes, count - i),
                a.grad.at(t.n, y, x + i),
                a.x.at(t.n, y, x + i),
                scratch.gy_at(y) + (x + i - ring_first) * scratch.k,
                {scratch.da[0].row(y) + to, scratch.da[1].row(y) + to, scratch.da[2].row(y) + to},
                scratch.da[0].pitch(),
                own ? t.x0 - x - i : 0,
                own ? t.x1 - x - i : 0,
                gradients});
        }
      }
    }
    for (int64_t r = 0; r < kBackStep; ++r) {
      const int64_t y = b + r, at = s.halo * kLanes;
      if (y < t.y0 || y >= t.y1) continue;
      const float* d[3] = {scratch.da[0].row(y) + at, scratch.da[1].row(y) + at, scratch.da[2].row(y) + at};
      const float* const* from = u_rows + r;
      drivers.tap_gradients(
          filters, {{from, from, from}, 2 * s.halo * kLanes, scratch.u.pitch(), channels.groups, 1, t.x1 - t.x0}, d,
          scratch.da[0].pitch(), gradients.taps);
    }
  }

  // gz of one row into the columns of `cat` behind du.
  void distilled_row(int64_t y, const rows::FloatRow& x, float* cat) {
    const int64_t count = t.x1 - t.x0, d = scratch.d, stride = scratch.k + d;
    float* sums = scratch.sums;
    rows::pointwise(x, count, s.c, a.weights.d_weight, d / kLanes,
                    [=](int64_t i, int64_t g, vf v) { store(sums + i * d + g * kLanes, v); });
    for (int64_t g = 0; g < d / kLanes; ++g) {
      const T* grad = a.grad_distilled.at(t.n, y, t.x0);
      const vf bias = load(a.weights.d_bias + g * kLanes);
      vf total{};
      for (int64_t i = 0; i < count; ++i, grad += a.grad_distilled.stride_w) {
        const vf gz = rows::load_group(grad, g, s.d) * gelu_grad(load(sums + i * d + g * kLanes) + bias);
        total += gz;
        store(cat + i * stride + scratch.k + g * kLanes, gz);
      }
      store(gradients.d_bias + g * kLanes, load(gradients.d_bias + g * kLanes) + total);
    }
  }

  // dx and the gradients of the pointwise weights for the rows of [c, c + 2) that belong to the tile.
  void input_rows(int64_t c) {
    const float* da_rows[3][kMaxRows];
    for (int j = 0; j < 3; ++j)
      for (int64_t i = 0; i < kBackStep + 2 * s.halo; ++i) da_rows[j][i] = scratch.da[j].row(c - s.halo + i);
    const int64_t count = t.x1 - t.x0, stride = scratch.k + scratch.d;
    const int64_t cat_row = round_up(s.strip_width, branches::kPixels) * stride;
    drivers.sum_of_filters({a.taps_transposed, a.no_bias, s.taps, s.halo},
                           {{da_rows[0], da_rows[1], da_rows[2]},
                            s.halo * kLanes,
                            scratch.da[0].pitch(),
                            channels.groups,
                            kBackStep,
                            count},
                           scratch.cat, cat_row, stride);
    for (int64_t r = 0; r < kBackStep && c + r < t.y1; ++r) {
      const int64_t y = c + r;
      float* cat = scratch.cat + r * cat_row;
      const rows::FloatRow x = rows::float_row(a.x.at(t.n, y, t.x0), a.x.stride_w, count, s.c, scratch.row);
      if (s.d > 0) distilled_row(y, x, cat);
      rows::outer(x, count, s.c, cat, stride / kLanes, gradients.products);
      const float* gy = s.residual ? scratch.gy_at(y) + s.halo * scratch.k : nullptr;
      T* dx = a.dx.at(t.n, y, t.x0);
      const int64_t dx_stride = a.dx.stride_w, k = scratch.k, channels_of_x = s.c;
      rows::pointwise({cat, stride}, count, stride, a.products_transposed, round_up(s.c, kLanes) / kLanes,
                      [=](int64_t i, int64_t g, vf v) {
                        if (gy) v += load(gy + i * k + g * kLanes);
                        rows::store_group(dx + i * dx_stride, g, channels_of_x, v);
                      });
    }
  }

  void run() {
    int64_t next = t.y0 - 2 * s.halo;  // the next row of u
    for (int64_t b = t.y0 - s.halo; b < t.y1 + s.halo; b += kBackStep) {
      for (; next < b + kBackStep + s.halo; ++next) {
        Prefetches<2> fetch;
        if (const int64_t row = next - 2 * s.halo; row >= t.y0 && row < t.y1)
          fetch.add({a.dx, t.n, row, t.x0, t.x1 - t.x0, s.c});
        rows::fill_row(scratch.u, next, t.x0 - 2 * s.halo, t.x1 + 2 * s.halo, a.x, t.n, s.h, s.w, s.c, a.weights.pw,
                       scratch.row, fetch);
      }
      for (int64_t i = 0; i < kBackStep + 2 * s.halo; ++i) u_rows[i] = scratch.u.row(b - s.halo + i);
      branch_rows(b);
      if (b - s.halo >= t.y0) input_rows(b - s.halo);
    }
  }
};

template <class T>
void backward(const AlkConvBackward<T>& a, const StripTile& t, float* memory, float* sums) {
  BackwardTile<T>(a, t, memory, sums).run();
}

}  // namespace alk

constexpr AlkConvKernels alk_conv_kernels() {
  return {kLanes,
          Table::kWidth,
          &alk::ForwardScratch::size,
          &alk::forward<float>,
          &alk::forward<Half>,
          &alk::forward<BFloat16>,
          &alk::BackwardScratch::size,
          &alk::Gradients::size,
          &alk::backward<float>,
          &alk::backward<Half>,
          &alk::backward<BFloat16>};
}

}  // namespace
}  // namespace fastsr::cpu
