// From an AlkCall to kernels: sizes, packed weights, the choice of instantiation.
#pragma once

#include "alk.h"
#include "alk_forward.cuh"
#include "alk_pack.cuh"
#include "map_launch.cuh"
#include "pixels_launch.cuh"

namespace fastsr::cuda {

inline int alk_side(int64_t taps) { return taps <= 9 ? 24 : taps <= 17 ? 32 : taps <= 25 ? 40 : 48; }

inline AlkShape alk_shape(const AlkCall& call) {
  const TensorView& x = call.x;
  AlkShape s;
  s.h = static_cast<int>(x.size[2]);
  s.w = static_cast<int>(x.size[3]);
  s.c = static_cast<int>(x.size[1]);
  s.k = static_cast<int>(call.k);
  s.d = static_cast<int>(call.d);
  s.taps = static_cast<int>(call.taps);
  s.tiles_x = (s.w + kTile - 1) / kTile;
  s.tiles_y = (s.h + kTile - 1) / kTile;
  s.tiles = x.size[0] * s.tiles_x * s.tiles_y;
  return s;
}

// Channels last, of `channels`, in scratch memory.
template <class T>
Map<T> scratch_map(void* data, const AlkShape& s, int channels) {
  const int64_t w_stride = padded_to_eight(channels), h_stride = w_stride * s.w;
  const int64_t images = s.tiles ? s.tiles / (s.tiles_x * s.tiles_y) : 0;
  note_map(data, images * h_stride * s.h * static_cast<int64_t>(sizeof(T)));
  return {static_cast<T*>(data), h_stride * s.h, 1, h_stride, w_stride, channels, 1};
}

template <class T>
AlkPack<T> alk_pack_of(const AlkCall& call, bool backward) {
  AlkPack<T> a{};
  const AlkShape s = alk_shape(call);
  a.c = s.c, a.k = s.k, a.d = s.d, a.filter_taps = s.taps, a.side = alk_side(s.taps);
  const int margin = a.side / 2 - 8, window = 2 * margin + 1, padded_k = blocks_of(s.k) * kBlock;
  const int64_t filter = sizeof(T) == 2    ? ((a.side - 8) / 8 + 6 + a.side / 8 + 3) / 4 * 128
                         : kTensorCores<T> ? diagonals_of(a.side)
                                           : (2 * window + 9 + 3) / 4 * 4;
  constexpr int64_t kWords = kBlock * kBlock / (4 / sizeof(T));  // of a block of products
  const int64_t k_blocks = (s.k + 63) / 64 * 2;                  // a pass is at most 64 channels
  AlkPacked& at = a.at;
  at.rows = 0;
  at.filters = at.rows + k_blocks * blocks_of(s.c) * kWords;
  at.vectors = at.filters + s.k * filter;
  at.distil = at.vectors + 5 * padded_k;
  at.distil_bias = at.distil + static_cast<int64_t>(blocks_of(s.d)) * blocks_of(s.c) * kWords;
  at.back = at.distil_bias + blocks_of(s.d) * kBlock;
  at.reversed = at.back;
  if (backward) at.reversed += static_cast<int64_t>(blocks_of(s.c)) * blocks_of(padded_to_eight(s.k) + s.d) * kWords;
  at.end = at.reversed + (backward ? s.k * filter : 0);
  Parameter* parameters = &a.w.d_weight;
  for (int i = 0; i < 11; ++i) parameters[i] = {call.parameters[i], static_cast<int>(call.parameter_dtype)};
  return a;
}

// Of float32 a packed vector holds both: weights for FMA and, behind them, for TF32.
template <class T>
int64_t packed_begin(const AlkCall& call) {
  return __is_same(T, Tf32) ? 4 * alk_pack_of<float>(call, call.keeps).at.end : 0;
}

// The weights as `alk_pack` left them or, without such, in `to`, where a launch writes them first.
template <class T>
cudaError_t packed_of(const AlkCall& call, bool backward, void* to, cudaStream_t stream, AlkPack<T>* found) {
  *found = alk_pack_of<T>(call, backward || call.keeps);
  if (call.packed) {
    found->to = reinterpret_cast<uint32_t*>(static_cast<char*>(const_cast<void*>(call.packed)) + packed_begin<T>(call));
    return cudaSuccess;
  }
  found->to = static_cast<uint32_t*>(to);
  return launch(alk_pack_kernel<T>, (found->at.end + kThreads - 1) / kThreads, kThreads, 0, stream, *found);
}

template <class T>
AlkForward<T> alk_forward_of(const AlkCall& call, const AlkPack<T>& packed) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(packed.to);
  AlkForward<T> a{};
  a.shape = alk_shape(call);
  a.x = map_of<T>(call.x);
  a.rows = bytes + 4 * packed.at.rows;
  a.filters = bytes + 4 * packed.at.filters;
  a.vectors = reinterpret_cast<const float*>(bytes + 4 * packed.at.vectors);
  a.distil = bytes + 4 * packed.at.distil;
  a.distil_bias = reinterpret_cast<const float*>(bytes + 4 * packed.at.distil_bias);
  a.eps = static_cast<float>(call.eps);
  a.activation = static_cast<int>(call.activation);
  a.residual = static_cast<int>(call.residual);
  return a;
}

