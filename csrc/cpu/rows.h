// Feature maps as rows of float pixels, whatever their dtype and layout, and the parameters as floats.
#pragma once

#include <string>

#include "conv_tensors.h"
#include "isa/table.h"

namespace fastsr::cpu {

enum class Storage { kFloat, kHalf, kBFloat16 };

inline Storage storage_of(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat;
    case ScalarType::Half:
      return Storage::kHalf;
    case ScalarType::BFloat16:
      return Storage::kBFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": a map has a dtype without kernel; pass float32, float16 or bfloat16");
  }
}

inline void check_same_dtype(const char* op, const Tensor& x, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(other.scalar_type() == x.scalar_type(), op, ": ", name,
                  " and x differ in dtype; convert one of them");
}

inline void check_weight(const char* op, const Tensor& w, std::array<int64_t, 4> shape, const char* name) {
  STD_TORCH_CHECK(w.dim() == 4, op, ": ", name, " has ", w.dim(), " dimensions; pass 4");
  for (int64_t i = 0; i < 4; ++i)
    STD_TORCH_CHECK(w.size(i) == shape[i], op, ": ", name, " has extent ", w.size(i), " in dimension ", i, "; pass ",
                    shape[i]);
}

// Pixels as floats: pixel p begins at data + p * stride.
struct FloatRow {
  const float* data;
  int64_t stride;
};

// Reads pixels of a map as floats: in place where they are floats already, otherwise through `scratch`.
class MapReader {
 public:
  MapReader(const char* op, const Tensor& x)
      : tensor_(side_by_side(x)), storage_(storage_of(op, x)), channels_(x.size(1)) {}

  int64_t channels() const { return channels_; }
  // Floats of scratch that `pixels` pixels may need.
  int64_t scratch(int64_t pixels) const { return pixels * padded_channels(channels_); }

  FloatRow row(int64_t n, int64_t h, int64_t w, int64_t pixels, float* scratch) const {
    if (storage_ != Storage::kFloat) return converted(n, h, w, pixels, scratch);
    return {pixels_of<float>().at(n, h, w), tensor_.stride(3)};
  }
  // As row, but channels are padded with zeros to a multiple of kChannelBlock.
  FloatRow padded_row(int64_t n, int64_t h, int64_t w, int64_t pixels, float* scratch) const {
    return channels_ % kChannelBlock == 0 ? row(n, h, w, pixels, scratch) : converted(n, h, w, pixels, scratch);
  }
  // Converts pixels into y, which has y_stride >= channels values a pixel.
  void copy(int64_t n, int64_t h, int64_t w, int64_t pixels, float* y, int64_t y_stride) const {
    const RowKernels& k = kernels().rows;
    const int64_t stride = tensor_.stride(3);
    if (storage_ == Storage::kFloat) k.f32.load(pixels_of<float>().at(n, h, w), stride, pixels, channels_, y, y_stride);
    if (storage_ == Storage::kHalf) k.f16.load(pixels_of<Half>().at(n, h, w), stride, pixels, channels_, y, y_stride);
    if (storage_ == Storage::kBFloat16)
      k.bf16.load(pixels_of<BFloat16>().at(n, h, w), stride, pixels, channels_, y, y_stride);
  }

 private:
  template <class T>
  Pixels<const T> pixels_of() const {
    return pixels<T>(tensor_);
  }
  FloatRow converted(int64_t n, int64_t h, int64_t w, int64_t pixels, float* scratch) const {
    const int64_t stride = padded_channels(channels_);
    copy(n, h, w, pixels, scratch, stride);
    return {scratch, stride};
  }

  Tensor tensor_;
  Storage storage_;
  int64_t channels_;
};

// Writes pixels of an output map from floats.
class MapWriter {
 public:
  MapWriter(const char* op, const Tensor& like, std::array<int64_t, 4> size)
      : map_(like, size, output_format(like)), storage_(storage_of(op, like)), channels_(size[1]) {}
  // Writes over a map, each pixel when it has been read.
  MapWriter(const char* op, const Tensor& map) : map_(map), storage_(storage_of(op, map)), channels_(map.size(1)) {
    STD_TORCH_CHECK(map.numel() == 0 || is_nhwc(map), op, ": a map to be written over must be channels last");
  }

  int64_t channels() const { return channels_; }
  int64_t scratch(int64_t pixels) const { return pixels * padded_channels(channels_); }

