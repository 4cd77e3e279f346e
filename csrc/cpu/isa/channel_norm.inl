// Layer normalisation over the channels of kLanes pixels at once, for rows of float whose channels are padded to whole
// vectors (with anything: the padding is left out of the statistics).
#pragma once

#include "rolling_rows.inl"

namespace fastsr::cpu {
namespace {
namespace channel_norm {

// Lane i: a[i] + a[i ^ S] where bit S of i is clear, b[i] + b[i ^ S] where it is set.
template <int S, size_t... I>
FASTSR_INLINE vf fold(vf a, vf b, std::index_sequence<I...>) {
  constexpr int n = kLanes;
  return __builtin_shufflevector(a, b, (int(I) & S ? n + int(I) : int(I))...) +
         __builtin_shufflevector(a, b, (int(I) & S ? n + (int(I) ^ S) : int(I) ^ S)...);
}

template <int S>
FASTSR_INLINE void fold_all(vf (&v)[kLanes]) {
  if constexpr (S < kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / S / 2; ++i) v[i] = fold<S>(v[2 * i], v[2 * i + 1], std::make_index_sequence<kLanes>());
    fold_all<2 * S>(v);
  }
}

// Lane i of the result: the sum of the lanes of v[i].
FASTSR_INLINE vf lane_sums(vf (&v)[kLanes]) {
  fold_all<1>(v);
  return v[0];
}

struct Channels {
  int64_t count;                    // channels
  int64_t groups;                   // vectors
  alignas(64) float valid[kLanes];  // of the last vector: 1 for a channel, 0 for padding

  explicit Channels(int64_t c) : count(c), groups((c + kLanes - 1) / kLanes) {
    for (int i = 0; i < kLanes; ++i) valid[i] = (groups - 1) * kLanes + i < c ? 1.f : 0.f;
  }
  bool padded() const { return count % kLanes != 0; }
};

struct Moments {
  alignas(64) float mean[kLanes], rstd[kLanes];
};

// Mean and 1 / sqrt(variance + eps) of kLanes pixels, G * kLanes floats apart (G = 0: c.groups * kLanes).
template <int G>
FASTSR_INLINE void moments(const float* v, const Channels& c, float eps, Moments& m) {
  const int64_t groups = G > 0 ? G : c.groups, stride = groups * kLanes;
  const float inverse = 1.f / static_cast<float>(c.count);
  const vf valid = load(c.valid);
  vf s[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const float* p = v + i * stride;
    vf sum = load(p + (groups - 1) * kLanes);
    if (c.padded()) sum = select(reinterpret_cast<vi>(valid > vf{}), sum, vf{});
    for (int64_t g = 0; g < groups - 1; ++g) sum += load(p + g * kLanes);
    s[i] = sum;
  }
  const vf mean = lane_sums(s) * inverse;
  store(m.mean, mean);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const float* p = v + i * stride;
    const vf centre = splat(m.mean[i]);
    vf d = load(p + (groups - 1) * kLanes) - centre;
    if (c.padded()) d = select(reinterpret_cast<vi>(valid > vf{}), d, vf{});
    vf sum = d * d;
    for (int64_t g = 0; g < groups - 1; ++g) {
      d = load(p + g * kLanes) - centre;
      sum += d * d;
    }
    s[i] = sum;
  }
  store(m.rstd, lane_sums(s) * inverse + eps);
  for (int i = 0; i < kLanes; ++i) m.rstd[i] = 1.f / std::sqrt(m.rstd[i]);
}

}  // namespace channel_norm
}  // namespace
}  // namespace fastsr::cpu
