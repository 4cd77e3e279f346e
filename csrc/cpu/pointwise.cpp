// fastsr::pointwise and its backward on the CPU: act(conv1x1(concatenation of several maps) + shortcut) without
// concatenating.
//
//   pre = W x + b + shortcut with x the maps' channels one after another,  y = act(pre)
//   g = grad * act'(pre) = d_shortcut,  dx_i = W_i^T g,  dW = sum over pixels of g x^T,  db = sum over pixels of g
//
// Every map is a segment of the matrix product's inner loop (isa/rows.h). The backward goes strip by strip of a row, so
// that g and the maps' pixels are in the first-level cache for its products. pointwise_kept is what autograd records
// where an activation follows: it also returns pre, which spares the backward the first of three products.
#include <optional>

#include "pointwise_weights.h"
#include "rows.h"

namespace fastsr::cpu {
namespace {

constexpr const char* kOp = "pointwise";
constexpr int64_t kStrip = 48;  // pixels whose maps and gradients fit the first-level cache together

struct Shape {
  int64_t n, h, w, in_channels, out_channels;
  int64_t rows() const { return n * h; }
};

// `t` must fit the output.
void check_like_output(const Tensor& t, const Tensor& x, const Shape& s, const char* name) {
  check_feature_map(kOp, t, name);
  check_same_dtype(kOp, x, t, name);
  STD_TORCH_CHECK(t.size(0) == s.n && t.size(1) == s.out_channels && t.size(2) == s.h && t.size(3) == s.w, kOp, ": ",
                  name, " is [", t.size(0), ", ", t.size(1), ", ", t.size(2), ", ", t.size(3), "]; pass [", s.n, ", ",
                  s.out_channels, ", ", s.h, ", ", s.w, "]");
}

// The maps and the activation, for `out_channels` of the output.
Shape check_maps(const std::vector<Tensor>& inputs, int64_t out_channels, const std::optional<Tensor>& shortcut,
                 int64_t activation) {
  STD_TORCH_CHECK(!inputs.empty(), kOp, ": no input; pass at least one map");
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, kOp, ": activation is ", activation, "; pass 0, 1 or 2");
  check_feature_map(kOp, inputs[0], "an input");
  Shape s{inputs[0].size(0), inputs[0].size(2), inputs[0].size(3), 0, out_channels};
  for (const Tensor& x : inputs) {
    check_feature_map(kOp, x, "an input");
    check_same_dtype(kOp, inputs[0], x, "an input");
    STD_TORCH_CHECK(x.size(0) == s.n && x.size(2) == s.h && x.size(3) == s.w, kOp,
                    ": inputs differ in batch, height or width; pass equal ones");
    s.in_channels += x.size(1);
  }
  if (shortcut) check_like_output(*shortcut, inputs[0], s, "shortcut");
  return s;
}

Shape check(const std::vector<Tensor>& inputs, const Tensor& weight, const Tensor& bias,
            const std::optional<Tensor>& shortcut, int64_t activation) {
  STD_TORCH_CHECK(weight.dim() == 4, kOp, ": weight has ", weight.dim(), " dimensions; pass 4");
  const Shape s = check_maps(inputs, weight.size(0), shortcut, activation);
  check_weight(kOp, weight, {s.out_channels, s.in_channels, 1, 1}, "weight");
  check_vector(kOp, bias, s.out_channels, "bias");
  return s;
}

std::vector<MapReader> readers(const std::vector<Tensor>& inputs) {
  std::vector<MapReader> out;
  for (const Tensor& x : inputs) out.emplace_back(kOp, x);
  return out;
}

int64_t scratch_of(const std::vector<MapReader>& maps) {
  int64_t size = 0;
  for (const MapReader& map : maps) size += Sections::padded(map.scratch(kStrip));
  return size;
}

// The strip's pixels of every map.
void read(const std::vector<MapReader>& maps, int64_t n, int64_t h, int64_t w, int64_t pixels, Sections& memory,
          std::vector<RowSegment>& segments) {
  for (size_t i = 0; i < maps.size(); ++i) {
    const FloatRow row = maps[i].row(n, h, w, pixels, memory.take(maps[i].scratch(kStrip)));
    segments[i] = {row.data, row.stride, maps[i].channels()};
  }
}

Buffer<float> pack(const Tensor& weight, const Shape& s) {
  const std::vector<float> w = to_floats(weight);
  return pack_matrix(s.in_channels, s.out_channels, [&](int64_t c, int64_t k) { return w[k * s.in_channels + c]; });
}

struct ForwardScratch;
struct BackwardScratch;

// w: [in_channels][padded out_channels]; b: [padded out_channels] or null. `pre`, if not null, receives pre.
Tensor forward(const std::vector<Tensor>& inputs, const Shape& s, const float* w, const float* b,
               const std::optional<Tensor>& shortcut, int64_t activation, const MapWriter* pre = nullptr) {
  MapWriter y(kOp, inputs[0], {s.n, s.out_channels, s.h, s.w});
  const std::vector<MapReader> maps = readers(inputs);
  std::optional<MapReader> added;
  if (shortcut) added.emplace(kOp, *shortcut);
  const RowKernels& k = kernels().rows;
  const int64_t columns = padded_channels(s.out_channels);
  parallel_rows(s.rows(), s.w, [&](int64_t first, int64_t last) {
    float* memory = thread_scratch<float, ForwardScratch>(scratch_of(maps) + 3 * kStrip * columns);
    std::vector<RowSegment> segments(maps.size());
    for (int64_t row = first; row < last; ++row)
      over_strips(s.w, kStrip, [&](int64_t x, int64_t pixels) {
        const int64_t n = row / s.h, h = row % s.h;
        Sections sections(memory);
        read(maps, n, h, x, pixels, sections, segments);
        int64_t stride;
        float* out = y.target(n, h, x, sections.take(kStrip * columns), stride);
        const FloatRow addend =
            added ? added->row(n, h, x, pixels, sections.take(kStrip * columns)) : FloatRow{nullptr, 0};
        float* product = pre ? pre->target(n, h, x, sections.take(kStrip * columns), stride) : out;
        k.gemm({segments.data(), static_cast<int64_t>(maps.size()), pixels, w, columns, b, pre ? 0 : activation,
                product, stride, s.out_channels, addend.data, addend.stride});
        if (pre) {
          k.activation(activation, product, out, pixels * stride);
          pre->write(n, h, x, pixels, product, stride);
        }
        y.write(n, h, x, pixels, out, stride);
      });
  });
  return y.finish();
}

Tensor pointwise(const std::vector<Tensor>& inputs, const Tensor& weight, const Tensor& bias,
                 const std::optional<Tensor>& shortcut, int64_t activation) {
  const Shape s = check(inputs, weight, bias, shortcut, activation);
  const Buffer<float> w = pack(weight, s), b = padded_vector(bias);
  return forward(inputs, s, w.get(), b.get(), shortcut, activation);
}

// The result and pre, which is channels last.
std::tuple<Tensor, Tensor> pointwise_kept(const std::vector<Tensor>& inputs, const Tensor& weight, const Tensor& bias,
                                          const std::optional<Tensor>& shortcut, int64_t activation) {
  const Shape s = check(inputs, weight, bias, shortcut, activation);
  const Tensor pre = empty_feature_map(inputs[0], {s.n, s.out_channels, s.h, s.w}, MemoryFormat::ChannelsLast);
  const MapWriter kept(kOp, pre);
  const Buffer<float> w = pack(weight, s), b = padded_vector(bias);
  return {forward(inputs, s, w.get(), b.get(), shortcut, activation, &kept), pre};
}

// ---- weights packed once: [in_channels + 1][padded out_channels], the bias last

}  // namespace

