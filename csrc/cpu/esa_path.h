// The side path of esa: small float maps, its 3x3 convolutions, and the form that the weights tell.
#pragma once

#include <functional>

#include "bilinear.h"
#include "rows.h"

namespace fastsr::cpu::esa {

inline constexpr const char* kOp = "esa";
inline constexpr int64_t kPool = 7, kPoolStep = 3, kGelu = 1;

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

// A 3x3 convolution f -> f, packed for the forward and, if asked, for the backward.
struct Conv3x3 {
  bool separable;
  int64_t stride, padding, activation;
  int64_t first;                      // of its weights in the operator's list
  const float* weight = nullptr;      // dense: [3][3 f][f]; separable: the pointwise [f][f]
  const float* taps = nullptr;        // separable: [9][f]
  const float* bias = nullptr;        // [f]
  const float* transposed = nullptr;  // dense: [3][f][3 f]; separable: the pointwise [f][f]

  int64_t out_size(int64_t size) const { return (size + 2 * padding - 3) / stride + 1; }
};

struct Weights {
  int64_t c, inner, f;  // channels, inner channels and those padded
  bool separable;
  // Whether conv1 has taken in the pointwise of the strided convolution and conv_f, which is exact for the blueprint
  // form: conv1 then gives [pointwise(conv1 x), conv_f(conv1 x)], 2 f channels, and those two are gone.
  bool folded = false;
  const float *conv1, *conv1_bias;              // [c][f or 2 f]
  const float *conv_f = nullptr, *conv_f_bias;  // [f][f]
  const float *conv4, *conv4_bias;              // [f][padded c]
  const float *conv1_transposed, *conv_f_transposed, *conv4_transposed;
  std::vector<Conv3x3> convs;         // the strided one, then those behind the pool
  int64_t conv_f_index, conv4_index;  // in the operator's list
  std::vector<Buffer<float>> owned;   // what the pointers point into, unless that is a packed tensor

  int64_t reduced_channels() const { return folded ? 2 * f : f; }
  const float* own(Buffer<float> part) { return owned.emplace_back(std::move(part)).get(); }
};

// Calls visit(pointer, floats) for all that the forward reads, in a fixed order.
template <class Visit>
void over_parts(Weights& w, Visit&& visit) {
  visit(w.conv1, w.c * w.reduced_channels());
  visit(w.conv1_bias, w.reduced_channels());
  if (!w.folded) {
    visit(w.conv_f, w.f * w.f);
    visit(w.conv_f_bias, w.f);
  }
  visit(w.conv4, w.f * padded_channels(w.c));
  visit(w.conv4_bias, padded_channels(w.c));
  for (size_t i = 0; i < w.convs.size(); ++i) {
    Conv3x3& conv = w.convs[i];
    if (!conv.separable || i > 0 || !w.folded) visit(conv.weight, (conv.separable ? 1 : 9) * w.f * w.f);
    if (conv.separable) visit(conv.taps, 9 * w.f);
    visit(conv.bias, w.f);
  }
}

// Checks and packs the weights for `c` channels; `backward` packs the transposed ones, too.
Weights pack(int64_t c, const std::vector<Tensor>& weights, int64_t conv2_padding, bool backward);

// Folds weights of the blueprint form (Weights::folded), in double; others it leaves as they are.
void fold(Weights& w);

// The weights' sizes and convolutions, without what they point to.
Weights outline(int64_t c, int64_t inner, bool separable, int64_t conv2_padding);

// The image must be large enough for the pool.
void check_size(const Tensor& x, int64_t conv2_padding);

// What the side path computes, kept for the backward.
struct Path {
  // Of convolution i: its input (the reduced map, the pooled map, then activated maps), the pointwise product of a
  // separable one, and the result before the activation.
  std::vector<PaddedMap> in, u, out;
  std::vector<uint8_t> index;  // of the pool's maxima [N, h, w, f], if asked for

  const PaddedMap& reduced() const { return in.front(); }
  const PaddedMap& low() const { return out.back(); }  // what is enlarged
};

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

}  // namespace fastsr::cpu::esa
