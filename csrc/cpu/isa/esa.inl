// esa for one instruction set: the gate, and the parts of its side path that are no matrix products (isa/rows.h).
#include "rows.inl"

namespace fastsr::cpu {
namespace {

void esa_gate(const EsaGate& a) {
  for (int64_t p = 0; p < a.pixels; ++p) {
    const float *x = a.x + p * a.x_stride, *gate = a.gate + p * a.gate_stride;
    float* y = a.y + p * a.y_stride;
    over_parts(a.channels, [&](int64_t c, auto kind) {
      store_as(kind, y + c, load_as(kind, x + c) * sigmoid(load_as(kind, gate + c)));
    });
  }
}

void esa_gate_backward(const EsaGate& a, const float* grad, int64_t grad_stride) {
  for (int64_t p = 0; p < a.pixels; ++p) {
    const float *x = a.x + p * a.x_stride, *g = grad + p * grad_stride;
    float *y = a.y + p * a.y_stride, *gate = a.gate + p * a.gate_stride;
    over_parts(a.channels, [&](int64_t c, auto kind) {
      const auto s = sigmoid(load_as(kind, gate + c)), dy = load_as(kind, g + c) * s;
      store_as(kind, gate + c, dy * load_as(kind, x + c) * (1.f - s));
      store_as(kind, y + c, dy);
    });
  }
}

void esa_depthwise(const float* const rows[3], int64_t step, const float* taps, const float* bias, float* y,
                   int64_t pixels, int64_t stride, int64_t f) {
  for (int64_t c = 0; c < f; c += kLanes) {
    vf w[9];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) w[t] = load(taps + t * f + c);
    const vf b = load(bias + c);
    for (int64_t p = 0; p < pixels; ++p) {
      vf even = b, odd{};
      const int64_t at = p * stride * step + c;
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) (i == 1 ? odd : even) += w[i * 3 + j] * load(rows[i] + at + j * step);
      store(y + p * f + c, even + odd);
    }
  }
}

void esa_depthwise_transposed(const float* x, const float* taps, float* y, int64_t pixels, int64_t stride, int64_t f) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < f; c += kLanes) {
      const vf v = load(x + p * f + c);
      for (int j = 0; j < 3; ++j) {
        float* at = y + (p * stride + j) * f + c;
        store(at, load(at) + v * load(taps + j * f + c));
      }
    }
}

void esa_depthwise_outer(const float* const rows[3], const float* g, float* sum, int64_t pixels, int64_t stride,
                         int64_t f) {
  for (int64_t c = 0; c < f; c += kLanes) {
    vf s[9] = {};
    for (int64_t p = 0; p < pixels; ++p) {
      const vf v = load(g + p * f + c);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) s[i * 3 + j] += v * load(rows[i] + (p * stride + j) * f + c);
    }
    for (int t = 0; t < 9; ++t) store(sum + t * f + c, load(sum + t * f + c) + s[t]);
  }
}

void esa_overlap_add(const float* x, float* y, int64_t pixels, int64_t stride, int64_t f) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t i = 0; i < 3 * f; i += kLanes) {
      float* at = y + p * stride * f + i;
      store(at, load(at) + load(x + p * 3 * f + i));
    }
}

void esa_max_pool(const float* x, int64_t row_stride, float* y, uint8_t* index, int64_t pixels, int64_t size,
                  int64_t step, int64_t f) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < f; c += kLanes) {
      vf best = splat(-__builtin_inff());
      vi at{};
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < size; ++j) {
          const vf v = load(x + i * row_stride + (p * step + j) * f + c);
          const vi better = reinterpret_cast<vi>(v > best) | reinterpret_cast<vi>(v != v);
          best = select(better, v, best);
          at = (at & ~better) | (better & static_cast<int32_t>(i * size + j));
        }
      store(y + p * f + c, best);
      if (index)
        for (int l = 0; l < kLanes; ++l) index[p * f + c + l] = static_cast<uint8_t>(at[l]);
    }
}

void esa_activate(int64_t activation, const float* x, float* y, int64_t count) {
  with_activation(activation, [&](auto kind) {
    for (int64_t i = 0; i < count; i += kLanes) store(y + i, activate<kind.value>(load(x + i)));
  });
}

void esa_blend(float a, const float* x, float b, const float* y, float* z, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(z + i, a * load(x + i) + b * load(y + i));
}

void esa_add_scaled(float a, const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(y + i, load(y + i) + a * load(x + i));
}

void esa_add_enlarged(const float* x, const BilinearTap* taps, const float* y, int64_t y_stride, float* z,
                      int64_t pixels, int64_t f) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < f; c += kLanes) {
      const vf v = taps[p].first * load(x + taps[p].i * f + c) + taps[p].second * load(x + taps[p].j * f + c);
      store(z + p * f + c, load(y + p * y_stride + c) + v);
    }
}

void esa_add_reduced(const float* y, const BilinearTap* taps, float* x, int64_t pixels, int64_t f) {
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < f; c += kLanes) {
      const vf v = load(y + p * f + c);
      float *first = x + taps[p].i * f + c, *second = x + taps[p].j * f + c;
      store(first, load(first) + taps[p].first * v);
      store(second, load(second) + taps[p].second * v);
    }
}

void esa_add_rows(const float* x, int64_t x_stride, float* y, int64_t y_stride, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p)
    over_parts(channels, [&](int64_t c, auto kind) {
      float* at = y + p * y_stride + c;
      store_as(kind, at, load_as(kind, at) + load_as(kind, x + p * x_stride + c));
    });
}

constexpr EsaKernels esa_kernels() {
  return {&esa_gate,
          &esa_gate_backward,
          &esa_depthwise,
          &esa_depthwise_transposed,
          &esa_depthwise_outer,
          &esa_overlap_add,
          &esa_max_pool,
          &esa_activate,
          &esa_blend,
          &esa_add_scaled,
          &esa_add_enlarged,
          &esa_add_reduced,
          &esa_add_rows};
}

}  // namespace
}  // namespace fastsr::cpu
