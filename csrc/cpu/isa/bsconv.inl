// bsconv for one instruction set.
//
//   u = pw x,  a = dw_3x3 u + bias + shortcut,  y = act(a),  distilled = gelu(d x + d_bias)
//   g = grad act'(a),  du = transposed dw of g,  dx = pw^T du
//   d_pw = x outer du,  d_tap[t] = sum g(p) u(p + t),  d_shortcut = g
//
// A tile runs down its rows; u, and g in the backward, exist in rings of few rows. Halo columns of u are computed
// twice. The backward computes g on a halo of 1 and u on a halo of 2 around the tile.
#pragma once

#include "branches.inl"
#include "distil.inl"
#include "outer.inl"

namespace fastsr::cpu {
namespace {
namespace blueprint {

constexpr int kStep = 4, kBackStep = branches::kRows;
constexpr int kTile = branches::kTile, kPixels = branches::kPixels;

// out(row, pixel, sums) for 2 rows of `count` pixels of group g. rows[0] is the row above; pixel 0 lies at `offset`.
template <class Out>
FASTSR_INLINE void square_row(const float* const* rows, int64_t offset, const float* taps, vf bias, int64_t count,
                              Out out) {
  alignas(64) float sums[kTile][kLanes];
  for (int64_t x = 0; x < count; x += kPixels) {
    branches::square(rows, offset + (x - 1) * kLanes, taps, bias, sums);
    for (int q = 0; q < kTile; ++q)
      if (x + q % kPixels < count) out(q / kPixels, x + q % kPixels, load(sums[q]));
  }
}

// ---- forward

rows::Ring forward_ring(const BsconvShape& s) {
  return {nullptr, kStep + 2, round_up(s.k, kLanes) / kLanes, round_up(s.strip_width, kPixels) + 2};
}
int64_t forward_scratch(const BsconvShape& s) {
  return forward_ring(s).size() + (s.strip_width + 2) * s.c + distil::scratch(s.d);
}

// Rows [y, y + min(2, valid_rows)) of group g. What is the same for all pixels is settled in front of the loop, which
// has little else to do.
template <class T, Activation activation>
FASTSR_INLINE void finish_rows(const BsconvForward<T>& a, const StripTile& t, int64_t y, int64_t valid_rows,
                               const float* const* ring_rows, const rows::Ring& u, int64_t g) {
  const int64_t valid = a.shape.k - g * kLanes;
  T* const out = a.y.at(t.n, y, t.x0) + g * kLanes;
  const T* const added = a.shape.has_shortcut ? a.shortcut.at(t.n, y, t.x0) + g * kLanes : nullptr;
  const auto filter = [&](auto whole) {
    square_row(ring_rows, g * u.pitch() + kLanes, a.taps + g * 9 * kLanes, load(a.bias + g * kLanes), t.x1 - t.x0,
               [&](int64_t row, int64_t x, vf v) {
                 if (row >= valid_rows) return;
                 if (added) {
                   const T* from = added + row * a.shortcut.stride_h + x * a.shortcut.stride_w;
                   v += whole ? load(from) : load_first(from, valid);
                 }
                 T* to = out + row * a.y.stride_h + x * a.y.stride_w;
                 v = activate<activation>(v);
                 whole ? store(to, v) : store_first(to, v, valid);
               });
  };
  if (valid >= kLanes)
    filter(std::true_type{});
  else
    filter(std::false_type{});
}

template <class T, Activation activation>
void forward_as(const BsconvForward<T>& a, const StripTile& t, bool continues, float* memory) {
  const BsconvShape& s = a.shape;
  rows::Ring u = forward_ring(s);
  u.data = memory;
  float* row = memory + u.size();
  int64_t next = continues ? t.y0 + 1 : t.y0 - 1;  // the next row of u
  for (int64_t y = t.y0; y < t.y1; y += kStep) {
    const int64_t count = std::min<int64_t>(kStep, t.y1 - y);
    for (; next < y + count + 1; ++next) {
      Prefetches<3> fetch;
      if (next > y) {
        fetch.add({a.y, t.n, next - 1, t.x0, t.x1 - t.x0, s.k});
        if (s.d > 0) fetch.add({a.distilled, t.n, next - 1, t.x0, t.x1 - t.x0, s.d});
      }
      rows::fill_row(u, next, t.x0 - 1, t.x1 + 1, a.x, t.n, s.h, s.w, s.c, a.pw, row, fetch);
    }
    const float* ring_rows[kStep + 2];
    for (int64_t i = 0; i < kStep + 2; ++i) ring_rows[i] = u.row(std::min(y - 1 + i, next - 1));
    for (int64_t r = 0; r < count; r += branches::kRows)
      for (int64_t g = 0; g < u.groups; ++g) finish_rows<T, activation>(a, t, y + r, count - r, ring_rows + r, u, g);
    if (s.d > 0)
      for (int64_t r = 0; r < count; ++r)
        distil::row(a.x.at(t.n, y + r, t.x0), a.x.stride_w, t.x1 - t.x0, s.c, s.d, a.d_weight, a.d_bias,
                    a.distilled.at(t.n, y + r, t.x0), a.distilled.stride_w, row, row + (s.strip_width + 2) * s.c);
  }
}

template <class T>
void forward(const BsconvForward<T>& a, const StripTile& t, bool continues, float* memory) {
  switch (static_cast<Activation>(a.shape.activation)) {
    case Activation::kGelu:
      return forward_as<T, Activation::kGelu>(a, t, continues, memory);
    case Activation::kLeakyRelu:
      return forward_as<T, Activation::kLeakyRelu>(a, t, continues, memory);
    default:
      return forward_as<T, Activation::kNone>(a, t, continues, memory);
  }
}

// ---- backward

constexpr int kGradientTaps = 9 + 1;  // with the bias

int64_t gradient_floats(const BsconvShape& s) {
  const int64_t k = round_up(s.k, kLanes);
  return s.c * k + k * kGradientTaps;
}

struct BackwardScratch {
  rows::Ring u, g;
  float *cat, *row;
  int64_t k, cat_row, size;

