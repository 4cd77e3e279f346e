// Bridges between tensors and the convolution kernels: views, dtypes, packed parameters.
#pragma once

#include "isa/conv_map.h"
#include "isa/rows.h"
#include "isa/types.h"
#include "layout.h"
#include "parallel.h"
#include "weights.h"

namespace fastsr::cpu {

template <class T>
ConvMap<const T> read_map(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}
template <class T>
ConvMap<T> write_map(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}

inline const float* float_data(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

// A vector padded with zeros to whole vectors of 16.
inline Buffer<float> padded_vector(const Tensor& v) {
  const Tensor f = dense(v);
  const int64_t size = f.numel(), padded = padded_channels(size);
  Buffer<float> to = make_buffer<float>(padded);
  std::fill(std::copy_n(float_data(f), size, to.get()), to.get() + padded, 0.f);
  return to;
}

// The first `count` numbers of `ranges` partial sums that are `step` apart, added in order.
inline void sum_ranges(const float* sums, int64_t ranges, int64_t step, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    double total = 0;
    for (int64_t r = 0; r < ranges; ++r) total += sums[r * step + i];
    to[i] = static_cast<float>(total);
  }
}

// Calls body(T{}) with the storage type of `x`.
template <class Body>
void dispatch_storage(const char* op, const Tensor& x, Body&& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Half:
      return body(Half{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      STD_TORCH_CHECK(false, op, ": x has a dtype without kernel; pass float32, float16 or bfloat16");
  }
}

}  // namespace fastsr::cpu
