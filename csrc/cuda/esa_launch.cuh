// From an EsaCall to kernels.
#pragma once

#include "esa.h"
#include "esa_path.cuh"
#include "map_launch.cuh"
#include "pointwise_launch.cuh"

namespace fastsr::cuda {

inline EsaShape esa_shape(const EsaCall& call) {
  EsaShape s{};
  s.n = call.x.size[0];
  s.c = static_cast<int>(call.x.size[1]), s.f = static_cast<int>(call.f), s.wide = padded_to_eight(s.f);
  s.h = static_cast<int>(call.x.size[2]), s.w = static_cast<int>(call.x.size[3]);
  s.padding = static_cast<int>(call.padding), s.layers = call.count == 10 ? 1 : 3;
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

template <class T>
EsaPack<T> esa_pack_of(const EsaCall& call, bool backward) {
  const EsaShape s = esa_shape(call);
  EsaPack<T> a{};
  a.c = s.c, a.f = s.f, a.wide = s.wide, a.layers = s.layers, a.h = s.h, a.w = s.w;
  const auto parameter = [&](int64_t i) {
    return i < 0 ? Parameter{nullptr, 0} : Parameter{call.parameters[i], static_cast<int>(call.parameter_dtype)};
  };
  a.w1 = parameter(0), a.b1 = parameter(1);
  for (int i = 0; i <= s.layers; ++i) {
    const EsaPlaces at = esa_places(call, i);
    a.conv[i] = {parameter(at.w), parameter(at.dw), parameter(at.bias)};
  }
  a.wf = parameter(call.count - 4), a.bf = parameter(call.count - 3);
  a.w4 = parameter(call.count - 2), a.b4 = parameter(call.count - 1);
  const int64_t of_c = product_block_bytes<T>(s.c) / 4, of_f = product_block_bytes<T>(s.f) / 4, blocks = blocks_of(s.c);
  EsaPacked& at = a.at;
  at.w1 = 0;
  at.w2 = at.w1 + of_c;
  at.wf = at.w2 + kEsaTaps * of_f;
  at.w4 = at.wf + of_f;
  at.b1 = at.w4 + blocks * of_f;
  at.b2 = at.b1 + kBlock;
  at.bf = at.b2 + kBlock;
  at.b4 = at.bf + kBlock;
  at.small = at.b4 + blocks * kBlock;
  at.forward_end = at.small + s.layers * esa_layer_words(s.wide);
  at.w1t = at.forward_end;
  at.w2t = at.w1t + blocks * of_f;
  at.wft = at.w2t + kEsaTaps * of_f;
  at.w4t = at.wft + of_f;
  at.end = at.w4t + of_c;
  a.words = backward ? at.end : at.forward_end;
  a.border_words = s.n * (2 * (static_cast<int64_t>(s.w) + 2) + 2 * s.h) * s.wide * static_cast<int>(sizeof(T)) / 4;
  return a;
}

// Maps of `wide` channels and of x's size in scratch memory; c1 has a margin of a pixel.
template <class T>
Map<T> esa_map(void* data, const EsaShape& s, int h, int w) {
  const int64_t w_stride = s.wide, h_stride = w_stride * w;
  return {static_cast<T*>(data), h_stride * h, 1, h_stride, w_stride, s.wide, 1};
}
inline int64_t esa_cells(const EsaShape& s, int64_t h, int64_t w) { return s.n * h * w * s.wide; }

// Where things lie in the workspace, in bytes. From `q` on for the backward only.
struct EsaScratch {
  int64_t packed, c1, low, out;
  int64_t q, m, index, other, z, dz, dgate, dlow, dc1, sums, dense, end;
};

template <class T>
EsaScratch esa_forward_scratch(const EsaCall& call, Sections& sections, bool backward) {
  const EsaShape s = esa_shape(call);
  constexpr int64_t kNumber = sizeof(float);
  EsaScratch at{};
  at.packed = sections.take(4 * esa_pack_of<T>(call, backward).words);
  at.c1 = sections.take(esa_cells(s, s.h + 2, s.w + 2) * static_cast<int64_t>(sizeof(T)));
  at.low = sections.take(esa_cells(s, s.h2, s.w2) * kNumber);
  at.out = sections.take(esa_cells(s, s.small_h, s.small_w) * kNumber);
  at.end = sections.end;
  return at;
}

template <class T>
Esa<T> esa_of(const EsaCall& call, const EsaScratch& scratch, const EsaPacked& at) {
  Esa<T> a{};
  a.s = esa_shape(call);
  char* workspace = static_cast<char*>(call.workspace);
  const auto bytes = [&](int64_t words) {
    return reinterpret_cast<const unsigned char*>(workspace + scratch.packed + 4 * words);
  };
  const auto floats = [&](int64_t words) { return reinterpret_cast<const float*>(bytes(words)); };
  a.x = map_of<T>(call.x);
  a.c1 = esa_map<T>(workspace + scratch.c1, a.s, a.s.h + 2, a.s.w + 2);
  a.w1 = bytes(at.w1), a.w2 = bytes(at.w2), a.wf = bytes(at.wf), a.w4 = bytes(at.w4);
  a.w1t = bytes(at.w1t), a.w2t = bytes(at.w2t), a.wft = bytes(at.wft), a.w4t = bytes(at.w4t);
  a.b2 = floats(at.b2), a.bf = floats(at.bf), a.b4 = floats(at.b4), a.small = floats(at.small);
  a.low = reinterpret_cast<float*>(workspace + scratch.low);
  a.out = reinterpret_cast<float*>(workspace + scratch.out);
  a.accuracy = static_cast<int>(call.accuracy);
  a.tiles = product_tiles(static_cast<int64_t>(a.s.h) * a.s.w);
  a.low_tiles = product_tiles(static_cast<int64_t>(a.s.h2) * a.s.w2);
  return a;
}

// c1 without its margin.
template <class T>
Map<T> inner_c1(const Esa<T>& a) {
  Map<T> c1 = a.c1;
  c1.data += c1.h_stride + c1.w_stride;
  return c1;
}

// Packs the weights, and runs the side path.
template <class T>
cudaError_t start_esa_path(EsaPack<T> pack, const EsaScratch& scratch, const EsaCall& call, const Esa<T>& a,
                           cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  char* workspace = static_cast<char*>(call.workspace);
  pack.to = reinterpret_cast<uint32_t*>(workspace + scratch.packed);
  pack.border = reinterpret_cast<uint32_t*>(workspace + scratch.c1);
  const int64_t words = pack.words + pack.border_words;
  if (failed(launch(esa_pack_kernel<T>, (words + kProductThreads - 1) / kProductThreads, kProductThreads, 0, stream,
                    pack)))
    return error;
  Products<T> conv1{};
  conv1.in[0] = a.x, conv1.out[0] = inner_c1(a);
  conv1.packed = a.w1, conv1.bias = a.b2 - kBlock;
  conv1.block_bytes = product_block_bytes<T>(a.s.c);
  conv1.inputs = conv1.outputs = 1;
  conv1.w = a.s.w, conv1.pixels = static_cast<unsigned>(a.s.h) * a.s.w, conv1.tiles = a.tiles;
  if (failed(launch(product_kernel<T, 1, false>, a.s.n * a.tiles, kProductThreads, 0, stream, conv1))) return error;
  if (failed(launch(esa_low_kernel<T>, a.s.n * a.low_tiles, kProductThreads, 0, stream, a))) return error;
  // At most 32 channels and three layers: 89 KB.
  static_assert((2 * 14 * 14 * kMaxEsaInner + esa_layer_words(kMaxEsaInner)) * sizeof(float) <= 99 * 1024);
  return launch(esa_small_kernel<T>, SmallTiles(a.s).count, kProductThreads, esa_small_shared(a.s), stream, a);
}

}  // namespace fastsr::cuda
