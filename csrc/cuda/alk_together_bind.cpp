// fastsr::alk_pack_together: checks, outputs, launch.
#include <vector>

#include "alk_call.h"
#include "alk_condense_call.h"
#include "alk_together.h"

namespace fastsr::cuda {
namespace {

constexpr const char* kOp = "alk_pack_together";
constexpr int64_t kPlain = 9, kStage = 11, kCondensed = 13;  // tensors of a part, by what takes it

// `parameters` gets what must stay until the launch.
AlkPart part_of(const Tensor* t, int64_t count, std::vector<Parameters>& parameters) {
  const AlkWeightTensors w{t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8]};
  if (count == kCondensed) {
    const CondenseRest rest{t[9], t[10], t[11], t[12]};
    AlkPart part = alk_condense_pack_call(kOp, w, rest);
    use(part, parameters.emplace_back(alk_condense_parameters(kOp, t[0], w, rest)));
    return part;
  }
  const Tensor *d_weight = count == kStage ? t + 9 : nullptr, *d_bias = count == kStage ? t + 10 : nullptr;
  AlkPart part{alk_pack_call(kOp, w, d_weight, d_bias)};
  use(part.alk, parameters.emplace_back(alk_parameters(kOp, t[0], w, d_weight, d_bias)));
  return part;
}

std::vector<Tensor> pack(const std::vector<Tensor>& weights, const std::vector<int64_t>& counts) {
  const int64_t given = static_cast<int64_t>(weights.size());
  int64_t wanted = 0;
  for (const int64_t count : counts) {
    STD_TORCH_CHECK(count == kPlain || count == kStage || count == kCondensed, kOp, ": a part has ", count,
                    " tensors; pass ", kPlain, ", ", kStage, " or ", kCondensed);
    wanted += count;
  }
  STD_TORCH_CHECK(given > 0 && given == wanted, kOp, ": there are ", given, " weights; pass as many as counts say, ",
                  wanted, ", of at least one part");
  const Tensor& first = weights[0];
  const DeviceGuard guard(first.get_device_index());
  std::vector<Parameters> parameters;
  std::vector<AlkPart> parts;
  std::vector<Tensor> packed;
  const Tensor* of_part = weights.data();
  for (const int64_t count : counts) {
    STD_TORCH_CHECK(of_part->scalar_type() == first.scalar_type(), kOp,
                    ": parts differ in dtype; pass those for maps of one");
    check_on_device(kOp, first, *of_part, "a part");
    AlkPart& part = parts.emplace_back(part_of(of_part, count, parameters));
    Tensor& to = packed.emplace_back(workspace(first, alk_part_bytes(part)));
    part.workspace = to.mutable_data_ptr();
    of_part += count;
  }
  check_launch(kOp, alk_pack_together(parts.data(), static_cast<int64_t>(parts.size()), current_stream(first)));
  return packed;
}

}  // namespace
}  // namespace fastsr::cuda

STABLE_TORCH_LIBRARY_IMPL(fastsr, CUDA, m) { m.impl("alk_pack_together", TORCH_BOX(&fastsr::cuda::pack)); }
