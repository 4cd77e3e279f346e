// From an EsaCall to kernels.
#pragma once

#include "esa.h"
#include "esa_small.cuh"
#include "map_launch.cuh"
#include "pixels_launch.cuh"

namespace fastsr::cuda {

inline int esa_layers(const EsaCall& call) { return call.count == 10 ? 1 : 3; }

inline EsaShape esa_shape(const EsaCall& call) {
  EsaShape s{};
  s.n = call.x.size[0];
  s.c = static_cast<int>(call.x.size[1]), s.f = static_cast<int>(call.f), s.wide = padded_inside(s.f);
  s.h = static_cast<int>(call.x.size[2]), s.w = static_cast<int>(call.x.size[3]);
  s.padding = static_cast<int>(call.padding), s.layers = esa_layers(call);
  s.h2 = (s.h + 2 * s.padding - 3) / 2 + 1, s.w2 = (s.w + 2 * s.padding - 3) / 2 + 1;
  s.small_h = (s.h2 - kPool) / kPoolStep + 1, s.small_w = (s.w2 - kPool) / kPoolStep + 1;
  s.ratio_h = static_cast<float>(static_cast<double>(s.small_h) / s.h);
  s.ratio_w = static_cast<float>(static_cast<double>(s.small_w) / s.w);
  return s;
}

// Where the parameters of convolution `i` stand: 0 conv2, then those of the small map.
struct EsaPlaces {
  int w, dw, bias;  // dw is -1 in the plain form
};
inline EsaPlaces esa_places(const EsaCall& call, int i) {
  return call.count == 10 ? EsaPlaces{2 + 2 * i, -1, 3 + 2 * i} : EsaPlaces{2 + 3 * i, 3 + 3 * i, 4 + 3 * i};
}

inline EsaWeights esa_weights(const EsaCall& call) {
  EsaWeights w{};
  const auto parameter = [&](int64_t i) {
    return i < 0 ? Parameter{nullptr, 0} : Parameter{call.parameters[i], static_cast<int>(call.parameter_dtype)};
  };
  w.w1 = parameter(0), w.b1 = parameter(1);
  for (int i = 0; i <= esa_layers(call); ++i) {
    const EsaPlaces at = esa_places(call, i);
    w.conv[i] = {parameter(at.w), parameter(at.dw), parameter(at.bias)};
  }
  w.wf = parameter(call.count - 4), w.bf = parameter(call.count - 3);
  w.w4 = parameter(call.count - 2), w.b4 = parameter(call.count - 1);
  return w;
}

// Maps of `wide` channels in scratch memory.
template <class T>
Map<T> esa_map(void* data, const EsaShape& s, int h, int w) {
  const int64_t w_stride = s.wide, h_stride = w_stride * w;
  note_map(data, s.n * h_stride * h * static_cast<int64_t>(sizeof(T)));
  return {static_cast<T*>(data), h_stride * h, 1, h_stride, w_stride, s.wide, 1};
}
inline int64_t esa_cells(const EsaShape& s, int64_t h, int64_t w) { return s.n * h * w * s.wide; }
// Small maps of float32, one behind the other.
inline float* esa_small_maps(void* data, const EsaShape& s, int count = 1) {
  note_map(data, count * esa_cells(s, s.small_h, s.small_w) * static_cast<int64_t>(sizeof(float)));
  return static_cast<float*>(data);
}

// Where they lie in the workspace, in bytes; c1, unless the call has it, with `margin` pixels around it.
struct EsaMaps {
  int64_t c1, out;
};
inline EsaMaps esa_maps(const EsaCall& call, int64_t margin, Sections& sections) {
  const EsaShape s = esa_shape(call);
  const int64_t element = call.dtype == kFloat32 ? 4 : 2;
  EsaMaps at{};
  if (!call.reduced.data) at.c1 = sections.take(esa_cells(s, s.h + 2 * margin, s.w + 2 * margin) * element);
  at.out = sections.take(esa_cells(s, s.small_h, s.small_w) * static_cast<int64_t>(sizeof(float)));
  return at;
}

template <class T>
Esa<T> esa_of(const EsaCall& call) {
  Esa<T> a{};
  a.s = esa_shape(call);
  a.w = esa_weights(call);
  a.x = map_of<T>(call.x);
  a.accuracy = static_cast<int>(call.accuracy);
  a.tiles = product_tiles(static_cast<int64_t>(a.s.h) * a.s.w);
  return a;
}

// CTAs that take tiles of all images in turn.
template <class T>
int64_t esa_blocks(const Esa<T>& a, int per_multiprocessor) {
  return resident_blocks(a.s.n * a.tiles, per_multiprocessor);
}

template <class T>
cudaError_t start_esa_reduce(const Esa<T>& a, cudaStream_t stream) {
  static_assert(kMaxEsaChannels * kBlock * sizeof(T) + 4 * kBlock <= 99 * 1024);
  return launch(esa_reduce_kernel<T>, esa_blocks(a, 3), kProductThreads, esa_reduce_shared<T>(a.s), stream, a);
}

// From c1 to `out`.
template <class T>
cudaError_t start_esa_small(const Esa<T>& a, cudaStream_t stream) {
  constexpr int kWide = kMaxEsaInner, kSide = kSmallTile + 6, kKept = kSide * kSide * kWide * 5;  // with three layers
  static_assert(kKept + 4 * (conv2_words<T>(kWide) + kWide + 4 * 48 * kWide) <= 99 * 1024);
  static_assert(kKept + 4 * (kSide * kSide * kWide + esa_layer_words(kWide)) <= 99 * 1024);
  return launch(esa_small_kernel<T>, SmallTiles(a.s).count, kSmallThreads, SmallPlan<T>(a.s).end, stream, a);
}

// The same from x, or from c1 if the call has it: otherwise it is made at `c1`.
template <class T>
cudaError_t start_esa_path(const EsaCall& call, Esa<T>& a, void* c1, cudaStream_t stream) {
  a.c1 = call.reduced.data ? map_of<T>(call.reduced) : esa_map<T>(c1, a.s, a.s.h, a.s.w);
  const cudaError_t error = call.reduced.data ? cudaSuccess : start_esa_reduce(a, stream);
  return error == cudaSuccess ? start_esa_small(a, stream) : error;
}

// Compiled with the forward, and used by others.
extern template cudaError_t start_esa_reduce(const Esa<float>&, cudaStream_t);
extern template cudaError_t start_esa_reduce(const Esa<Tf32>&, cudaStream_t);
extern template cudaError_t start_esa_reduce(const Esa<Half>&, cudaStream_t);
extern template cudaError_t start_esa_reduce(const Esa<BFloat16>&, cudaStream_t);
extern template cudaError_t start_esa_small(const Esa<float>&, cudaStream_t);
extern template cudaError_t start_esa_small(const Esa<Tf32>&, cudaStream_t);
extern template cudaError_t start_esa_small(const Esa<Half>&, cudaStream_t);
extern template cudaError_t start_esa_small(const Esa<BFloat16>&, cudaStream_t);

}  // namespace fastsr::cuda
