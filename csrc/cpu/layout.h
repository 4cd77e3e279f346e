// Memory layouts of feature maps. The kernels work on pixels whose channels lie side by side (NHWC).
#pragma once

#include <array>
#include <vector>

#include "../checks.h"
#include "../format.h"
#include "memory.h"

namespace fastsr::cpu {

// An uninitialised map; a large one takes its memory from memory.h.
inline Tensor empty_feature_map(const Tensor& like, std::array<int64_t, 4> size, MemoryFormat format) {
  const size_t bytes = static_cast<size_t>(size[0] * size[1] * size[2] * size[3]) * like.element_size();
  if (!keeps_memory(bytes))
    return torch::stable::empty({size.data(), 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                                format);
  const auto [n, c, h, w] = size;
  const std::array<int64_t, 4> strides = format == MemoryFormat::ChannelsLast
                                             ? std::array<int64_t, 4>{h * w * c, 1, w * c, c}
                                             : std::array<int64_t, 4>{c * h * w, h * w, w, 1};
  return torch::stable::from_blob(take_memory(bytes), {size.data(), 4}, {strides.data(), 4}, like.device(),
                                  like.scalar_type(), [bytes](void* memory) { give_memory(memory, bytes); });
}

// A feature map as a kernel reads or writes it: pixel (n, h, w) begins at data + n * stride_n + h * stride_h +
// w * stride_w, its channels follow one another.
template <class T>
struct Pixels {
  T* data;
  int64_t stride_n, stride_h, stride_w;
  T* at(int64_t n, int64_t h, int64_t w) const { return data + n * stride_n + h * stride_h + w * stride_w; }
};

// `x` itself if its channels lie side by side (slices of channels or pixels included), otherwise an NHWC copy.
inline Tensor side_by_side(const Tensor& x) {
  return x.stride(1) == 1 || x.size(1) == 1 ? x : torch::stable::contiguous(x, MemoryFormat::ChannelsLast);
}

template <class T>
Pixels<const T> pixels(const Tensor& x) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}
template <class T>
Pixels<T> mutable_pixels(const Tensor& x) {
  return {static_cast<T*>(x.mutable_data_ptr()), x.stride(0), x.stride(2), x.stride(3)};
}

// Where a kernel writes an output that the caller gets in `format`: the tensor itself, or an NHWC stand-in.
class OutputMap {
 public:
  OutputMap(const Tensor& like, std::array<int64_t, 4> size, MemoryFormat format)
      : result_(empty_feature_map(like, size, format)),
        written_(format == MemoryFormat::ChannelsLast ? result_
                                                      : empty_feature_map(like, size, MemoryFormat::ChannelsLast)),
        copy_(format != MemoryFormat::ChannelsLast) {}
  // Writes over a map whose channels lie side by side.
  explicit OutputMap(const Tensor& map) : result_(map), written_(map), copy_(false) {}
  const Tensor& nhwc() const { return written_; }
  Tensor finish() {
    if (copy_) torch::stable::copy_(result_, written_);
    return result_;
  }

 private:
  Tensor result_, written_;
  bool copy_;
};

}  // namespace fastsr::cpu
