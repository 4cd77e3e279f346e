// From a BsconvCall to what its kernels share.
#pragma once

#include "bsconv.h"
#include "bsconv_tile.cuh"
#include "pixels_launch.cuh"

namespace fastsr::cuda {

// Tiles, x and the parameters.
template <class T, class Arguments>
void fill_bsconv(Arguments& a, const BsconvCall& call) {
  const int dtype = static_cast<int>(call.parameter_dtype);
  a.tiles = tiles_of(call.x, ForwardMix<T>::kRows);
  a.x = pixel_map<T>(call.x);
  a.pw = Parameter{call.pw, dtype}, a.dw = Parameter{call.dw, dtype};
  a.c = static_cast<int>(call.x.size[1]), a.k = static_cast<int>(call.y.size[1]);
}

}  // namespace fastsr::cuda