  // Where to put the channels of pixels as floats: the map itself or `scratch`; `write` then finishes them.
  float* target(int64_t n, int64_t h, int64_t w, float* scratch, int64_t& stride) const {
    if (storage_ == Storage::kFloat) {
      stride = map_.nhwc().stride(3);
      return mutable_pixels<float>(map_.nhwc()).at(n, h, w);
    }
    stride = padded_channels(channels_);
    return scratch;
  }
  void write(int64_t n, int64_t h, int64_t w, int64_t pixels, const float* x, int64_t stride) const {
    const RowKernels& k = kernels().rows;
    const int64_t y_stride = map_.nhwc().stride(3);
    if (storage_ == Storage::kFloat) {
      float* y = mutable_pixels<float>(map_.nhwc()).at(n, h, w);
      if (y != x) k.f32.store(x, stride, pixels, channels_, y, y_stride);
    }
    if (storage_ == Storage::kHalf)
      k.f16.store(x, stride, pixels, channels_, mutable_pixels<Half>(map_.nhwc()).at(n, h, w), y_stride);
    if (storage_ == Storage::kBFloat16)
      k.bf16.store(x, stride, pixels, channels_, mutable_pixels<BFloat16>(map_.nhwc()).at(n, h, w), y_stride);
  }
  // The map as written so far, in NHWC.
  const Tensor& nhwc() const { return map_.nhwc(); }
  Tensor finish() { return map_.finish(); }

 private:
  OutputMap map_;
  Storage storage_;
  int64_t channels_;
};

// ---- division of the work

// Sections of a thread's scratch memory, each aligned to a cache line.
class Sections {
 public:
  explicit Sections(float* memory) : next_(memory) {}
  static int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }
  float* take(int64_t count) {
    float* section = next_;
    next_ += padded(count);
    return section;
  }

 private:
  float* next_;
};

// Bands of about 512 pixels: small enough to even out the threads, large enough to hand out cheaply.
inline int64_t rows_per_band(int64_t width) { return std::max<int64_t>(1, 512 / std::max<int64_t>(1, width)); }

// Calls body(first, last) on torch's threads for bands of `rows` rows.
template <class Body>
void parallel_rows(int64_t rows, int64_t width, Body&& body) {
  const int64_t step = rows_per_band(width);
  parallel_bands((rows + step - 1) / step, [&](int64_t b) { body(b * step, std::min(rows, (b + 1) * step)); });
}

// Calls body(w, pixels) for strips of a row.
template <class Body>
void over_strips(int64_t width, int64_t strip, Body&& body) {
  for (int64_t w = 0; w < width; w += strip) body(w, std::min(strip, width - w));
}

// ---- parameters

inline std::vector<float> to_floats(const Tensor& p) {
  const Tensor q = dense(p);
  const float* data = static_cast<const float*>(q.const_data_ptr());
  return std::vector<float>(data, data + q.numel());
}

// A matrix [rows][columns] with element (r, c) = value(r, c), columns padded with zeros to a multiple of kChannelBlock.
template <class Value>
Buffer<float> pack_matrix(int64_t rows, int64_t columns, Value&& value) {
  const int64_t padded = padded_channels(columns);
  Buffer<float> out = make_buffer<float>(rows * padded);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < padded; ++c) out[r * padded + c] = c < columns ? value(r, c) : 0.f;
  return out;
}

// Sums of parameter gradients: one array of `size` floats per range of items, added up in order afterwards. Ranges
// depend on nothing but sizes, so the result does not depend on the threads.
class RangeSums {
 public:
  RangeSums(int64_t items, int64_t size)
      : items_(items), size_(size), ranges_(std::min<int64_t>(items, size > 16384 ? 16 : 32)) {
    sums_ = make_buffer<float>(ranges_ * size_);
  }
  // Calls body(first, last, sums) for every range of items.
  template <class Body>
  void run(Body&& body) {
    parallel_bands(ranges_, [&](int64_t r) {
      float* sums = sums_.get() + r * size_;
      std::fill(sums, sums + size_, 0.f);
      body(items_ * r / ranges_, items_ * (r + 1) / ranges_, sums);
    });
  }
  std::vector<double> total() const {
    std::vector<double> out(size_, 0.0);
    constexpr int64_t kPart = 4096;
    parallel_bands((size_ + kPart - 1) / kPart, [&](int64_t part) {
      for (int64_t r = 0; r < ranges_; ++r)
        for (int64_t i = part * kPart; i < std::min(size_, (part + 1) * kPart); ++i)
          out[i] += static_cast<double>(sums_[r * size_ + i]);
    });
    return out;
  }

 private:
  int64_t items_, size_, ranges_;
  Buffer<float> sums_;
};

}  // namespace fastsr::cpu
