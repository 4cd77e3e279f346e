// alk_conv and alk_stage for one instruction set.
//
//   u = pw x,  v = gelu(dw_kx1 u + b1) + gelu(dw_1xk u + b2) + gelu(dw_3x3 u + b3)
//   alk_conv:   y = act(norm(v))
//   alk_stage:  y = gelu(norm(v) + x),  distilled = gelu(d x + d_bias)
//
// A tile is a band of rows of a strip of columns. u exists only for the 4 + 2 halo rows that a step of 4 output rows
// needs, in a ring that fits L2; u's halo columns are computed twice, its halo rows only where a thread does not go on
// with the tile below. v exists for kChunk pixels of 4 rows, in L1.
#include "branches.inl"
#include "channel_norm.inl"
#include "distil.inl"

namespace fastsr::cpu {
namespace {
namespace alk {

constexpr int kStep = 4;        // output rows of a step
constexpr int64_t kChunk = 32;  // pixels of v; a multiple of kLanes
constexpr int kMaxRows = kStep + AlkConvShape::kMaxTaps - 1;

struct ForwardScratch {
  rows::Ring u;
  float *v, *row, *sums;

  ForwardScratch(const AlkConvShape& s, float* memory) : u(ring(s)) {
    u.data = memory;
    v = memory + u.size();
    row = v + v_row(u.groups) * kStep;
    sums = row + round_up((s.strip_width + 2 * s.halo) * s.c, kLanes);
  }
  static rows::Ring ring(const AlkConvShape& s) {
    return {nullptr, kStep + 2 * s.halo, round_up(s.k, kLanes) / kLanes,
            round_up(s.strip_width, branches::kPixels) + 2 * s.halo};
  }
  static int64_t v_row(int64_t groups) { return kChunk * groups * kLanes + kLanes; }
  static int64_t size(const AlkConvShape& s) {
    const rows::Ring u = ring(s);
    return u.size() + v_row(u.groups) * kStep + round_up((s.strip_width + 2 * s.halo) * s.c, kLanes) +
           distil::scratch(s.d);
  }
};

// y = act(norm(v) [+ x]) for at most kLanes pixels.
template <class T, Activation activation, bool residual, int G>
void norm_and_activate(const AlkConvForward<T>& a, const channel_norm::Channels& channels, const float* v,
                       int64_t count, const T* x, T* y) {
  const int64_t groups = G > 0 ? G : channels.groups;
  channel_norm::Moments m;
  channel_norm::moments<G>(v, channels, a.shape.eps, m);
  for (int64_t i = 0; i < count; ++i) {
    const vf mean = splat(m.mean[i]), rstd = splat(m.rstd[i]);
#pragma GCC unroll 4
    for (int64_t g = 0; g < groups; ++g) {
      const vf normed = (load(v + (i * groups + g) * kLanes) - mean) * rstd;
      vf out = normed * load(a.weights.norm_weight + g * kLanes) + load(a.weights.norm_bias + g * kLanes);
      if constexpr (residual) out += rows::load_group(x + i * a.x.stride_w, g, a.shape.k);
      rows::store_group(y + i * a.y.stride_w, g, a.shape.k, activate<activation>(out));
    }
  }
}

template <class T>
using NormAndActivate = void (*)(const AlkConvForward<T>&, const channel_norm::Channels&, const float*, int64_t,
                                 const T*, T*);

template <class T, int G>
NormAndActivate<T> norm_and_activate_for(const AlkConvShape& s) {
  if (s.residual) return &norm_and_activate<T, Activation::kGelu, true, G>;
  switch (static_cast<Activation>(s.activation)) {
    case Activation::kGelu:
      return &norm_and_activate<T, Activation::kGelu, false, G>;
    case Activation::kLeakyRelu:
      return &norm_and_activate<T, Activation::kLeakyRelu, false, G>;
    default:
      return &norm_and_activate<T, Activation::kNone, false, G>;
  }
}

template <class T>
void forward(const AlkConvForward<T>& a, const StripTile& t, bool continues, float* memory) {
  constexpr int kUsual = 64 / kLanes;
  const AlkConvShape& s = a.shape;
  const ForwardScratch scratch(s, memory);
  const rows::Ring& u = scratch.u;
  const channel_norm::Channels channels(s.k);
  const branches::Filters filters{a.weights.taps, a.weights.bias, s.taps, s.halo};
  const branches::Drivers& drivers = branches::drivers(s.taps);
  const NormAndActivate<T> epilogue =
      channels.groups == kUsual ? norm_and_activate_for<T, kUsual>(s) : norm_and_activate_for<T, 0>(s);
  const int64_t v_row = ForwardScratch::v_row(channels.groups);
  const float* ring_rows[kMaxRows];
  int64_t next = continues ? t.y0 + s.halo : t.y0 - s.halo;  // the next row of u
  for (int64_t y = t.y0; y < t.y1; y += kStep) {
    const int64_t count = std::min<int64_t>(kStep, t.y1 - y);
    for (; next < y + count + s.halo; ++next) {
      Prefetches<3> fetch;
      if (const int64_t row = next - s.halo; row >= y) {
        fetch.add({a.y, t.n, row, t.x0, t.x1 - t.x0, s.k});
        if (s.d > 0) fetch.add({a.distilled, t.n, row, t.x0, t.x1 - t.x0, s.d});
      }
      rows::fill_row(u, next, t.x0 - s.halo, t.x1 + s.halo, a.x, t.n, s.h, s.w, s.c, a.weights.pw, scratch.row, fetch);
    }
    for (int64_t i = 0; i < kStep + 2 * s.halo; ++i) ring_rows[i] = u.row(std::min(y - s.halo + i, next - 1));
    for (int64_t x = t.x0; x < t.x1; x += kChunk) {
      const int64_t pixels = std::min(kChunk, t.x1 - x);
      drivers.sum_of_gelus(
          filters,
          {{ring_rows, ring_rows, ring_rows}, (x - t.x0 + s.halo) * kLanes, u.pitch(), channels.groups, count, pixels},
          scratch.v, v_row);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < pixels; i += kLanes)
          epilogue(a, channels, scratch.v + r * v_row + i * channels.groups * kLanes,
                   std::min<int64_t>(kLanes, pixels - i), a.x.at(t.n, y + r, x + i), a.y.at(t.n, y + r, x + i));
    }
    if (s.d > 0)
      for (int64_t r = 0; r < count; ++r)
        distil::row(a.x.at(t.n, y + r, t.x0), a.x.stride_w, t.x1 - t.x0, s.c, s.d, a.weights.d_weight, a.weights.d_bias,
                    a.distilled.at(t.n, y + r, t.x0), a.distilled.stride_w, scratch.row, scratch.sums);
  }
}

}  // namespace alk
}  // namespace
}  // namespace fastsr::cpu
