// pixel_norm, one pass over the map each way:
//
//   y = xhat weight + bias                                                      xhat, r by `normalise`
//   dx = r (h - mean h - xhat mean(h xhat)), h = grad weight;  dweight = sum_p grad xhat;  dbias = sum_p grad
#pragma once

#include "pixel_lanes.cuh"

namespace fastsr::cuda {

template <class T>
struct PixelNorm {
  Map<T> x, y, grad, dx;
  Parameter weight, bias;
  float* sums;  // [image][part][dweight, dbias][C]
  float eps;
  unsigned pixels, part, parts;  // of an image, of a part, parts of an image
  int w;
};

template <class T, int Lanes>
__global__ void __launch_bounds__(kWalkThreads, 4) pixel_norm_kernel(const PixelNorm<T> a) {
  constexpr int kSlots = kWalkThreads / Lanes;
  const unsigned image = blockIdx.x / a.parts, first = blockIdx.x % a.parts * a.part;
  const unsigned end = min(first + a.part, a.pixels);
  const int c = threadIdx.x % Lanes * 8, channels = a.x.channels;
  float weight[8], bias[8];
  load_channels(a.weight, c, channels, weight);
  load_channels(a.bias, c, channels, bias);
  // All threads take the same number of steps: lanes of a warp exchange sums.
  PixelWalk at(first + threadIdx.x / Lanes, kSlots, a.w);
  for (unsigned begin = first; begin < end; begin += kSlots, at.next()) {
    const bool inside = at.pixel < end && c < channels;
    Eight<T> e = Eight<T>::zeros();
    if (inside) e = a.x.load(a.x.at(image, at.y, at.x), c);
    float v[8];
    to_floats(e, v);
    normalise<Lanes>(v, c, channels, a.eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = fmaf(v[i], weight[i], bias[i]);
    if (inside) a.y.store(a.y.at(image, at.y, at.x), c, to_eight<T>(v));
  }
}

template <class T, int Lanes>
__global__ void __launch_bounds__(kWalkThreads, 2) pixel_norm_backward_kernel(const PixelNorm<T> a) {
  constexpr int kSlots = kWalkThreads / Lanes;
  FASTSR_SHARED_MEMORY(memory);
  const unsigned image = blockIdx.x / a.parts, first = blockIdx.x % a.parts * a.part;
  const unsigned end = min(first + a.part, a.pixels);
  const int c = threadIdx.x % Lanes * 8, channels = a.x.channels;
  float weight[8], d_weight[8] = {}, d_bias[8] = {};
  load_channels(a.weight, c, channels, weight);
  PixelWalk at(first + threadIdx.x / Lanes, kSlots, a.w);
  PixelPair<T> next(a.x, a.grad, image, at, end, c);  // a step ahead
  for (unsigned begin = first; begin < end; begin += kSlots) {
    const bool inside = at.pixel < end && c < channels;
    const int64_t to = a.dx.at(image, at.y, at.x);
    float xhat[8], h[8];
    to_floats(next.x, xhat);
    to_floats(next.grad, h);
    at.next();
    next = PixelPair<T>(a.x, a.grad, image, at, end, c);
    const float r = normalise<Lanes>(xhat, c, channels, a.eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      d_weight[i] = fmaf(h[i], xhat[i], d_weight[i]);
      d_bias[i] += h[i];
      h[i] *= weight[i];
    }
    normalise_backward<Lanes>(h, xhat, r, channels);
    if (inside) a.dx.store(to, c, to_eight<T>(h));
  }
  float* to = a.sums + static_cast<int64_t>(blockIdx.x) * 2 * channels;
  store_sums<Lanes>(d_weight, reinterpret_cast<float*>(memory), channels, to);
  store_sums<Lanes>(d_bias, reinterpret_cast<float*>(memory), channels, to + channels);
}

}  // namespace fastsr::cuda
