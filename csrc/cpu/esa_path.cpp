// The side path of esa: conv1, the strided convolution, max pool, the small convolutions, and their enlargement.
#include "esa_path.h"

namespace fastsr::cpu::esa {
void over_rows(const PaddedMap& map, const std::function<void(int64_t, int64_t)>& body) {
  parallel_rows(map.n * map.h, map.w, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i / map.h, i % map.h);
  });
}

namespace {

// One row of `out` of a convolution; for a separable one its u must be there.
void convolve_row(const Conv3x3& conv, const PaddedMap& in, const PaddedMap& u, const PaddedMap& out, int64_t n,
                  int64_t r) {
  const PaddedMap& from = conv.separable ? u : in;
  const float* rows[3];
  for (int64_t i = 0; i < 3; ++i) rows[i] = from.row(n, r * conv.stride - conv.padding + i) - conv.padding * from.f;
  if (conv.separable) {
    kernels().esa.depthwise(rows, from.f, conv.taps, conv.bias, out.row(n, r), out.w, conv.stride, out.f);
    return;
  }
  const int64_t f = in.f;
  const RowSegment segments[3] = {
      {rows[0], conv.stride * f, 3 * f}, {rows[1], conv.stride * f, 3 * f}, {rows[2], conv.stride * f, 3 * f}};
  kernels().rows.gemm({segments, 3, out.w, conv.weight, f, conv.bias, 0, out.row(n, r), f, f});
}

void pointwise_row(const Conv3x3& conv, const PaddedMap& in, int64_t n, int64_t r, const PaddedMap& u) {
  const RowSegment segment{in.row(n, r), in.f, in.f};
  kernels().rows.gemm({&segment, 1, in.w, conv.weight, in.f, nullptr, 0, u.row(n, r), in.f, in.f});
}

PaddedMap pool(const PaddedMap& x, std::vector<uint8_t>* index) {
  PaddedMap y(x.n, (x.h - kPool) / kPoolStep + 1, (x.w - kPool) / kPoolStep + 1, x.f);
  if (index) index->resize(y.n * y.h * y.w * y.f);
  over_rows(y, [&](int64_t n, int64_t r) {
    uint8_t* at = index ? index->data() + (n * y.h + r) * y.w * y.f : nullptr;
    kernels().esa.max_pool(x.row(n, r * kPoolStep), x.row_stride(), y.row(n, r), at, y.w, kPool, kPoolStep, x.f);
  });
  return y;
}

}  // namespace

Path start_path(const Weights& w, int64_t n, int64_t h, int64_t width) {
  Path path;
  path.in.emplace_back(n, h, width, w.reduced_channels());
  return path;
}

void go_on(Path& path, const Weights& w, bool with_index) {
  const int64_t n = path.reduced().n, f = w.f;
  for (size_t i = 0; i < w.convs.size(); ++i) {
    const Conv3x3& conv = w.convs[i];
    const PaddedMap& in = path.in[i];
    const bool folded = w.folded && i == 0;  // then u lies in `in`, before conv_f's result
    path.u.emplace_back(w.separable && !folded ? n : 0, in.h, in.w, f);
    const PaddedMap& u = folded ? in : path.u[i];
    if (conv.separable && !folded)
      over_rows(in, [&](int64_t image, int64_t r) { pointwise_row(conv, in, image, r, u); });
    path.out.emplace_back(n, conv.out_size(in.h), conv.out_size(in.w), f);
    const PaddedMap& out = path.out[i];
    over_rows(out, [&](int64_t image, int64_t r) { convolve_row(conv, in, u, out, image, r); });
    if (i == 0) {
      path.in.push_back(pool(out, with_index ? &path.index : nullptr));
    } else if (i + 1 < w.convs.size()) {
      path.in.emplace_back(n, out.h, out.w, f);
      const PaddedMap& next = path.in.back();
      over_rows(out, [&](int64_t image, int64_t r) {
        kernels().esa.activate(conv.activation, out.row(image, r), next.row(image, r), out.w * f);
      });
    }
  }
}

Path run_path(const MapReader& x, const Tensor& shape, const Weights& w, bool with_index) {
  const int64_t width = shape.size(3);
  Path path = start_path(w, shape.size(0), shape.size(2), width);
  const PaddedMap& reduced = path.reduced();
  struct Scratch;
  over_rows(reduced, [&](int64_t image, int64_t r) {
    const FloatRow row = x.row(image, r, 0, width, thread_scratch<float, Scratch>(x.scratch(width)));
    const RowSegment segment{row.data, row.stride, w.c};
    float* to = reduced.row(image, r);
    kernels().rows.gemm({&segment, 1, width, w.conv1, reduced.f, w.conv1_bias, 0, to, reduced.f, reduced.f});
  });
  go_on(path, w, with_index);
  return path;
}

Enlargement enlargement(const PaddedMap& low, int64_t h, int64_t w) {
  return {bilinear_taps(low.h, h, static_cast<float>(low.h) / static_cast<float>(h)),
          bilinear_taps(low.w, w, static_cast<float>(low.w) / static_cast<float>(w))};
}

void blend_rows(const Path& path, const Enlargement& to, int64_t n, int64_t h, float* blended) {
  const PaddedMap& low = path.low();
  const BilinearTap& tap = to.rows[h];
  kernels().esa.blend(tap.first, low.row(n, tap.i), tap.second, low.row(n, tap.j), blended, low.w * low.f);
}

void gate_input(const Weights& weights, const Path& path, const Enlargement& to, const float* blended, int64_t n,
                int64_t h, int64_t w, int64_t pixels, float* z) {
  const int64_t f = weights.f;
  const PaddedMap& reduced = path.reduced();
  const float* from = reduced.row(n, h) + w * reduced.f;
  const BilinearTap* taps = to.columns.data() + w;
  if (weights.folded) return kernels().esa.add_enlarged(blended, taps, from + f, reduced.f, z, pixels, f);
  const RowSegment segment{from, f, f};
  kernels().rows.gemm({&segment, 1, pixels, weights.conv_f, f, weights.conv_f_bias, 0, z, f, f});
  kernels().esa.add_enlarged(blended, taps, z, f, z, pixels, f);
}

void Gate::row(const MapReader& x, int64_t n, int64_t h, const MapWriter& y) const {
  const int64_t columns = padded_channels(w_.c), low = path_.low().row_stride();
  struct Scratch;
  Sections sections(thread_scratch<float, Scratch>(low + kStrip * (w_.f + 3 * columns)));
  float *blended = sections.take(low), *z = sections.take(kStrip * w_.f), *gate = sections.take(kStrip * columns);
  float *in = sections.take(kStrip * columns), *spare = sections.take(kStrip * columns);
  blend_rows(path_, to_, n, h, blended);
  over_strips(width_, kStrip, [&](int64_t at, int64_t pixels) {
    gate_input(w_, path_, to_, blended, n, h, at, pixels, z);
    const RowSegment segment{z, w_.f, w_.f};
    kernels().rows.gemm({&segment, 1, pixels, w_.conv4, columns, w_.conv4_bias, 0, gate, columns, columns});
    const FloatRow row = x.row(n, h, at, pixels, in);
    int64_t stride;
    float* out = y.target(n, h, at, spare, stride);
    kernels().esa.gate({row.data, row.stride, gate, columns, out, stride, pixels, w_.c});
    y.write(n, h, at, pixels, out, stride);
  });
}

}  // namespace fastsr::cpu::esa
