// The side path of esa on small float maps, and the gate that it ends in.
#pragma once

#include <functional>

#include "bilinear.h"
#include "esa_weights.h"

namespace fastsr::cpu::esa {

// Pixels that are gated together: a block of tiles of the products with AVX-512, and small enough to stay in the
// first-level cache. 32 take 4 % longer.
inline constexpr int64_t kStrip = 48;

// [N, H, W, f] floats with a border of one zero pixel; f is a multiple of kChannelBlock.
class PaddedMap {
 public:
  PaddedMap(int64_t n, int64_t h, int64_t w, int64_t f) : n(n), h(h), w(w), f(f) {
    memory_ = make_buffer<float>(n * (h + 2) * row_stride());
    for (int64_t i = 0; i < n; ++i) {
      std::fill_n(row(i, -1) - f, row_stride(), 0.f);
      std::fill_n(row(i, h) - f, row_stride(), 0.f);
      for (int64_t r = 0; r < h; ++r) {
        std::fill_n(row(i, r) - f, f, 0.f);
        std::fill_n(row(i, r) + w * f, f, 0.f);
      }
    }
  }
  int64_t row_stride() const { return (w + 2) * f; }
  // Pixel 0 of row r in [-1, h] of image i.
  float* row(int64_t i, int64_t r) const { return memory_.get() + (i * (h + 2) + r + 1) * row_stride() + f; }
  void clear() { std::fill_n(memory_.get(), n * (h + 2) * row_stride(), 0.f); }

  int64_t n, h, w, f;

 private:
  Buffer<float> memory_;
};

// What the side path computes, kept for the backward.
struct Path {
  // Of convolution i: its input (the reduced map, the pooled map, then activated maps), the pointwise product of a
  // separable one, and the result before the activation.
  std::vector<PaddedMap> in, u, out;
  std::vector<uint8_t> index;  // of the pool's maxima [N, h, w, f], if asked for

  const PaddedMap& reduced() const { return in.front(); }
  const PaddedMap& low() const { return out.back(); }  // what is enlarged
};

// A path whose reduced map, conv1 of the image, is to be written: all channels of all pixels.
Path start_path(const Weights& w, int64_t n, int64_t h, int64_t width);
// Everything behind the reduced map.
void go_on(Path& path, const Weights& w, bool with_index);
// Both, and the reduced map of x.
Path run_path(const MapReader& x, const Tensor& shape, const Weights& w, bool with_index);

// The image's rows and columns in terms of the low map's.
struct Enlargement {
  std::vector<BilinearTap> rows, columns;
};
Enlargement enlargement(const PaddedMap& low, int64_t h, int64_t w);

// Calls body(image, row) for every row of a map, on torch's threads.
void over_rows(const PaddedMap& map, const std::function<void(int64_t, int64_t)>& body);

// z = enlarged low map + conv_f(reduced) for pixels [w, w + pixels) of a row; `blended` is that row's low map, already
// blended vertically.
void gate_input(const Weights& weights, const Path& path, const Enlargement& to, const float* blended, int64_t n,
                int64_t h, int64_t w, int64_t pixels, float* z);
void blend_rows(const Path& path, const Enlargement& to, int64_t n, int64_t h, float* blended);

// The end of the forward, x * sigmoid(conv4(z)), row by row.
class Gate {
 public:
  Gate(const Weights& w, const Path& path, int64_t h, int64_t width)
      : w_(w), path_(path), to_(enlargement(path.low(), h, width)), width_(width) {}
  // Row h of image n of y, which may be written over x.
  void row(const MapReader& x, int64_t n, int64_t h, const MapWriter& y) const;

 private:
  const Weights& w_;
  const Path& path_;
  Enlargement to_;
  int64_t width_;
};

}  // namespace fastsr::cpu::esa
