// One function table per instruction set, filled from the same source (kernels.inl), chosen at run time.
#pragma once

// Every standard header a kernel needs is included here, before a target pragma is in force: an inline function of
// the standard library compiled for AVX-512 could otherwise be the copy that the linker keeps for everybody.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "alk_conv.h"
#include "blueprint_block.h"
#include "bsconv.h"
#include "cca_norm.h"
#include "conv3x3_gelu.h"
#include "conv_mix.h"
#include "esa.h"
#include "pixel_norm.h"
#include "pointwise.h"
#include "rows.h"
#include "tables.h"
#include "types.h"
#include "upsample.h"

namespace fastsr::cpu {

struct KernelTable {
  AlkConvKernels alk_conv;
  BlueprintBlockKernels blueprint_block;
  BsconvKernels bsconv;
  CcaNormKernels cca_norm;
  Conv3x3GeluKernels conv3x3_gelu;
  ConvMixKernels conv_mix;
  EsaKernels esa;
  PointwiseKernels pointwise;
  UpsampleKernels upsample;
  PixelNormKernels<float> pixel_norm_f32;
  PixelNormKernels<Half> pixel_norm_f16;
  PixelNormKernels<BFloat16> pixel_norm_bf16;
  PixelNormKernels<double> pixel_norm_f64;
  RowKernels rows;
  int64_t (*fma)(int64_t rounds);  // fma.inl
};

extern const KernelTable table_portable;
#if defined(__x86_64__)
extern const KernelTable table_avx2;
extern const KernelTable table_avx512;
#endif

// The table in use: the best the processor has, or what FASTSR_CPU_ISA allows.
const KernelTable& kernels();
// Which that is: 0 portable, 1 AVX2, 2 AVX-512 (fastsr/_env.py).
int64_t isa_level();

}  // namespace fastsr::cpu
