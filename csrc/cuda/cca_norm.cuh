// The passes of cca_norm over the map. Per image and channel `scale` is the attention (cca_attention.cuh):
//
//   forward    mean, sum of squared deviations of each part of the pixels;  y = norm(x scale) + shortcut
//   backward   dz = norm'(grad gamma) (or grad);  sums of dz x, grad xhat, grad over each part
//              dx = dz scale + constant + slope (x - mean)
#pragma once

#include "pixel_lanes.cuh"

namespace fastsr::cuda {

template <class T>
struct Cca {
  Map<T> x, shortcut, y, grad, dx;
  float* moments;         // [image][part][mean, sum of squares][C]
  float* sums;            // [image][part][dz x, grad xhat, grad][C]
  const float* scale;     // [image][C]
  const float* terms;     // [image]: constant, slope, mean [3][C], `line` apart
  Parameter gamma, beta;  // data is null without a norm
  int64_t line;
  float eps;
  unsigned pixels, part, parts;  // of an image, of a part, parts of an image
  unsigned chunk, chunks;        // the same for the passes that write maps
  int w;
};

// Mean and squares of the CTA's part by running means (Welford), which lose no digits where the mean is large and give
// exactly 0 squares for a constant channel; then the threads' moments are merged in order by Chan's rule.
template <class T, int Lanes>
__global__ void __launch_bounds__(kWalkThreads, 2) cca_moments_kernel(const Cca<T> a) {
  constexpr int kSlots = kWalkThreads / Lanes, kChannels = 8 * Lanes;
  FASTSR_SHARED_MEMORY(memory);
  float2* all = reinterpret_cast<float2*>(memory);  // [slot][channel], spread
  const unsigned image = blockIdx.x / a.parts, first = blockIdx.x % a.parts * a.part;
  const unsigned end = min(first + a.part, a.pixels);
  const int slot = threadIdx.x / Lanes, c = threadIdx.x % Lanes * 8;
  float mean[8] = {}, squares[8] = {}, count = 0.f;
  PixelWalk at(first + slot, kSlots, a.w);
  constexpr int kAhead = 4;
  while (at.pixel < end) {
    Eight<T> e[kAhead];
    int loaded = 0;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (at.pixel < end) {
        e[i] = a.x.load(a.x.at(image, at.y, at.x), c);
        ++loaded;
      }
      at.next();
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i >= loaded) break;
      count += 1.f;
      const float share = 1.f / count;
      float v[8];
      to_floats(e[i], v);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float d = v[j] - mean[j];
        mean[j] = fmaf(d, share, mean[j]);
        squares[j] = fmaf(d, v[j] - mean[j], squares[j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i += 2)
    *reinterpret_cast<float4*>(all + spread<float2>(slot * kChannels + c + i)) =
        make_float4(mean[i], squares[i], mean[i + 1], squares[i + 1]);
  __syncthreads();
  for (int channel = threadIdx.x; channel < a.x.channels; channel += kWalkThreads) {
    float m = 0.f, s = 0.f, n = 0.f;
    for (unsigned i = 0; i < kSlots && first + i < end; ++i) {
      const float2 other = all[spread<float2>(i * kChannels + channel)];
      const float more = static_cast<float>((end - first - i + kSlots - 1) / kSlots);
      const float delta = other.x - m, share = more / (n + more);
      m = fmaf(delta, share, m);
      s += fmaf(delta * delta * n, share, other.y);
      n += more;
    }
    float* to = a.moments + static_cast<int64_t>(blockIdx.x) * 2 * a.x.channels + channel;
    to[0] = m, to[a.x.channels] = s;
  }
}

template <int Lanes>
constexpr int cca_moments_shared() {
  return kWalkThreads * 8 * static_cast<int>(sizeof(float2));
}

// y of the pixels from `begin` to `end` that the thread walks over. All threads take the same number of steps: lanes of
// a warp exchange sums.
template <int Lanes, class T, class Scale>
__device__ __forceinline__ void apply_to_pixels(const Cca<T>& a, const Scale& scales, unsigned image, PixelWalk at,
                                                unsigned begin, unsigned end) {
  const int c = threadIdx.x % Lanes * 8, channels = a.x.channels;
  float scale[8], gamma[8], beta[8];
  load_channels(scales, c, channels, scale);
  if (a.gamma.data) load_channels(a.gamma, c, channels, gamma), load_channels(a.beta, c, channels, beta);
  for (; begin < end; begin += at.step, at.next()) {
    const bool inside = at.pixel < end && c < channels;
    Eight<T> from_x = Eight<T>::zeros(), from_shortcut = from_x;
    if (inside) {
      from_x = a.x.load(a.x.at(image, at.y, at.x), c);
      from_shortcut = a.shortcut.load(a.shortcut.at(image, at.y, at.x), c);
    }
    float v[8], added[8];
    to_floats(from_x, v);
    to_floats(from_shortcut, added);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= scale[i];
    if (a.gamma.data) {
      normalise<Lanes>(v, c, channels, a.eps);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = fmaf(v[i], gamma[i], beta[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += added[i];
    if (inside) a.y.store(a.y.at(image, at.y, at.x), c, to_eight<T>(v));
  }
}

template <class T, int Lanes>
__global__ void __launch_bounds__(kWalkThreads, 4) cca_apply_kernel(const Cca<T> a) {
  constexpr int kSlots = kWalkThreads / Lanes;
  const unsigned image = blockIdx.x / a.chunks, first = blockIdx.x % a.chunks * a.chunk;
  const PixelWalk at(first + threadIdx.x / Lanes, kSlots, a.w);
  apply_to_pixels<Lanes>(a, a.scale + static_cast<int64_t>(image) * a.x.channels, image, at, first,
                         min(first + a.chunk, a.pixels));
}

// dz, the gradient of x scale, from `grad`; `xhat` holds x scale, and then its normalised values.
template <int Lanes>
__device__ __forceinline__ void cca_dz(float (&grad)[8], float (&xhat)[8], const float (&gamma)[8], bool norm, int c,
                                       int channels, float eps) {
  if (!norm) return;
  const float r = normalise<Lanes>(xhat, c, channels, eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) grad[i] *= gamma[i];
  normalise_backward<Lanes>(grad, xhat, r, channels);
}

template <class T, int Lanes>
__global__ void __launch_bounds__(kWalkThreads, 2) cca_sums_kernel(const Cca<T> a) {
  constexpr int kSlots = kWalkThreads / Lanes;
  FASTSR_SHARED_MEMORY(memory);
  const unsigned image = blockIdx.x / a.parts, first = blockIdx.x % a.parts * a.part;
  const unsigned end = min(first + a.part, a.pixels);
  const int c = threadIdx.x % Lanes * 8, channels = a.x.channels;
  float scale[8], gamma[8], d_scale[8] = {}, d_gamma[8] = {}, d_beta[8] = {};
  load_channels(a.scale + static_cast<int64_t>(image) * channels, c, channels, scale);
  if (a.gamma.data) load_channels(a.gamma, c, channels, gamma);
  PixelWalk at(first + threadIdx.x / Lanes, kSlots, a.w);
  PixelPair<T> next(a.x, a.grad, image, at, end, c);  // a step ahead
  for (unsigned begin = first; begin < end; begin += kSlots) {
    float v[8], xhat[8], grad[8], dz[8];
    to_floats(next.x, v);
    to_floats(next.grad, grad);
    at.next();
    next = PixelPair<T>(a.x, a.grad, image, at, end, c);
#pragma unroll
    for (int i = 0; i < 8; ++i) xhat[i] = v[i] * scale[i], dz[i] = grad[i];
    cca_dz<Lanes>(dz, xhat, gamma, a.gamma.data, c, channels, a.eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      d_scale[i] = fmaf(dz[i], v[i], d_scale[i]);
      d_gamma[i] = fmaf(grad[i], xhat[i], d_gamma[i]);
      d_beta[i] += grad[i];
    }
  }
  float* to = a.sums + static_cast<int64_t>(blockIdx.x) * 3 * channels;
  float* shared = reinterpret_cast<float*>(memory);
  store_sums<Lanes>(d_scale, shared, channels, to);
  store_sums<Lanes>(d_gamma, shared, channels, to + channels);
  store_sums<Lanes>(d_beta, shared, channels, to + 2 * channels);
}

template <class T, int Lanes>
__global__ void __launch_bounds__(kWalkThreads, 2) cca_apply_backward_kernel(const Cca<T> a) {
  constexpr int kSlots = kWalkThreads / Lanes;
  const unsigned image = blockIdx.x / a.chunks, first = blockIdx.x % a.chunks * a.chunk;
  const unsigned end = min(first + a.chunk, a.pixels);
  const int c = threadIdx.x % Lanes * 8, channels = a.x.channels;
  float scale[8], gamma[8], constant[8], slope[8], mean[8];
  load_channels(a.scale + static_cast<int64_t>(image) * channels, c, channels, scale);
  const float* terms = a.terms + image * a.line;
  load_channels(terms, c, channels, constant);
  load_channels(terms + channels, c, channels, slope);
  load_channels(terms + 2 * channels, c, channels, mean);
  if (a.gamma.data) load_channels(a.gamma, c, channels, gamma);
  PixelWalk at(first + threadIdx.x / Lanes, kSlots, a.w);
  PixelPair<T> next(a.x, a.grad, image, at, end, c);  // a step ahead
  for (unsigned begin = first; begin < end; begin += kSlots) {
    const bool inside = at.pixel < end && c < channels;
    const int64_t to = a.dx.at(image, at.y, at.x);
    float v[8], xhat[8], dz[8];
    to_floats(next.x, v);
    to_floats(next.grad, dz);
    at.next();
    next = PixelPair<T>(a.x, a.grad, image, at, end, c);
#pragma unroll
    for (int i = 0; i < 8; ++i) xhat[i] = v[i] * scale[i];
    cca_dz<Lanes>(dz, xhat, gamma, a.gamma.data, c, channels, a.eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = fmaf(slope[i], v[i] - mean[i], fmaf(dz[i], scale[i], constant[i]));
    if (inside) a.dx.store(to, c, to_eight<T>(v));
  }
}

}  // namespace fastsr::cuda
