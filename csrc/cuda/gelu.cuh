// GELU in three accuracies, LeakyReLU, and their derivatives (docs/gelu.md; fits by benchmarks/gelu_fits.py).
//
//   GELU(x) = x Phi(x),  GELU'(x) = Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi),  Phi(-a) = exp(-a^2 / 2) R(1 / (1 + p a))
#pragma once

#include "device.cuh"

namespace fastsr::cuda {

// The tail is as accurate as erff in float32 for half the instructions: it serves both float32 and "exact".
enum class Gelu { kTail, kBump9, kBump6, kTanh };

enum Activation : int { kNone = 0, kGelu = 1, kLeaky = 2 };  // the operators' codes

constexpr float kLeakySlope = 0.05f;

// Phi(-a) and exp(-a^2 / 2) for a >= 0.
__device__ __forceinline__ float2 gelu_tail(float a) {
  float t = rsqrt_approx(fmaf(0.28f, a, 1.f));  // one instruction; a division takes seven
  t = t * t;
  const float e = exp2_approx(a * a * -0.7213475204444817f);
  float r = -1.063287338e-01f;
  r = fmaf(r, t, 3.920677158e-01f);
  r = fmaf(r, t, -2.406705257e-01f);
  r = fmaf(r, t, 2.719731581e-01f);
  r = fmaf(r, t, 6.622919807e-02f);
  r = fmaf(r, t, 1.167291763e-01f);
  return make_float2(e * (r * t), e);
}

template <Gelu Form>
__device__ __forceinline__ float gelu(float x) {
  if constexpr (Form == Gelu::kTail) {
    const float a = fminf(fabsf(x), 16.f);  // the tail is 0 there; infinity times 0 would be NaN
    return fmaf(-a, gelu_tail(a).x, relu_nan(x));
  } else if constexpr (Form == Gelu::kBump9) {
    const float t = fminf(fabsf(x), 4.5f), s = fmaf(t, t, -20.25f);
    float q = fmaf(3.000009557e-11f, s, 1.576100439e-09f);
    q = fmaf(q, s, 3.698447755e-08f);
    q = fmaf(q, s, 4.400038748e-07f);
    q = fmaf(q, s, 3.217076709e-06f);
    q = fmaf(q, s, 6.957000686e-06f);
    q = fmaf(q, s, 1.210130405e-04f);
    q = fmaf(q, s, -2.730826300e-03f);
    q = fmaf(q, s, 1.111111111e-01f);
    return fmaf(t, fmaf(t, q, -0.5f), relu_nan(x));
  } else if constexpr (Form == Gelu::kBump6) {
    const float t = fminf(fabsf(x), 3.75f), s = fmaf(t, t, -14.0625f);
    float q = fmaf(-4.668133046e-07f, s, -6.814160098e-06f);
    q = fmaf(q, s, -6.536972285e-05f);
    q = fmaf(q, s, 1.177534881e-04f);
    q = fmaf(q, s, -4.811154280e-03f);
    q = fmaf(q, s, 1.333333333e-01f);
    return fmaf(t, fmaf(t, q, -0.5f), relu_nan(x));
  } else {
    const float z = fminf(x * x, 25.f);  // the polynomial turns down beyond its fit; tanh is 1 long before
    const float t = tanh_approx(x * fmaf(fmaf(-3.515925482e-04f, z, 3.700599397e-02f), z, 7.975075881e-01f));
    return fmaf(0.5f * x, t, 0.5f * x);
  }
}

// Of the exact GELU, whatever the accuracy of the forward.
__device__ __forceinline__ float gelu_derivative(float x) {
  const float2 tail = gelu_tail(fabsf(x));
  return fmaf(x * tail.y, 0.3989422804014327f, x < 0.f ? tail.x : 1.f - tail.x);
}

// As exact as float32 can be, for few values: where gradients pass through several GELUs, the tail's 3e-7 add up.
__device__ __forceinline__ float gelu_by_erfc(float x) { return 0.5f * x * erfcf(x * -0.7071067811865476f); }
__device__ __forceinline__ float gelu_derivative_by_erfc(float x) {
  return fmaf(x * expf(-0.5f * x * x), 0.3989422804014327f, 0.5f * erfcf(x * -0.7071067811865476f));
}

template <Gelu Form, int Count>
__device__ __forceinline__ void activate_all(float (&x)[Count], int activation) {
  if (activation == kGelu) {
#pragma unroll
    for (int i = 0; i < Count; ++i) x[i] = gelu<Form>(x[i]);
  } else if (activation == kLeaky) {
#pragma unroll
    for (int i = 0; i < Count; ++i) x[i] = x[i] < 0.f ? x[i] * kLeakySlope : x[i];
  }
}

// Of maps of T, by the operators' codes for the activation and for the accuracy of GELU.
template <class T, int Count>
__device__ __forceinline__ void activate_all(float (&x)[Count], int activation, int accuracy) {
  constexpr Gelu kDefault = sizeof(T) == 4 ? Gelu::kTail : __is_same(T, Half) ? Gelu::kBump9 : Gelu::kBump6;
  if (accuracy == 2)
    activate_all<Gelu::kTanh>(x, activation);
  else if (accuracy == 0)
    activate_all<kDefault>(x, activation);
  else
    activate_all<Gelu::kTail>(x, activation);
}

__device__ __forceinline__ float activation_derivative(float x, int activation) {
  if (activation == kGelu) return gelu_derivative(x);
  return activation == kLeaky && !(x > 0.f) ? kLeakySlope : 1.f;
}

}  // namespace fastsr::cuda
