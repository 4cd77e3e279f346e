// GELU, its derivative and the logistic function on vectors of float. Absolute errors are below 1.2e-7; NaN stays NaN.
#pragma once

#include "vec.h"

namespace fastsr::cpu {
namespace {

typedef int32_t vi __attribute__((vector_size(FASTSR_VECTOR_BYTES)));

constexpr float kRoundMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits

FASTSR_INLINE vf splat(float x) { return x - vf{}; }
FASTSR_INLINE vf select(vi condition, vf yes, vf no) {
  return reinterpret_cast<vf>((reinterpret_cast<vi>(yes) & condition) | (reinterpret_cast<vi>(no) & ~condition));
}

// A row of a PiecewiseTable held in registers, indexed lane by lane with the low four bits of an integer vector.
struct TableRow {
#if FASTSR_VECTOR_BYTES == 64
  __m512 row;
  FASTSR_INLINE explicit TableRow(const float* p) : row(_mm512_load_ps(p)) {}
  FASTSR_INLINE vf operator[](vi i) const {
    return reinterpret_cast<vf>(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(i), row));
  }
#elif FASTSR_VECTOR_BYTES == 32
  __m256 low, high;
  FASTSR_INLINE explicit TableRow(const float* p) : low(_mm256_load_ps(p)), high(_mm256_load_ps(p + 8)) {}
  FASTSR_INLINE vf operator[](vi i) const {
    const __m256i index = reinterpret_cast<__m256i>(i);
    // The blend takes each lane's sign bit: move the index's bit 3 there.
    return reinterpret_cast<vf>(_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                                                 _mm256_permutevar8x32_ps(high, index),
                                                 _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
  }
#else
  const float* row;
  FASTSR_INLINE explicit TableRow(const float* p) : row(p) {}
  FASTSR_INLINE vf operator[](vi i) const {
    vf v;
    for (int k = 0; k < VecOf<float>::lanes; ++k) v[k] = row[i[k] & 15];
    return v;
  }
#endif
};

// min(|x| / width, last) with NaN kept.
FASTSR_INLINE vf table_argument(vf x) {
  const vf a = reinterpret_cast<vf>(reinterpret_cast<vi>(x) & 0x7fffffff) * (1.f / PiecewiseTable::kWidth);
  const vf last = splat(PiecewiseTable::kLast);
#if FASTSR_VECTOR_BYTES == 64
  // The processor's minimum returns its second operand where one is NaN.
  return reinterpret_cast<vf>(_mm512_min_ps(reinterpret_cast<__m512>(last), reinterpret_cast<__m512>(a)));
#elif FASTSR_VECTOR_BYTES == 32
  return reinterpret_cast<vf>(_mm256_min_ps(reinterpret_cast<__m256>(last), reinterpret_cast<__m256>(a)));
#else
  return select(reinterpret_cast<vi>(a > last), last, a);
#endif
}

FASTSR_INLINE vf piecewise(const PiecewiseTable& table, vf x) {
  const vf a = table_argument(x), t = a + kRoundMagic, r = a - (t - kRoundMagic);
  const vi i = reinterpret_cast<vi>(t);
  vf p = TableRow(table.coefficient[PiecewiseTable::kDegree])[i];
#pragma GCC unroll 8
  for (int d = PiecewiseTable::kDegree - 1; d >= 0; --d) p = p * r + TableRow(table.coefficient[d])[i];
  return p;
}

FASTSR_INLINE vf gelu(vf x) { return select(reinterpret_cast<vi>(x > splat(0.f)), x, vf{}) - piecewise(gelu_table, x); }

// The derivative of GELU.
FASTSR_INLINE vf gelu_grad(vf x) {
  const vf d = piecewise(gelu_grad_table, x);
  return select(reinterpret_cast<vi>(x > splat(0.f)), 1.f - d, d);
}

// 1 / (1 + e^-x). e^-x = 2^n e^r with |r| <= ln 2 / 2 by its Taylor series, which 7 terms exhaust in float.
FASTSR_INLINE vf sigmoid(vf x) {
  vf a = -x;  // clamped so that 2^n stays a normal number; the result is then 0 or 1 to within 1e-37
  a = select(reinterpret_cast<vi>(a > splat(87.f)), splat(87.f), a);
  a = select(reinterpret_cast<vi>(a < splat(-87.f)), splat(-87.f), a);
  const vf t = a * 1.44269504088896340736f + kRoundMagic, n = t - kRoundMagic;
  const vf r = (a - n * 0.693359375f) - n * -2.12194440054690583e-4f;
  vf p = splat(1.f / 5040.f);
  p = p * r + 1.f / 720.f;
  p = p * r + 1.f / 120.f;
  p = p * r + 1.f / 24.f;
  p = p * r + 1.f / 6.f;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const vf e = reinterpret_cast<vf>(reinterpret_cast<vi>(p) + (reinterpret_cast<vi>(t) << 23));
  return 1.f / (1.f + e);
}

enum class Activation : int64_t { kNone = 0, kGelu = 1, kLeakyRelu = 2 };  // as in fastsr/ops/_checks.py

constexpr float kLeakySlope = 0.05f;

template <Activation activation>
FASTSR_INLINE vf activate(vf x) {
  if constexpr (activation == Activation::kGelu) return gelu(x);
  if constexpr (activation == Activation::kLeakyRelu) return select(reinterpret_cast<vi>(x < vf{}), x * kLeakySlope, x);
  return x;
}

// The derivative of the activation at its argument x.
template <Activation activation>
FASTSR_INLINE vf activate_grad(vf x) {
  if constexpr (activation == Activation::kGelu) return gelu_grad(x);
  if constexpr (activation == Activation::kLeakyRelu)
    return select(reinterpret_cast<vi>(x > vf{}), splat(1.f), splat(kLeakySlope));
  return splat(1.f);
}

// Calls body(constant) with the activation as a compile-time constant.
template <class Body>
FASTSR_INLINE void with_activation(int64_t activation, Body&& body) {
  switch (static_cast<Activation>(activation)) {
    case Activation::kGelu:
      return body(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kLeakyRelu:
      return body(std::integral_constant<Activation, Activation::kLeakyRelu>{});
    default:
      return body(std::integral_constant<Activation, Activation::kNone>{});
  }
}

}  // namespace
}  // namespace fastsr::cpu
