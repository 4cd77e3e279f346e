// Kernel of blueprint_block, filled in per instruction set by blueprint_block.inl.
#pragma once

#include <cstdint>

#include "strip.h"

namespace fastsr::cpu {

// Weights in float, channels padded with zeros to whole vectors as for bsconv, those of `fuse` to kChannelBlock.
struct BlueprintBlock {
  static constexpr int kStages = 3;
  struct Part {
    const float *pw, *taps, *bias;   // of the blueprint convolution
    const float *d_weight, *d_bias;  // of the distilled 1x1; the last part has none
  };
  int64_t c, h, w;
  int64_t d, last, k;  // channels: of a distilled map, of the fourth convolution, of y
  int64_t inner;       // channels of what the ESA begins with, a multiple of kChannelBlock
  int64_t strip_width;
  Part parts[kStages + 1];
  const float *fuse, *fuse_bias;      // [stages * d + last][padded k], [padded k]
  const float *reduce, *reduce_bias;  // [k][inner], [inner]
  FeatureRows<const float> x;
  FeatureRows<float> y, reduced;
};

struct BlueprintBlockKernels {
  int64_t band_rows;  // at most so many rows has a tile
  int64_t (*scratch)(const BlueprintBlock&);
  // One tile. `continues`: the scratch is as the tile above left it, which must have been in the same strip.
  void (*run)(const BlueprintBlock&, const StripTile&, bool continues, float* scratch);
};

}  // namespace fastsr::cpu
