// What passes over all pixels have in common: `Lanes` adjacent lanes hold a pixel, eight adjacent channels each, and a
// thread walks over pixels of one image.
#pragma once

#include "map.cuh"
#include "parameter.cuh"

namespace fastsr::cuda {

constexpr int kWalkThreads = 256;
constexpr int64_t kMostLaneChannels = 32 * 8;

// Lanes that `channels` take: 4, 8, 16 or 32.
inline int lanes_of(int64_t channels) { return channels <= 32 ? 4 : channels <= 64 ? 8 : channels <= 128 ? 16 : 32; }

// Calls start<Lanes>(), whose argument is to be given as a template argument.
template <class Start>
auto with_lanes(int64_t channels, Start start) {
  switch (lanes_of(channels)) {
    case 4:
      return start.template operator()<4>();
    case 8:
      return start.template operator()<8>();
    case 16:
      return start.template operator()<16>();
    default:
      return start.template operator()<32>();
  }
}

// The pixels first, first + step, ... of an image `w` wide, as coordinates.
struct PixelWalk {
  unsigned pixel, step;
  int y, x, dy, dx, w;

  __device__ __forceinline__ PixelWalk(unsigned first, unsigned s, int width)
      : pixel(first), step(s), y(first / width), x(first % width), dy(s / width), dx(s % width), w(width) {}
  __device__ __forceinline__ void next() {
    pixel += step, y += dy, x += dx;
    if (x >= w) x -= w, ++y;
  }
};

template <class T>
__device__ __forceinline__ void to_floats(const Eight<T>& e, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v[2 * i] = e.pair(i).x, v[2 * i + 1] = e.pair(i).y;
}
template <class T>
__device__ __forceinline__ Eight<T> to_eight(const float (&v)[8]) {
  Eight<T> e;
#pragma unroll
  for (int i = 0; i < 4; ++i) e.set_pair(i, v[2 * i], v[2 * i + 1]);
  return e;
}

// What a backward reads of a pixel; zeros from pixel `end` and beyond the channels.
template <class T>
struct PixelPair {
  Eight<T> x = Eight<T>::zeros(), grad = x;

  __device__ __forceinline__ PixelPair(const Map<T>& from_x, const Map<T>& from_grad, unsigned image,
                                       const PixelWalk& at, unsigned end, int c) {
    if (at.pixel >= end || c >= from_x.channels) return;
    x = from_x.load(from_x.at(image, at.y, at.x), c);
    grad = from_grad.load(from_grad.at(image, at.y, at.x), c);
  }
};

// Eight channels of a parameter or of float32 numbers from `c` on; 0 beyond `channels`.
template <class Vector>
__device__ __forceinline__ void load_channels(const Vector& from, int c, int channels, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = c + i < channels ? from[c + i] : 0.f;
}

// The sum over the lanes of a pixel.
template <int Lanes>
__device__ __forceinline__ float sum_of_pixel(float x) {
#pragma unroll
  for (int i = 1; i < Lanes; i *= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

// v becomes (v - mean) / sqrt(variance + eps) of the pixel, or 0 beyond the channels; returns 1 / sqrt(variance + eps).
// The mean of the deviations takes back what rounding the mean lost: it matters where the mean is large.
template <int Lanes>
__device__ __forceinline__ float normalise(float (&v)[8], int c, int channels, float eps) {
  const float share = 1.f / channels;
  float squares = 0.f;
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += v[i];
    const float mean = sum_of_pixel<Lanes>(sum) * share;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = c + i < channels ? v[i] - mean : 0.f;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
  const float r = rsqrtf(fmaf(sum_of_pixel<Lanes>(squares), share, eps));
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] *= r;
  return r;
}

// h, the gradient behind `normalise`, becomes the one in front of it.
template <int Lanes>
__device__ __forceinline__ void normalise_backward(float (&h)[8], const float (&xhat)[8], float r, int channels) {
  const float share = 1.f / channels;
  float sum = 0.f, slope = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += h[i], slope = fmaf(h[i], xhat[i], slope);
  sum = sum_of_pixel<Lanes>(sum) * share, slope = sum_of_pixel<Lanes>(slope) * share;
#pragma unroll
  for (int i = 0; i < 8; ++i) h[i] = r * fmaf(-xhat[i], slope, h[i] - sum);
}

// Sums over all pixels of the CTA, written to to[0 .. channels) by its threads. `memory`: a float per thread and
// channel of eight.
template <int Lanes>
__device__ __forceinline__ void store_sums(const float (&v)[8], float* memory, int channels, float* to) {
  constexpr int kSlots = kWalkThreads / 32, kChannels = 8 * Lanes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  float of_warp[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    of_warp[i] = v[i];
#pragma unroll
    for (int bit = Lanes; bit < 32; bit *= 2) of_warp[i] += __shfl_xor_sync(0xffffffffu, of_warp[i], bit);
  }
  if (lane < Lanes) {
#pragma unroll
    for (int i = 0; i < 8; i += 4)
      *reinterpret_cast<float4*>(memory + warp * kChannels + spread<float>(8 * lane + i)) =
          make_float4(of_warp[i], of_warp[i + 1], of_warp[i + 2], of_warp[i + 3]);
  }
  __syncthreads();
#pragma unroll 1
  for (int c = threadIdx.x; c < channels; c += kWalkThreads) {
    const float* from = memory + spread<float>(c);
    float s = from[0];
#pragma unroll
    for (int w = 1; w < kSlots; ++w) s += from[w * kChannels];
    to[c] = s;
  }
}

template <int Lanes>
constexpr int sums_shared() {
  return kWalkThreads / 32 * 8 * Lanes * static_cast<int>(sizeof(float));
}

}  // namespace fastsr::cuda
