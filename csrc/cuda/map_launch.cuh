// From views of tensors to the maps of kernels, and memory within a workspace.
#pragma once

#include "map.cuh"
#include "view.h"

namespace fastsr::cuda {

template <class T>
Map<T> map_of(const TensorView& v) {
  note_map(v.data, bytes_of(v, sizeof(T)));
  const auto fits = [&](int64_t step) {
    return v.stride[1] == 1 && reinterpret_cast<uintptr_t>(v.data) % (step * sizeof(T)) == 0 &&
           v.stride[0] % step == 0 && v.stride[2] % step == 0 && v.stride[3] % step == 0;
  };
  const int access = fits(16 / sizeof(T)) ? kByEight : v.size[1] % 2 == 0 && fits(2) ? kByPair : kBySingle;
  return {static_cast<T*>(v.data),     v.stride[0], v.stride[1], v.stride[2], v.stride[3],
          static_cast<int>(v.size[1]), access};
}

// Channels last in scratch memory, for maps like x; every pixel begins on 16 bytes.
inline TensorView scratch_like(const TensorView& x, void* data, int64_t channels, int64_t element_bytes) {
  const int64_t step = 16 / element_bytes, w_stride = (channels + step - 1) / step * step;
  const int64_t h_stride = w_stride * x.size[3];
  return {data, {x.size[0], channels, x.size[2], x.size[3]}, {h_stride * x.size[2], 1, h_stride, w_stride}};
}

// Bytes of it.
inline int64_t scratch_bytes(const TensorView& x, int64_t channels, int64_t element_bytes) {
  return x.size[0] * scratch_like(x, nullptr, channels, element_bytes).stride[0] * element_bytes;
}

// Hands out parts of a workspace, each on 128 bytes.
struct Sections {
  int64_t end = 0;

  int64_t take(int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 127) / 128 * 128;
    return begin;
  }
};

}  // namespace fastsr::cuda
