// Vectors by the compiler's vector extensions: one source for AVX-512, AVX2, SSE and NEON.
// Included inside an ISA file, after its target pragma; everything has internal linkage.
#pragma once

namespace fastsr::cpu {
namespace {

#define FASTSR_INLINE inline __attribute__((always_inline))

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FASTSR_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(FASTSR_VECTOR_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int lanes = FASTSR_VECTOR_BYTES / sizeof(T);
};

using vf = VecOf<float>::type;
typedef uint32_t vu __attribute__((vector_size(FASTSR_VECTOR_BYTES)));
typedef uint16_t vh __attribute__((vector_size(FASTSR_VECTOR_BYTES / 2)));
typedef uint16_t vh_unaligned __attribute__((vector_size(FASTSR_VECTOR_BYTES / 2), aligned(2), may_alias));

template <class T>
using vec = typename VecOf<compute_t<T>>::type;
template <class T>
constexpr int lanes = VecOf<compute_t<T>>::lanes;

FASTSR_INLINE uint32_t bits_of(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return b;
}
FASTSR_INLINE float float_of(uint32_t b) {
  float x;
  std::memcpy(&x, &b, 4);
  return x;
}

// ---- scalar conversions

FASTSR_INLINE float to_compute(float x) { return x; }
FASTSR_INLINE double to_compute(double x) { return x; }
FASTSR_INLINE float to_compute(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
FASTSR_INLINE float to_compute(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  // Multiplying by 2^112 moves the exponent's bias and normalises subnormals; Inf and NaN keep their exponent.
  float f = float_of(magnitude << 13) * 0x1p112f;
  if (magnitude >= 0x7c00u) f = float_of(bits_of(f) | 0x7f800000u);
  return float_of(bits_of(f) | sign);
}

FASTSR_INLINE void from_compute(float x, float& out) { out = x; }
FASTSR_INLINE void from_compute(double x, double& out) { out = x; }
FASTSR_INLINE void from_compute(float x, BFloat16& out) {
  const uint32_t b = bits_of(x);
  const bool nan = (b & 0x7fffffffu) > 0x7f800000u;
  out.bits =
      nan ? static_cast<uint16_t>((b >> 16) | 0x40u) : static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
FASTSR_INLINE void from_compute(float x, Half& out) {
  const uint32_t b = bits_of(x), sign = (b >> 16) & 0x8000u, magnitude = b & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u) {
    h = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 2^16 or is infinite
    h = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: let the adder round to a multiple of 2^-24
    h = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    h = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<uint16_t>(h | sign);
}

// ---- vector loads and stores of `lanes<T>` consecutive elements

FASTSR_INLINE vf load(const float* p) { return *reinterpret_cast<const VecOf<float>::unaligned*>(p); }
FASTSR_INLINE VecOf<double>::type load(const double* p) {
  return *reinterpret_cast<const VecOf<double>::unaligned*>(p);
}
FASTSR_INLINE vf load(const BFloat16* p) {
  const vh h = *reinterpret_cast<const vh_unaligned*>(p);
  return reinterpret_cast<vf>(__builtin_convertvector(h, vu) << 16);
}
FASTSR_INLINE vf load(const Half* p) {
#if defined(FASTSR_F16C) && FASTSR_VECTOR_BYTES == 64
  return reinterpret_cast<vf>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(FASTSR_F16C)
  return reinterpret_cast<vf>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  vf v;
  for (int i = 0; i < VecOf<float>::lanes; ++i) v[i] = to_compute(p[i]);
  return v;
#endif
}

FASTSR_INLINE void store(float* p, vf v) { *reinterpret_cast<VecOf<float>::unaligned*>(p) = v; }
FASTSR_INLINE void store(double* p, VecOf<double>::type v) { *reinterpret_cast<VecOf<double>::unaligned*>(p) = v; }
FASTSR_INLINE void store(BFloat16* p, vf v) {
  const vu b = reinterpret_cast<vu>(v);
  const vu nan = reinterpret_cast<vu>((b & 0x7fffffffu) > 0x7f800000u);
  const vu rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16, quiet = (b >> 16) | 0x40u;
  *reinterpret_cast<vh_unaligned*>(p) = __builtin_convertvector((rounded & ~nan) | (quiet & nan), vh);
}
FASTSR_INLINE void store(Half* p, vf v) {
#if defined(FASTSR_F16C) && FASTSR_VECTOR_BYTES == 64
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0));
#elif defined(FASTSR_F16C)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0));
#else
  for (int i = 0; i < VecOf<float>::lanes; ++i) from_compute(v[i], p[i]);
#endif
}

// ---- the first `count` elements of a vector, for the end of a pixel's channels

// Lanes from `count` on are zero and not read; none is if `count` is not positive.
template <class T>
FASTSR_INLINE vf load_first(const T* p, int64_t count) {
  if (count >= VecOf<float>::lanes) return load(p);
  if (count <= 0) return vf{};
#if FASTSR_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>)
    return reinterpret_cast<vf>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
  const __m256i part = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
  T full[VecOf<float>::lanes];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(full), part);
  return load(full);
#else
  T full[VecOf<float>::lanes] = {};
  std::memcpy(full, p, count * sizeof(T));
  return load(full);
#endif
}

// Lanes from `count` on are not written; none is if `count` is not positive.
template <class T>
FASTSR_INLINE void store_first(T* p, vf v, int64_t count) {
  if (count >= VecOf<float>::lanes) return store(p, v);
  if (count <= 0) return;
#if FASTSR_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>)
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#endif
  T full[VecOf<float>::lanes];
  store(full, v);
  std::memcpy(p, full, count * sizeof(T));
}

// ---- one source for a loop's vector body and its scalar remainder

struct Vector {};
struct Scalar {};
struct Part {  // a vector of which only the first `count` lanes are there
  int64_t count;
};

template <class T>
FASTSR_INLINE vec<T> load_as(Vector, const T* p) {
  return load(p);
}
template <class T>
FASTSR_INLINE compute_t<T> load_as(Scalar, const T* p) {
  return to_compute(*p);
}
template <class T>
FASTSR_INLINE void store_as(Vector, T* p, vec<T> v) {
  store(p, v);
}
template <class T>
FASTSR_INLINE void store_as(Scalar, T* p, compute_t<T> v) {
  from_compute(v, *p);
}

template <class T>
FASTSR_INLINE vf load_as(Part part, const T* p) {
  return load_first(p, part.count);
}
template <class T>
FASTSR_INLINE void store_as(Part part, T* p, vf v) {
  store_first(p, v, part.count);
}

// Calls body(i, Vector{}) for every full vector of n elements of T, then body(i, Scalar{}) for the rest.
template <class T, class Body>
FASTSR_INLINE void over(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) body(i, Vector{});
  for (; i < n; ++i) body(i, Scalar{});
}

