// From a ConvMixCall to what its kernels share.
#pragma once

#include "conv_mix.h"
#include "conv_mix_tile.cuh"
#include "pixels_launch.cuh"

namespace fastsr::cuda {

// Tiles, x, shortcut and parameters, which all of them have.
template <class T, class Arguments>
void fill_conv_mix(Arguments& a, const ConvMixCall& call, int rows) {
  a.tiles = tiles_of(call.x, rows);
  a.x = pixel_map<T>(call.x), a.shortcut = pixel_map<T>(call.shortcut);
  Parameter* const parameters[6] = {&a.dw, &a.dw_bias, &a.pw, &a.pw_bias, &a.c5, &a.c5_bias};
  for (int i = 0; i < 6; ++i) *parameters[i] = Parameter{call.parameters[i], static_cast<int>(call.parameter_dtype)};
  a.c = static_cast<int>(call.x.size[1]), a.k = static_cast<int>(call.y.size[1]);
  a.activation = static_cast<int>(call.activation), a.accuracy = static_cast<int>(call.accuracy);
}

}  // namespace fastsr::cuda
