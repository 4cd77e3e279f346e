// What follows a dense convolution: one vector of output channels of one pixel at a time.
//
//   forward    y = act(pre) + shortcut
//   gradient   g = dy * act'(pre)
//
// Channels that do not fill a vector are done by a last vector that overlaps the one before it; fewer channels than
// one vector go through a buffer.
#pragma once

#pragma once

#include "gemm.inl"

namespace fastsr::cpu {
namespace {

// Begin of the vector of channels that starts at c in steps of lanes: moved back where it would pass the end.
FASTSR_INLINE int64_t vector_begin(int64_t c, int64_t channels) {
  constexpr int64_t lanes = VecOf<float>::lanes;
  return std::min(c, std::max<int64_t>(0, channels - lanes));
}

// Loads or stores a vector of which only `valid` lanes exist.
template <class T>
FASTSR_INLINE vf load_first(const T* p, int64_t valid) {
  if (valid >= VecOf<float>::lanes) return load(p);
  T buffer[VecOf<float>::lanes] = {};
  std::memcpy(buffer, p, valid * sizeof(T));
  return load(buffer);
}
template <class T>
FASTSR_INLINE void store_first(T* p, vf v, int64_t valid) {
  if (valid >= VecOf<float>::lanes) return store(p, v);
  T buffer[VecOf<float>::lanes];
  store(buffer, v);
  std::memcpy(p, buffer, valid * sizeof(T));
}

// The results of `count` neighbouring pixels of row (n, h) from w on, channels from c on; pre[i * step] has no bias
// yet.
template <Activation activation, class T>
FASTSR_INLINE void finish_pixels(const Conv3x3Args<T>& args, int64_t n, int64_t h, int64_t w, int64_t c, int64_t count,
                                 const vf* pre, int64_t step) {
  const vf bias = load(args.bias + c);
  const int64_t valid = args.k - c;
  if (args.dy.data) {
    const T* dy = args.dy.at(n, h, w) + c;
    float* g = args.g.at(n, h, w) + c;
    for (int64_t i = 0; i < count; ++i, dy += args.dy.stride_w, g += args.g.stride_w)
      store_first(g, load_first(dy, valid) * activate_grad<activation>(pre[i * step] + bias), valid);
    return;
  }
  T* y = args.y.at(n, h, w) + c;
  if (!args.shortcut.data) {
    for (int64_t i = 0; i < count; ++i, y += args.y.stride_w)
      store_first(y, activate<activation>(pre[i * step] + bias), valid);
    return;
  }
  const T* s = args.shortcut.at(n, h, w) + c;
  for (int64_t i = 0; i < count; ++i, y += args.y.stride_w, s += args.shortcut.stride_w)
    store_first(y, activate<activation>(pre[i * step] + bias) + load_first(s, valid), valid);
}

// Pixels of a register tile that is `vectors` wide.
constexpr int tile_pixels(int vectors) { return vectors <= kTileVectors / 2 ? 2 * kTilePixels : kTilePixels; }

// Calls body(constant) with min(vectors, kTileVectors) as a compile-time constant.
template <class Body>
FASTSR_INLINE void with_vectors(int64_t vectors, Body&& body) {
  if (vectors >= kTileVectors) return body(std::integral_constant<int, kTileVectors>{});
  if (vectors == 3) return body(std::integral_constant<int, std::min(3, kTileVectors)>{});
  if (vectors == 2) return body(std::integral_constant<int, std::min(2, kTileVectors)>{});
  body(std::integral_constant<int, 1>{});
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