  BackwardScratch(const BsconvShape& s, float* memory) {
    k = round_up(s.k, kLanes);
    const int64_t width = round_up(s.strip_width, kPixels) + kPixels;
    cat_row = width * k;
    u = {memory, kBackStep + 2, k / kLanes, width + 4};
    g = {memory + u.size(), kBackStep + 2, k / kLanes, width + 2};
    cat = g.data + g.size();
    row = cat + kBackStep * cat_row;
  }
  static int64_t floats(const BsconvShape& s) {
    const int64_t k = round_up(s.k, kLanes), width = round_up(s.strip_width, kPixels) + kPixels;
    const rows::Ring u{nullptr, kBackStep + 2, k / kLanes, width + 4};
    return 2 * u.size() + kBackStep * width * k + (s.strip_width + 4) * s.c;
  }
};

// g of rows [b, b + 2) on the tile's columns with a halo of 1, and from it what the tile's own pixels add to sums.
template <class T, Activation activation>
void gradient_rows(const BsconvBackward<T>& a, const StripTile& t, const BackwardScratch& scratch,
                   const float* const* u_rows, int64_t b, float* gradients) {
  const BsconvShape& s = a.shape;
  const rows::Ring& ring = scratch.g;
  const int64_t first = std::max<int64_t>(t.x0 - 1, 0), last = std::min(t.x1 + 1, s.w), ring_first = t.x0 - 1;
  for (int64_t r = 0; r < kBackStep; ++r) {
    if (b + r < 0 || b + r >= s.h) {
      ring.clear_row(b + r);
    } else {
      ring.clear_pixels(b + r, 0, first - ring_first);
      ring.clear_pixels(b + r, last - ring_first, t.x1 + 1 - ring_first);
    }
  }
  float* const ring_rows[kBackStep] = {ring.row(b), ring.row(b + 1)};
  for (int64_t g = 0; g < ring.groups; ++g) {
    const auto put = [&](int64_t r, int64_t x, vf pre) {
      const int64_t y = b + r;
      if (y < 0 || y >= s.h) return;
      vf d = rows::load_group(a.grad.at(t.n, y, x), g, s.k);
      if constexpr (activation != Activation::kNone) {
        if (s.has_shortcut) pre += rows::load_group(a.shortcut.at(t.n, y, x), g, s.k);
        d *= activate_grad<activation>(pre);
        if (a.d_shortcut.data && y >= t.y0 && y < t.y1 && x >= t.x0 && x < t.x1)
          rows::store_group(a.d_shortcut.at(t.n, y, x), g, s.k, d);
      }
      store(ring_rows[r] + g * ring.pitch() + (x - ring_first) * kLanes, d);
    };
    if constexpr (activation == Activation::kNone) {
      for (int64_t r = 0; r < kBackStep; ++r)
        for (int64_t x = first; x < last; ++x) put(r, x, vf{});
    } else {
      square_row(u_rows, g * scratch.u.pitch() + (first - t.x0 + 2) * kLanes, a.taps + g * 9 * kLanes,
                 load(a.bias + g * kLanes), last - first,
                 [&](int64_t r, int64_t x, vf pre) { put(r, first + x, pre); });
    }
    for (int64_t r = 0; r < kBackStep; ++r) {
      if (b + r < t.y0 || b + r >= t.y1) continue;
      const int64_t at = g * scratch.u.pitch() + 2 * kLanes;
      float* sums = gradients + s.c * scratch.k + g * kGradientTaps * kLanes;
      branches::correlate<9>(
          ring_rows[r] + g * ring.pitch() + kLanes, t.x1 - t.x0, 9,
          [=](int64_t tap) { return u_rows[r + tap / 3] + at + (tap % 3 - 1) * kLanes; }, sums, sums + 9 * kLanes);
    }
  }
}

// dx and the gradient of pw for the rows of [y, y + 2) that belong to the tile.
template <class T>
void input_rows(const BsconvBackward<T>& a, const StripTile& t, const BackwardScratch& scratch, int64_t first,
                float* gradients) {
  const BsconvShape& s = a.shape;
  const rows::Ring& ring = scratch.g;
  const int64_t count = t.x1 - t.x0, k = scratch.k;
  const float* rows_of_g[kBackStep + 2];
  for (int64_t i = 0; i < kBackStep + 2; ++i) rows_of_g[i] = ring.row(first - 1 + i);
  for (int64_t g = 0; g < ring.groups; ++g)
    square_row(rows_of_g, g * ring.pitch() + kLanes, a.taps_transposed + g * 9 * kLanes, vf{}, count,
               [&](int64_t r, int64_t x, vf v) { store(scratch.cat + r * scratch.cat_row + x * k + g * kLanes, v); });
  for (int64_t y = first; y < std::min(first + kBackStep, t.y1); ++y) {
    const float* du = scratch.cat + (y - first) * scratch.cat_row;
    const rows::FloatRow x = rows::float_row(a.x.at(t.n, y, t.x0), a.x.stride_w, count, s.c, scratch.row);
    rows::outer(x, count, s.c, du, k / kLanes, gradients);
    T* dx = a.dx.at(t.n, y, t.x0);
    rows::pointwise({du, k}, count, k, a.pw_transposed, round_up(s.c, kLanes) / kLanes,
                    [dx, stride = a.dx.stride_w, c = s.c](int64_t i, int64_t g, vf v) {
                      rows::store_group(dx + i * stride, g, c, v);
                    });
  }
}

template <class T, Activation activation>
void backward_as(const BsconvBackward<T>& a, const StripTile& t, float* memory, float* gradients) {
  const BsconvShape& s = a.shape;
  const BackwardScratch scratch(s, memory);
  int64_t next = t.y0 - 2;  // the next row of u
  for (int64_t b = t.y0 - 1; b < t.y1 + 1; b += kBackStep) {
    for (; next < b + kBackStep + 1; ++next) {
      Prefetches<2> fetch;
      if (const int64_t row = next - 2; row >= t.y0 && row < t.y1) fetch.add({a.dx, t.n, row, t.x0, t.x1 - t.x0, s.c});
      rows::fill_row(scratch.u, next, t.x0 - 2, t.x1 + 2, a.x, t.n, s.h, s.w, s.c, a.pw, scratch.row, fetch);
    }
    const float* u_rows[kBackStep + 2];
    for (int64_t i = 0; i < kBackStep + 2; ++i) u_rows[i] = scratch.u.row(b - 1 + i);
    gradient_rows<T, activation>(a, t, scratch, u_rows, b, gradients);
    if (b - 1 >= t.y0) input_rows(a, t, scratch, b - 1, gradients);
  }
}

template <class T>
void backward(const BsconvBackward<T>& a, const StripTile& t, float* memory, float* gradients) {
  switch (static_cast<Activation>(a.shape.activation)) {
    case Activation::kGelu:
      return backward_as<T, Activation::kGelu>(a, t, memory, gradients);
    case Activation::kLeakyRelu:
      return backward_as<T, Activation::kLeakyRelu>(a, t, memory, gradients);
    default:
      return backward_as<T, Activation::kNone>(a, t, memory, gradients);
  }
}

}  // namespace blueprint

constexpr BsconvKernels bsconv_kernels() {
  using namespace blueprint;
  return {kLanes,
          &forward_scratch,
          &forward<float>,
          &forward<Half>,
          &forward<BFloat16>,
          &BackwardScratch::floats,
          &gradient_floats,
          &backward<float>,
          &backward<Half>,
          &backward<BFloat16>};
}

}  // namespace
}  // namespace fastsr::cpu
