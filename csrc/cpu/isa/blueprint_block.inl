// blueprint_block for one instruction set: BSRN's block up to its ESA.
//
//   r_0 = x,  d_i = gelu(D_i r_i),  r_(i+1) = gelu(bsconv_i(r_i) + r_i)  for i = 0, 1, 2
//   y = W [d_0, d_1, d_2, gelu(bsconv_3(r_3))] + b,  and what the ESA begins with: reduced = V y + c
//
// A tile takes a few rows through all of it: every convolution goes one row further down than the one behind it, and
// where a tile goes on from the one above, it finds what reaches into it in the rings of u and in the last rows of r_i.
// So x is read and both results are written once, and what lies between stays in the second- and third-level cache (1.7
// MB for strips of 128 with 64 channels). Columns beyond a strip are computed again in the next one.
#include "bsconv.inl"
#include "rows.inl"

namespace fastsr::cpu {
namespace {
namespace block {

constexpr int kStages = BlueprintBlock::kStages;
constexpr int64_t kRows = blueprint::kStep;

// Rows and columns beyond a tile that part i's result is needed on.
constexpr int64_t halo(int i) { return kStages - i; }

BsconvShape shape_of(const BlueprintBlock& a, int i) {
  const bool is_last = i == kStages;
  return {
      a.c,     a.h, a.w, is_last ? a.last : a.c, a.strip_width + 2 * halo(i), static_cast<int64_t>(Activation::kGelu),
      !is_last};
}

// Where the parts of a tile's scratch lie.
struct Scratch {
  float *rings[kStages + 1], *maps[kStages + 1], *distilled[kStages], *sums;
  int64_t size = 0;

  // Without memory it only tells the size.
  Scratch(const BlueprintBlock& a, float* memory) {
    const auto take = [&](int64_t count) {
      float* part = memory == nullptr ? nullptr : memory + size;
      size += round_up(count, kLanes);
      return part;
    };
    for (int i = 0; i <= kStages; ++i) {
      rings[i] = take(blueprint::forward_scratch(shape_of(a, i)));
      maps[i] = take((kRows + 2 * halo(i)) * row(a, i));
    }
    for (float*& part : distilled) part = take(distil::kChunk * a.d);
    sums = take(distil::scratch(a.d));
  }
  static int64_t row(const BlueprintBlock& a, int i) {
    const BsconvShape s = shape_of(a, i);
    return s.strip_width * s.k;
  }
  // Part i's result as a map of the image, of which only the tile with its halo exists.
  FeatureRows<float> map(const BlueprintBlock& a, int i, const StripTile& t) const {
    const int64_t channels = i == kStages ? a.last : a.c;
    return {maps[i] - (t.y0 - halo(i)) * row(a, i) - (t.x0 - halo(i)) * channels, 0, row(a, i), channels};
  }
  // Moves the rows that the tile above computed of this one to where this one has them.
  void move_up(const BlueprintBlock& a, int i, const StripTile& t) const {
    const int64_t rows = std::min(halo(i), a.h - t.y0);
    float* to = maps[i] + halo(i) * row(a, i);
    std::memmove(to, to + kRows * row(a, i), rows * row(a, i) * sizeof(float));
  }
};

int64_t scratch(const BlueprintBlock& a) { return Scratch(a, nullptr).size; }

FeatureRows<const float> reading(const FeatureRows<float>& map) {
  return {map.data, map.stride_n, map.stride_h, map.stride_w};
}

void fuse_row(const BlueprintBlock& a, const StripTile& t, int64_t y, const FeatureRows<const float>* inputs,
              const FeatureRows<float>& last, const Scratch& s) {
  const int64_t columns = round_up(a.k, kChannelBlock);
  for (int64_t x = t.x0; x < t.x1; x += distil::kChunk) {
    const int64_t count = std::min(distil::kChunk, t.x1 - x);
    RowSegment segments[kStages + 1];
    for (int i = 0; i < kStages; ++i) {
      distil::row(inputs[i].at(t.n, y, x), inputs[i].stride_w, count, a.c, a.d, a.parts[i].d_weight, a.parts[i].d_bias,
                  s.distilled[i], a.d, nullptr, s.sums);
      segments[i] = {s.distilled[i], a.d, a.d};
    }
    segments[kStages] = {last.at(t.n, y, x), last.stride_w, a.last};
    float* to = a.y.at(t.n, y, x);
    row_gemm({segments, kStages + 1, count, a.fuse, columns, a.fuse_bias, 0, to, a.y.stride_w, a.k});
    const RowSegment made{to, a.y.stride_w, a.k};
    row_gemm(
        {&made, 1, count, a.reduce, a.inner, a.reduce_bias, 0, a.reduced.at(t.n, y, x), a.reduced.stride_w, a.inner});
  }
}

void run(const BlueprintBlock& a, const StripTile& t, bool continues, float* memory) {
  const Scratch s(a, memory);
  FeatureRows<const float> inputs[kStages + 1] = {a.x};
  FeatureRows<float> result = {};
  for (int i = 0; i <= kStages; ++i) {
    const int64_t around = halo(i);
    const StripTile part{t.n, continues ? std::min(a.h, t.y0 + around) : std::max<int64_t>(0, t.y0 - around),
                         std::min(a.h, t.y1 + around), std::max<int64_t>(0, t.x0 - around),
                         std::min(a.w, t.x1 + around)};
    if (continues) s.move_up(a, i, t);
    result = s.map(a, i, t);
    const BlueprintBlock::Part& weights = a.parts[i];
    blueprint::forward_as<float, Activation::kGelu>(
        {shape_of(a, i), weights.pw, weights.taps, weights.bias, inputs[i], inputs[i], result}, part, continues,
        s.rings[i]);
    if (i < kStages) inputs[i + 1] = reading(result);
  }
  for (int64_t y = t.y0; y < t.y1; ++y) fuse_row(a, t, y, inputs, result, s);
}

}  // namespace block

constexpr BlueprintBlockKernels blueprint_block_kernels() { return {block::kRows, &block::scratch, &block::run}; }

}  // namespace
}  // namespace fastsr::cpu
