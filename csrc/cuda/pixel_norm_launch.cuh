// From a PixelNormCall to kernels.
#pragma once

#include "map_launch.cuh"
#include "partials.cuh"
#include "pixel_norm.cuh"
#include "pixel_norm.h"

namespace fastsr::cuda {

// `steps`: pixels that a thread takes, or 0 for a fixed number of CTAs.
template <class T>
PixelNorm<T> pixel_norm_of(const PixelNormCall& call, unsigned steps) {
  PixelNorm<T> a{};
  a.x = map_of<T>(call.x);
  a.weight = {call.weight, static_cast<int>(call.parameter_dtype)};
  a.bias = {call.bias, static_cast<int>(call.parameter_dtype)};
  a.eps = static_cast<float>(call.eps);
  a.pixels = static_cast<unsigned>(call.x.size[2] * call.x.size[3]);
  a.w = static_cast<int>(call.x.size[3]);
  const unsigned step = kWalkThreads / lanes_of(call.x.size[1]), most = parts_of_image(call.x.size[0]);
  a.part = steps ? steps * step : (a.pixels + most - 1) / most;
  if (a.part < step) a.part = step;
  a.parts = (a.pixels + a.part - 1) / a.part;
  return a;
}

}  // namespace fastsr::cuda