// As `over`, with one body(i, Part{..}) for the rest: for bodies that treat every lane by itself.
template <class Body>
FASTSR_INLINE void over_parts(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + VecOf<float>::lanes <= n; i += VecOf<float>::lanes) body(i, Vector{});
  if (i < n) body(i, Part{n - i});
}

template <class V>
FASTSR_INLINE auto sum_lanes(V v) {
  constexpr int n = sizeof(V) / sizeof(v[0]);
#if defined(__clang__)
  auto s = v[0];
  for (int i = 1; i < n; ++i) s += v[i];
  return s;
#else
  using Index = std::conditional_t<sizeof(v[0]) == 8, int64_t, int32_t>;
  typedef Index Mask __attribute__((vector_size(FASTSR_VECTOR_BYTES)));
  for (int step = n / 2; step > 0; step /= 2) {
    Mask mask;
    for (int i = 0; i < n; ++i) mask[i] = i ^ step;
    v += __builtin_shuffle(v, mask);
  }
  return v[0];
#endif
}

// A sum that takes vectors and scalars.
template <class T>
struct Sum {
  vec<T> vector{};
  compute_t<T> scalar{};
  FASTSR_INLINE void add(vec<T> v) { vector += v; }
  FASTSR_INLINE void add(compute_t<T> s) { scalar += s; }
  FASTSR_INLINE compute_t<T> total() const { return sum_lanes(vector) + scalar; }
};

}  // namespace
}  // namespace fastsr::cpu
