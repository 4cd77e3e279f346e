// fastsr::blueprint_block on the CPU: BSRN's block, for inference: one pass up to what the ESA begins with
// (isa/blueprint_block.inl), the ESA's small maps, and the attentions' two passes (esa_cca.h).
#include <optional>
#include <vector>

#include "bsconv_weights.h"
#include "esa_cca.h"
#include "parallel.h"
#include "pointwise_weights.h"
#include "strips.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "blueprint_block";
constexpr int kStages = BlueprintBlock::kStages;
constexpr int64_t kStripWidth = 128;
constexpr size_t kStageWeights = 5, kLastWeights = 3, kFuseWeights = 2;

struct BlockScratch;

// The convolutions' weights from packed ones: of the three stages, of the last convolution, of the product behind them.
BlueprintBlock packed_parts(const Tensor& x, const std::vector<Tensor>& packed) {
  BlueprintBlock a{x.size(1), x.size(2), x.size(3)};
  for (int i = 0; i <= kStages; ++i) {
    const PackedWeights weights(kOp, PackedFor::kBsconv, packed[i]);
    const BsconvLayout l = layout_of(kOp, weights);
    if (i == 0) a.d = l.d;
    if (i == kStages) a.last = l.k;
    STD_TORCH_CHECK(l.c == a.c && (i == kStages ? l.d == 0 : l.k == a.c && l.d == a.d && l.d > 0), kOp, ": part ", i,
                    " is packed from ", l.c, " to ", l.k, " channels with ", l.d, " distilled, for x with ", a.c,
                    " channels; pass stages that keep them and distil equally, and a last convolution without");
    const float* data = weights.data();
    a.parts[i] = {data, data + l.taps(), data + l.bias(), data + l.d_weight(), data + l.d_bias()};
  }
  const PackedWeights fuse(kOp, PackedFor::kPointwise, packed[kStages + 1]);
  const int64_t inputs = kStages * a.d + a.last;
  a.k = fuse.fact(1);
  const int64_t columns = padded_channels(a.k);
  STD_TORCH_CHECK(fuse.fact(0) == inputs && a.k == a.c, kOp, ": the 1x1 is packed from ", fuse.fact(0), " to ", a.k,
                  " channels; pass one from ", inputs, " to ", a.c);
  fuse.check_size(kOp, (inputs + 1) * columns);
  a.fuse = fuse.data();
  a.fuse_bias = a.fuse + inputs * columns;
  return a;
}

// packed: as above.
Tensor run(const Tensor& x, const std::vector<Tensor>& packed, const esa::Weights& w, const cca::Parameters& p) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, kOp, ": x has a dtype without kernel; pass float32");
  const cca::Shape shape = cca::check(x, x, p);
  BlueprintBlock a = packed_parts(x, packed);
  MapWriter y(kOp, x, {shape.n, a.k, a.h, a.w});
  const BlueprintBlockKernels& k = kernels().blueprint_block;
  const Strips strips = Strips::for_forward(x, kStripWidth, k.band_rows);
  if (strips.count() == 0) return y.finish();
  const Tensor from = side_by_side(x);
  esa::Path path = esa::start_path(w, shape.n, a.h, a.w);
  const esa::PaddedMap& reduced = path.reduced();
  a.x = rows_of<float>(from);
  a.y = mutable_rows_of<float>(y.nhwc());
  a.inner = reduced.f;
  a.reduce = w.conv1;
  a.reduce_bias = w.conv1_bias;
  a.reduced = {reduced.row(0, 0), (a.h + 2) * reduced.row_stride(), reduced.row_stride(), reduced.f};
  a.strip_width = strips.strip_width;
  const int64_t scratch = k.scratch(a);
  parallel_runs(strips.count(), [&](int64_t i, bool continues) {
    k.run(a, strips.at(i), continues && strips.continues(i), thread_scratch<float, BlockScratch>(scratch));
  });
  esa::go_on(path, w, false);
  attend(y, path, w, shape, p, MapReader(kOp, from));
  return y.finish();
}

// packed: as above, and of the ESA.
Tensor blueprint_block_packed(const Tensor& x, const std::vector<Tensor>& packed, int64_t inner, int64_t conv2_padding,
                              const Tensor& du0_weight, const Tensor& du0_bias, const Tensor& du2_weight,
                              const Tensor& du2_bias, const std::optional<Tensor>& norm_weight,
                              const std::optional<Tensor>& norm_bias, double eps) {
  STD_TORCH_CHECK(packed.size() == kStages + 3, kOp, ": ", packed.size(), " packed weights; pass those of ", kStages,
                  " stages, of the last convolution, of the 1x1 behind them and of the ESA");
  return run(x, packed, esa::unpack(kOp, x, packed.back(), inner, true, conv2_padding),
             {du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps});
}

// weights: of every stage d_weight, d_bias, pw_weight, dw_weight, dw_bias; of the last convolution the same without
// d_*; of the 1x1 weight and bias.
Tensor blueprint_block(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& esa_weights,
                       int64_t conv2_padding, const Tensor& du0_weight, const Tensor& du0_bias,
                       const Tensor& du2_weight, const Tensor& du2_bias, const std::optional<Tensor>& norm_weight,
                       const std::optional<Tensor>& norm_bias, double eps) {
  STD_TORCH_CHECK(weights.size() == kStages * kStageWeights + kLastWeights + kFuseWeights, kOp, ": ", weights.size(),
                  " weights; pass ", kStages * kStageWeights + kLastWeights + kFuseWeights);
  std::vector<Tensor> packed;
  auto next = weights.begin();
  for (int i = 0; i < kStages; ++i, next += kStageWeights)
    packed.push_back(bsconv_pack(next[2], next[3], next[4], next[0], next[1]));
  packed.push_back(bsconv_pack(next[0], next[1], next[2], std::nullopt, std::nullopt));
  next += kLastWeights;
  packed.push_back(pointwise_pack(next[0], next[1]));
  return run(x, packed, esa::forward_weights(x, esa_weights, conv2_padding),
             {du0_weight, du0_bias, du2_weight, du2_bias, norm_weight, norm_bias, eps});
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("blueprint_block", TORCH_BOX(&fastsr::cpu::blueprint_block));
  m.impl("blueprint_block_packed", TORCH_BOX(&fastsr::cpu::blueprint_block_packed));
}
