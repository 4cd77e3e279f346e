// The launcher of alk_pack_together: plain data in, a kernel on a stream. No allocation, no synchronisation.
#pragma once

#include "alk_condense.h"

namespace fastsr::cuda {

constexpr int kMostTogether = 40;  // parts of a launch

// A convolution whose weights are packed beside others', by themselves, with a distilling 1x1 (`alk.d`) or, unless
// `outputs` is 0, with what alk_condense takes. Of x only size[1], its channels, matters; `workspace`: where to.
using AlkPart = AlkCondenseCall;

// What `alk_pack` or `alk_condense_pack` would write for this part.
int64_t alk_part_bytes(const AlkPart& part);
// All of one dtype, by one launch for every kMostTogether parts.
cudaError_t alk_pack_together(const AlkPart* parts, int64_t count, cudaStream_t stream);

}  // namespace fastsr::cuda