Tensor pointwise_pack(const Tensor& weight, const Tensor& bias) {
  constexpr const char* kPack = "pointwise_pack";
  STD_TORCH_CHECK(weight.dim() == 4 && weight.numel() > 0, kPack, ": weight has ", weight.dim(), " dimensions and ",
                  weight.numel(), " elements; pass [K, C, 1, 1]");
  const Shape s{0, 0, 0, weight.size(1), weight.size(0)};
  check_weight(kPack, weight, {s.out_channels, s.in_channels, 1, 1}, "weight");
  check_vector(kPack, bias, s.out_channels, "bias");
  const int64_t columns = padded_channels(s.out_channels), count = s.in_channels * columns;
  PackedWeights packed(weight, PackedFor::kPointwise, {s.in_channels, s.out_channels}, count + columns);
  const Buffer<float> w = pack(weight, s), b = padded_vector(bias);
  std::copy_n(b.get(), columns, std::copy_n(w.get(), count, packed.mutable_data()));
  return packed.tensor();
}

namespace {

// The part of the product that the input channels from `first` on have in it; the bias belongs to the first.
Tensor pointwise_packed(const std::vector<Tensor>& inputs, const Tensor& packed, int64_t channels, int64_t first,
                        const std::optional<Tensor>& shortcut, int64_t activation) {
  constexpr const char* kName = "pointwise_packed";
  const PackedWeights weights(kName, PackedFor::kPointwise, packed);
  const int64_t in_channels = weights.fact(0), columns = padded_channels(channels);
  STD_TORCH_CHECK(weights.fact(1) == channels, kName, ": packed are weights for ", weights.fact(1),
                  " channels out; pass that as channels, which is ", channels);
  weights.check_size(kName, (in_channels + 1) * columns);
  const Shape s = check_maps(inputs, channels, shortcut, activation);
  STD_TORCH_CHECK(first >= 0 && first + s.in_channels <= in_channels, kName, ": packed are weights for ", in_channels,
                  " channels in, and the inputs are channels ", first, " to ", first + s.in_channels);
  const float* bias = weights.data() + in_channels * columns;
  return forward(inputs, s, weights.data() + first * columns, first == 0 ? bias : nullptr, shortcut, activation);
}

using Gradients = std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor>;

// Gradients of the inputs, weight, bias and shortcut. Without activation the last is the gradient itself, and without a
// shortcut there is none: then it is returned empty. `kept` is pre, computed again where it is not given.
Gradients gradients(const Tensor& grad, const std::vector<Tensor>& inputs, const Tensor& weight, const Tensor& bias,
                    const std::optional<Tensor>& shortcut, bool has_shortcut, int64_t activation,
                    const std::optional<Tensor>& kept) {
  const Shape s = check(inputs, weight, bias, shortcut, activation);
  check_like_output(grad, inputs[0], s, "grad");
  const std::vector<MapReader> maps = readers(inputs);
  const MapReader g_map(kOp, grad);
  const Buffer<float> w = pack(weight, s), b = padded_vector(bias);
  const RowKernels& k = kernels().rows;
  const int64_t columns = padded_channels(s.out_channels), count = static_cast<int64_t>(maps.size());

  std::vector<MapWriter> dx;
  std::vector<Buffer<float>> transposed;  // of the weight, per input [out_channels][channels]
  const std::vector<float> natural = to_floats(weight);
  int64_t first_channel = 0, widest = 0;
  for (const Tensor& x : inputs) {
    dx.emplace_back(kOp, x, std::array<int64_t, 4>{s.n, x.size(1), s.h, s.w});
    transposed.push_back(pack_matrix(s.out_channels, x.size(1), [&](int64_t o, int64_t c) {
      return natural[o * s.in_channels + first_channel + c];
    }));
    first_channel += x.size(1);
    widest = std::max(widest, dx.back().scratch(kStrip));
  }
  std::optional<MapReader> added, pre_map;
  std::optional<MapWriter> d_shortcut;
  if (kept) pre_map.emplace(kOp, *kept);
  if (shortcut && activation != 0) added.emplace(kOp, *shortcut);
  if (has_shortcut && activation != 0)
    d_shortcut.emplace(kOp, inputs[0], std::array<int64_t, 4>{s.n, s.out_channels, s.h, s.w});

  RangeSums sums(s.rows(), (s.in_channels + 1) * columns);
  sums.run([&](int64_t first, int64_t last, float* total) {
    float* memory = thread_scratch<float, BackwardScratch>(scratch_of(maps) + 3 * kStrip * columns + widest);
    std::vector<RowSegment> segments(maps.size());
    for (int64_t row = first; row < last; ++row)
      over_strips(s.w, kStrip, [&](int64_t x, int64_t pixels) {
        const int64_t n = row / s.h, h = row % s.h;
        Sections sections(memory);
        read(maps, n, h, x, pixels, sections, segments);
        FloatRow g = g_map.padded_row(n, h, x, pixels, sections.take(kStrip * columns));
        if (activation != 0) {
          float* pre = sections.take(kStrip * columns);
          if (pre_map) {
            pre_map->copy(n, h, x, pixels, pre, columns);
          } else {
            const FloatRow addend =
                added ? added->padded_row(n, h, x, pixels, sections.take(kStrip * columns)) : FloatRow{nullptr, 0};
            k.gemm({segments.data(), count, pixels, w.get(), columns, b.get(), 0, pre, columns, columns, addend.data,
                    addend.stride});
          }
          k.activation_grad(activation, g.data, g.stride, pre, pre, pixels, columns);
          g = {pre, columns};
          if (d_shortcut) d_shortcut->write(n, h, x, pixels, pre, columns);
        }
        k.outer({segments.data(), count, pixels, g.data, g.stride, columns, total});
        k.sum(g.data, g.stride, pixels, columns, total + s.in_channels * columns);
        float* spare = sections.take(widest);
        const RowSegment from{g.data, g.stride, s.out_channels};
        for (size_t i = 0; i < dx.size(); ++i) {
          int64_t stride;
          float* out = dx[i].target(n, h, x, spare, stride);
          k.gemm({&from, 1, pixels, transposed[i].get(), padded_channels(dx[i].channels()), nullptr, 0, out, stride,
                  dx[i].channels()});
          dx[i].write(n, h, x, pixels, out, stride);
        }
      });
  });
  const std::vector<double> total = sums.total();
  std::vector<Tensor> d_inputs;
  for (MapWriter& d : dx) d_inputs.push_back(d.finish());
  return {d_inputs,
          gradient_of(weight, [&](int64_t i) { return total[i % s.in_channels * columns + i / s.in_channels]; }),
          gradient_of(bias, [&](int64_t i) { return total[s.in_channels * columns + i]; }),
          d_shortcut ? d_shortcut->finish() : torch::stable::new_empty(grad, {0})};
}

Gradients pointwise_backward(const Tensor& grad, const std::vector<Tensor>& inputs, const Tensor& weight,
                             const Tensor& bias, const std::optional<Tensor>& shortcut, int64_t activation) {
  return gradients(grad, inputs, weight, bias, shortcut, shortcut.has_value(), activation, std::nullopt);
}

Gradients pointwise_kept_backward(const Tensor& grad, const Tensor& pre, const std::vector<Tensor>& inputs,
                                  const Tensor& weight, const Tensor& bias, bool has_shortcut, int64_t activation) {
  check_same_shape(kOp, grad, pre, "pre");
  check_same_dtype(kOp, grad, pre, "pre");
  return gradients(grad, inputs, weight, bias, std::nullopt, has_shortcut, activation, pre);
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CPU, m) {
  m.impl("pointwise", TORCH_BOX(&fastsr::cpu::pointwise));
  m.impl("pointwise_pack", TORCH_BOX(&fastsr::cpu::pointwise_pack));
  m.impl("pointwise_packed", TORCH_BOX(&fastsr::cpu::pointwise_packed));
  m.impl("pointwise_kept", TORCH_BOX(&fastsr::cpu::pointwise_kept));
  m.impl("pointwise_kept_backward", TORCH_BOX(&fastsr::cpu::pointwise_kept_backward));
  m.impl("pointwise_backward", TORCH_BOX(&fastsr::cpu::pointwise_backward));
}
