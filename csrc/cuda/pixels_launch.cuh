// From views of tensors to the tiles and maps of kernels.
#pragma once

#include "parameter.cuh"
#include "pixels.cuh"
#include "tf32.cuh"
#include "view.h"

namespace fastsr::cuda {

inline Tiles tiles_of(const TensorView& x, int rows) {
  Tiles t{};
  t.h = static_cast<int>(x.size[2]), t.w = static_cast<int>(x.size[3]), t.rows = rows;
  t.across = (t.w + kTileColumns - 1) / kTileColumns, t.down = (t.h + rows - 1) / rows;
  t.count = x.size[0] * t.across * t.down;
  return t;
}

template <class T>
PixelMap<T> pixel_map(const TensorView& v) {
  note_map(v.data, bytes_of(v, sizeof(T)));
  const auto fits = [&](int64_t vector) {
    return v.stride[1] == 1 && reinterpret_cast<uintptr_t>(v.data) % (vector * sizeof(T)) == 0 &&
           v.size[1] % vector == 0 && v.stride[0] % vector == 0 && v.stride[2] % vector == 0 &&
           v.stride[3] % vector == 0;
  };
  PixelMap<T> m{};
  m.data = static_cast<T*>(v.data);
  m.n_stride = v.stride[0], m.c_stride = v.stride[1], m.h_stride = v.stride[2], m.w_stride = v.stride[3];
  m.channels = static_cast<int>(v.size[1]);
  m.vector = fits(kWideVector<T>) ? kWideVector<T> : fits(2) ? 2 : 1;
  return m;
}

// Channels last in scratch memory, for maps like x; padded to whole accesses of 16 bytes.
inline TensorView scratch_view(void* data, const TensorView& x, int64_t channels) {
  const int64_t padded = (channels + 7) / 8 * 8, n = x.size[0], h = x.size[2], w = x.size[3];
  return {data, {n, padded, h, w}, {h * w * padded, 1, w * padded, padded}};
}
inline int64_t elements_of(const TensorView& v) { return v.size[0] * v.size[1] * v.size[2] * v.size[3]; }

// Calls run(T{}) with the storage type of a dtype code.
template <class Run>
cudaError_t with_dtype(int64_t dtype, Run run) {
  if (dtype == kFloat32) return run(float{});
  return dtype == kFloat16 ? run(Half{}) : run(BFloat16{});
}

// The same with Tf32 in place of float32 if `tf32`.
template <class Run>
cudaError_t with_numbers(int64_t dtype, bool tf32, Run run) {
  return dtype == kFloat32 && tf32 ? run(Tf32{}) : with_dtype(dtype, run);
}

// CTAs of a kernel of which each takes many tiles.
inline int64_t resident_blocks(int64_t tiles, int per_multiprocessor) {
  const int64_t most = static_cast<int64_t>(per_multiprocessor) * multiprocessors();
  return tiles < most ? tiles : most;
}

}  // namespace fastsr::cuda
