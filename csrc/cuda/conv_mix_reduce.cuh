// The 1x1 convolution with which the ESA behind conv_mix begins, of the pixels that a warp owns:
//
//   reduced = W_1 y + b_1
//
// Its weights lie in the 16 bytes behind every pixel of the tiles, which keep pixels on different banks: in memory of
// their own, two CTAs would not fit a multiprocessor of sm_80, and in float32 not one where there are 99 KB.
#pragma once

#include "own_pixels.cuh"

namespace fastsr::cuda {

constexpr int kReduced = 16;  // channels of reduced

// Lane (g, t) makes outputs 4 t to 4 t + 3 of pixel g of its warp, in 16 bits also of pixel g + 8; in TF32 outputs 2 g
// and 2 g + 1 of pixels 2 t and 2 t + 1. Weights: fragments [16 inputs, 8 in TF32][lane] of 16 bytes, or
// [input][4 outputs] in float32.
template <class M>
struct ReduceWeights {
  using T = typename M::T;
  static constexpr int kPieces = kMixChannels * kReduced / kWideVector<T>, kPixels = M::kHaloPixels + 2 * M::kPixels;
  static constexpr int kBehind = kPieces > kPixels ? kPieces - kPixels : 0, kBytes = 16 * kBehind;  // behind the tiles
  static constexpr bool kAreRows = OwnPixels<M>::kAreColumns;  // the weights; pixels are the columns
  static constexpr int kLanePixels = kAreRows ? 2 : M::kOwn / 8, kLaneOutputs = M::kOwn / 2 / kLanePixels;
  static_assert(M::kPitch >= kMixChannels + kWideVector<T>);
  T* tiles;

  // Their 16 bytes `i`.
  __device__ __forceinline__ T* piece(int i) const {
    if (kBehind > 0 && i >= kPixels) return tiles + kPixels * M::kPitch + (i - kPixels) * kWideVector<T>;
    return tiles + i * M::kPitch + kMixChannels;
  }

  // From [outputs][inputs], by all threads, once for all tiles.
  __device__ __forceinline__ void pack(const Parameter& p, int outputs, int inputs) const {
    p.typed([&](const auto* weights) {
      const auto at = [&](int output, int input) {
        return output < outputs && input < inputs ? to_float(weights[output * inputs + input]) : 0.f;
      };
#pragma unroll 1
      for (int i = threadIdx.x; i < 4 * kPieces; i += kMixThreads) {
        uint32_t* to = reinterpret_cast<uint32_t*>(piece(i / 4)) + i % 4;
        if constexpr (kAreRows) {
          const int word = i % 4, lane = i / 4 % 32, row = lane / 4 + word % 2 * 8;
          *to = to_tf32(at(output_at<Order::kTwoOfRows>(row), i / 128 * 8 + lane % 4 + word / 2 * 4));
        } else if constexpr (kTensorCores<T>) {
          const int word = i % 4, lane = i / 4 % 32;
          const int output = lane / 8 * 4 + word / 2 * 2 + lane / 4 % 2;
          const int input = i / 128 * 16 + lane % 4 * 2 + word % 2 * 8;
          *to = pack2<T>(at(output, input), at(output, input + 1));
        } else {
          *to = __float_as_uint(at(i % kReduced, i / kReduced));
        }
      }
    });
  }

  __device__ __forceinline__ static int first_output() {
    return kAreRows ? threadIdx.x % 32 / 4 * 2 : threadIdx.x % 4 * 4;
  }

  // Sums begin with the biases, for which float32 has no shared memory left. Without branches: the loads are on their
  // way at once.
  __device__ __forceinline__ static void start(const Parameter& p, int outputs,
                                               float (&sum)[kLanePixels][kLaneOutputs]) {
    p.typed([&](const auto* bias) {
#pragma unroll
      for (int i = 0; i < kLaneOutputs; ++i) {
        const int c = first_output() + i;
        const float b = to_float(bias[min(c, outputs - 1)]);
#pragma unroll
        for (auto& pixel : sum) pixel[i] = c < outputs ? b : 0.f;
      }
    });
  }

  // Adds W_1 y to `sum`. y is in `own`, and in float32 and TF32 also in the warp's pixels of a tile.
  __device__ __forceinline__ void multiply(const OwnPixels<M>& own, const T* own_pixels,
                                           float (&sum)[kLanePixels][kLaneOutputs]) const {
    const int lane = threadIdx.x % 32;
    if constexpr (kAreRows) {
      float d[1][4] = {{sum[0][0], sum[1][0], sum[0][1], sum[1][1]}};
      const auto rows = [&](int, int step) { return *reinterpret_cast<const uint4*>(piece(32 * step + lane)); };
      multiply_columns<M>(own_pixels, rows, kMixChannels, d);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i % 2][i / 2] = d[0][i];
    } else if constexpr (kTensorCores<T>) {
      float d[2][4] = {{sum[0][0], sum[0][1], sum[1][0], sum[1][1]}, {sum[0][2], sum[0][3], sum[1][2], sum[1][3]}};
#pragma unroll
      for (int step = 0; step < kMixChannels / 16; ++step) {
        uint32_t a[4];  // what the last product left is a fragment of this one
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = pack2<T>(own.value[8 * step + 2 * i], own.value[8 * step + 2 * i + 1]);
        const uint4 b = *reinterpret_cast<const uint4*>(piece(32 * step + lane));
        mma_k16<T>(d[0], a[0], a[1], a[2], a[3], b.x, b.y);
        mma_k16<T>(d[1], a[0], a[1], a[2], a[3], b.z, b.w);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i / 4][i % 4] = d[i % 4 / 2][i / 4 * 2 + i % 2];
    } else {
      const T* from = own_pixels + lane / 4 * M::kPitch;
#pragma unroll 2
      for (int c = 0; c < kMixChannels; c += 4) {
        const float4 y = *reinterpret_cast<const float4*>(from + c);
        const float of[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float4 w = *reinterpret_cast<const float4*>(piece(4 * (c + i) + lane % 4));
          const float row[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
          for (int o = 0; o < 4; ++o) sum[0][o] = fmaf(of[i], row[o], sum[0][o]);
        }
      }
    }
  }

  // `reduced` of the warp's pixels, to a map [n, h, w, kReduced].
  __device__ __forceinline__ static void store(T* to, const Tiles& s, int64_t n, int y0, int x0,
                                               const float (&sum)[kLanePixels][kLaneOutputs]) {
    const int lane = threadIdx.x % 32, y = y0 + M::own_row(), first = kAreRows ? lane % 4 * 2 : lane / 4;
    if (y >= s.h) return;
#pragma unroll
    for (int p = 0; p < kLanePixels; ++p) {
      const int x = x0 + M::own_column() + first + (kAreRows ? 1 : 8) * p;
      if (x < s.w) store_vector<kLaneOutputs>(to + ((n * s.h + y) * s.w + x) * kReduced + first_output(), sum[p]);
    }
  }
};

}  // namespace fastsr::cuda
