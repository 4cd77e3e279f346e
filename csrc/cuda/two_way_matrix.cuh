// The weights of a 1x1 convolution in TF32, of which products with them and with their transpose read one copy: three
// matrices of fragments and tiles of four rows would be more than 99 KB.
#pragma once

#include "conv_mix_tile.cuh"

namespace fastsr::cuda {

// 64 x 64 words; column c of row r is word c ^ turn(r) of the row.
struct TwoWayMatrix {
  const uint32_t* words;

  // Bits 1 to 3 of r turn bits 4 to 2, and bit 0 itself: neither eight pairs of rows by four columns nor four rows by
  // eight pairs of columns, which is what a warp loads, meet a bank twice.
  __device__ __forceinline__ static int at(int r, int c) {
    return r * kMixChannels + (c ^ (r % 2 | (r & 2) << 3 | (r & 4) << 1 | (r & 8) >> 1));
  }
  // [channels][channels], zeros up to 64 x 64.
  __device__ __forceinline__ static void pack(const Parameter& p, int channels, uint32_t* to) {
    p.typed([&](const auto* weights) {
#pragma unroll 2
      for (int i = threadIdx.x; i < kMixChannels * kMixChannels; i += kMixThreads) {
        const int r = i / kMixChannels, c = i % kMixChannels;
        to[at(r, c)] = r < channels && c < channels ? to_tf32(to_float(weights[r * channels + c])) : 0;
      }
    });
  }
  // What `multiply_columns` asks for, in Order::kTwoOfRows.
  template <bool Transposed>
  __device__ __forceinline__ uint4 fragment(int block, int step) const {
    const int output = 16 * block + threadIdx.x % 32 / 4 * 2, input = 8 * step + threadIdx.x % 4;
    const auto word = [&](int o, int i) { return words[Transposed ? at(i, o) : at(o, i)]; };
    return make_uint4(word(output, input), word(output + 1, input), word(output, input + 4),
                      word(output + 1, input + 4));
  }
};

}  // namespace fastsr::cuda
