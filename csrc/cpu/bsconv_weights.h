// The weights of bsconv and of a distillation stage as the kernels read them.
#pragma once

#include <optional>

#include "isa/table.h"
#include "packed.h"
#include "weights.h"

namespace fastsr::cpu {

// Where the weights lie in the order in which the kernels read them, d_* being the 1x1 of a stage's distilled half:
// pw [C][K], taps [group of channels][9][lane], bias [K], d_weight [C][D], d_bias [D], with K and D padded to whole
// vectors.
struct BsconvLayout {
  int64_t c, k, d, lanes;

  int64_t padded(int64_t n) const { return (n + lanes - 1) / lanes * lanes; }
  int64_t taps() const { return c * padded(k); }
  int64_t bias() const { return taps() + 9 * padded(k); }
  int64_t d_weight() const { return bias() + padded(k); }
  int64_t d_bias() const { return d_weight() + c * padded(d); }
  int64_t size() const { return d_bias() + padded(d); }
  int64_t tap(int64_t channel, int64_t t) const { return (channel / lanes * 9 + t) * lanes + channel % lanes; }
};

// fastsr::bsconv_pack.
Tensor bsconv_pack(const Tensor& pw, const Tensor& dw, const Tensor& db, const std::optional<Tensor>& d_weight,
                   const std::optional<Tensor>& d_bias);

// The layout of packed weights, which are checked.
inline BsconvLayout layout_of(const char* op, const PackedWeights& packed) {
  const BsconvLayout l{packed.fact(0), packed.fact(1), packed.fact(2), kernels().bsconv.lanes};
  packed.check_size(op, l.size());
  return l;
}

}  // namespace fastsr::cpu