template <class T, int S, Gelu Form>
cudaError_t start_alk_forward(const AlkForward<T>& a, cudaStream_t stream) {
  constexpr int kShared = alk_forward_shared<ForwardPlane<T, S>>();
  static_assert(kShared <= 99 * 1024);
  return launch(alk_forward_kernel<T, S, Form>, a.shape.tiles, kThreads, kShared, stream, a);
}

// The polynomials are compiled for filters of up to 9 taps; larger ones take the exact form, whatever is allowed.
template <class T>
cudaError_t start_alk_forward(const AlkForward<T>& a, int64_t accuracy, cudaStream_t stream) {
  constexpr Gelu kDefault = sizeof(T) == 4 ? Gelu::kTail : __is_same(T, Half) ? Gelu::kBump9 : Gelu::kBump6;
  switch (alk_side(a.shape.taps)) {
    case 24:
      if (accuracy == 2) return start_alk_forward<T, 24, Gelu::kTanh>(a, stream);
      if (accuracy == 0) return start_alk_forward<T, 24, kDefault>(a, stream);
      return start_alk_forward<T, 24, Gelu::kTail>(a, stream);
    case 32:
      return start_alk_forward<T, 32, Gelu::kTail>(a, stream);
    case 40:
      return start_alk_forward<T, 40, Gelu::kTail>(a, stream);
    default:
      return start_alk_forward<T, 48, Gelu::kTail>(a, stream);
  }
}

// Compiled with the forward, and used by the backward.
extern template cudaError_t start_alk_forward(const AlkForward<float>&, int64_t, cudaStream_t);
extern template cudaError_t start_alk_forward(const AlkForward<Tf32>&, int64_t, cudaStream_t);
extern template cudaError_t start_alk_forward(const AlkForward<Half>&, int64_t, cudaStream_t);
extern template cudaError_t start_alk_forward(const AlkForward<BFloat16>&, int64_t, cudaStream_t);

template <class T>
cudaError_t alk_forward_as(const AlkCall& call, cudaStream_t stream) {
  AlkPack<T> packed;
  const cudaError_t error = packed_of(call, false, call.workspace, stream, &packed);
  if (error != cudaSuccess) return error;
  AlkForward<T> a = alk_forward_of(call, packed);
  a.y = map_of<T>(call.y);
  if (call.d > 0) a.distilled = map_of<T>(call.distilled);
  return start_alk_forward(a, call.accuracy, stream);
}

}  // namespace fastsr::cuda
