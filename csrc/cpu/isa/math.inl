// GELU, its derivative and the logistic function on vectors of float. Absolute errors are below 1.2e-7; NaN stays NaN.
#pragma once

#include "tables.h"
#include "vec.h"

namespace fastsr::cpu {
namespace {

typedef int32_t vi __attribute__((vector_size(FASTSR_VECTOR_BYTES)));

constexpr float kRoundMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits

FASTSR_INLINE vf splat(float x) { return x - vf{}; }
FASTSR_INLINE vf select(vi condition, vf yes, vf no) {
  return reinterpret_cast<vf>((reinterpret_cast<vi>(yes) & condition) | (reinterpret_cast<vi>(no) & ~condition));
}

// ---- GELU by table. Of s = x / width: dividing in advance, where it can be done to weights, saves a multiplication.

// A row of the table, in registers where there are enough, indexed lane by lane with the low bits of an integer vector.
#if FASTSR_VECTOR_BYTES == 64
using Table = LongTable;
struct TableRow {
  __m512 low, high;
  FASTSR_INLINE explicit TableRow(const float* p) : low(_mm512_load_ps(p)), high(_mm512_load_ps(p + 16)) {}
  FASTSR_INLINE vf operator[](vi i) const {
    return reinterpret_cast<vf>(_mm512_permutex2var_ps(low, reinterpret_cast<__m512i>(i), high));
  }
};
#elif FASTSR_VECTOR_BYTES == 32
using Table = ShortTable;
struct TableRow {
  __m256 low, high;
  FASTSR_INLINE explicit TableRow(const float* p) : low(_mm256_load_ps(p)), high(_mm256_load_ps(p + 8)) {}
  FASTSR_INLINE vf operator[](vi i) const {
    const __m256i index = reinterpret_cast<__m256i>(i);
    // The blend takes each lane's sign bit: move the index's bit 3 there.
    return reinterpret_cast<vf>(_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                                                 _mm256_permutevar8x32_ps(high, index),
                                                 _mm256_castsi256_ps(_mm256_slli_epi32(index, 28))));
  }
};
#else
using Table = ShortTable;
struct TableRow {
  const float* row;
  FASTSR_INLINE explicit TableRow(const float* p) : row(p) {}
  FASTSR_INLINE vf operator[](vi i) const {
    vf v;
    for (int k = 0; k < VecOf<float>::lanes; ++k) v[k] = row[i[k] & (Table::kSegments - 1)];
    return v;
  }
};
#endif

constexpr float kInverseWidth = 1.f / Table::kWidth;

struct TableRows {
  TableRow c0, c1, c2, c3, c4, c5;  // c5: the last, which a table of degree 4 does not use
  FASTSR_INLINE explicit TableRows(const Table& t)
      : c0(t.coefficient[0]),
        c1(t.coefficient[1]),
        c2(t.coefficient[2]),
        c3(t.coefficient[3]),
        c4(t.coefficient[4]),
        c5(t.coefficient[Table::kDegree]) {}
  FASTSR_INLINE vf at(vi i, vf r) const {
    vf p = c4[i];
    if constexpr (Table::kDegree == 5) p += c5[i] * r;
    return (((p * r + c3[i]) * r + c2[i]) * r + c1[i]) * r + c0[i];
  }
};

struct Segment {
  vi index;
  vf rest;
};

// The segment of |s|, and the distance from its centre. Without `keep_nan` that may be a number for NaN, too.
template <bool keep_nan>
FASTSR_INLINE Segment segment_of(vf s) {
  const vf last = splat(Table::kLast);
#if FASTSR_VECTOR_BYTES == 64
  const __m512 l = reinterpret_cast<__m512>(last), x = reinterpret_cast<__m512>(s);
  // The minimum returns its second operand where one is NaN; range_ps, of magnitudes, the one that is a number.
  const __m512 a = keep_nan ? _mm512_min_ps(l, _mm512_abs_ps(x)) : _mm512_range_ps(x, l, 0b1010);
  const vf t = reinterpret_cast<vf>(a) + kRoundMagic;
  return {reinterpret_cast<vi>(t), reinterpret_cast<vf>(_mm512_reduce_ps(a, _MM_FROUND_TO_NEAREST_INT))};
#else
  const vf magnitude = reinterpret_cast<vf>(reinterpret_cast<vi>(s) & 0x7fffffff);
#if FASTSR_VECTOR_BYTES == 32
  const vf a = reinterpret_cast<vf>(_mm256_min_ps(reinterpret_cast<__m256>(last), reinterpret_cast<__m256>(magnitude)));
#else
  const vf a = select(reinterpret_cast<vi>(magnitude > last), last, magnitude);
#endif
  const vf t = a + kRoundMagic;
  return {reinterpret_cast<vi>(t), a - (t - kRoundMagic)};
#endif
}

// max(s, 0) with NaN kept.
FASTSR_INLINE vf positive_part(vf s) {
#if FASTSR_VECTOR_BYTES == 64
  return reinterpret_cast<vf>(_mm512_max_ps(_mm512_setzero_ps(), reinterpret_cast<__m512>(s)));
#elif FASTSR_VECTOR_BYTES == 32
  return reinterpret_cast<vf>(_mm256_max_ps(_mm256_setzero_ps(), reinterpret_cast<__m256>(s)));
#else
  return select(reinterpret_cast<vi>(s < vf{}), vf{}, s);
#endif
}

FASTSR_INLINE vf gelu(vf x) {
  const Segment at = segment_of<false>(x * kInverseWidth);
  return positive_part(x) - TableRows(Table::gelu).at(at.index, at.rest);
}

// The derivative of GELU.
FASTSR_INLINE vf gelu_grad(vf x) {
  const Segment at = segment_of<true>(x * kInverseWidth);
  const vf d = TableRows(Table::gelu_grad).at(at.index, at.rest);
  return select(reinterpret_cast<vi>(x > splat(0.f)), 1.f - d, d);
}

// x within [-limit, limit] with NaN kept: the minimum and the maximum return their second operand where one is NaN.
FASTSR_INLINE vf clamped(vf x, float limit) {
#if FASTSR_VECTOR_BYTES == 64
  const __m512 most = reinterpret_cast<__m512>(splat(limit)), least = reinterpret_cast<__m512>(splat(-limit));
  return reinterpret_cast<vf>(_mm512_max_ps(least, _mm512_min_ps(most, reinterpret_cast<__m512>(x))));
#elif FASTSR_VECTOR_BYTES == 32
  const __m256 most = reinterpret_cast<__m256>(splat(limit)), least = reinterpret_cast<__m256>(splat(-limit));
  return reinterpret_cast<vf>(_mm256_max_ps(least, _mm256_min_ps(most, reinterpret_cast<__m256>(x))));
#else
  x = select(reinterpret_cast<vi>(x > splat(limit)), splat(limit), x);
  return select(reinterpret_cast<vi>(x < splat(-limit)), splat(-limit), x);
#endif
}

// 1 / (1 + e^-x). e^-x = 2^n e^r with |r| <= ln 2 / 2 by its Taylor series, which 7 terms exhaust in float.
FASTSR_INLINE vf sigmoid(vf x) {
  const vf a = clamped(-x, 87.f);  // 2^n stays a normal number; the result is then 0 or 1 to within 1e-37
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
  // Scaled as a number: a NaN's bits plus those of n could be a number's.
#if FASTSR_VECTOR_BYTES == 64
  const vf e = reinterpret_cast<vf>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  const vf e = p * reinterpret_cast<vf>(reinterpret_cast<vi>(splat(1.f)) + (reinterpret_cast<vi>(t) << 23));
#endif
  return 1.f / (1.f + e);
}

// The product x as memory would hold it: no part of a fused multiply-add, which rounds once and not twice.
template <class T>
FASTSR_INLINE T rounded(T x) {
#if FASTSR_VECTOR_BYTES == 64
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
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
