// 1x1 convolutions of several maps, into one or several others:
//
//   out_o[p] = act(sum_i in_i[p] W_oi^T + bias_o + shortcut[p])
//   out_o[p] = grad[p] act'(sum_i in_i[p] W_oi^T + bias_o + shortcut[p])        with Gradient
//
// A CTA takes 128 pixels of one image, a warp 16 of them and 32 Blocks channels out at a time: two pixels and, of
// every block, eight adjacent channels a lane (product.cuh).
#pragma once

#include "gelu.cuh"
#include "parameter.cuh"
#include "pointwise.h"
#include "product_pack.cuh"

namespace fastsr::cuda {

constexpr int kLanePixels = 2;

// Weight (channel k of out_o, channel c of in_i) is element (first_out[o] + k) out_stride + (first_in[i] + c) in_stride
// of a parameter.
struct ProductPack {
  Parameter weight, bias;  // bias.data may be null
  int64_t out_stride, in_stride, words, bias_words;
  int in_channels[kMaxMaps], first_in[kMaxMaps], out_channels[kMaxMaps], first_out[kMaxMaps], first_block[kMaxMaps + 1];
  int inputs, outputs;
  uint32_t* to;  // per block of outputs: the inputs' weights, one after the other; then the biases
};

// Word `i` of all weights, or, behind them, of the biases.
template <class T>
__device__ __forceinline__ uint32_t product_pack_word(int64_t i, const ProductPack& a) {
  const int64_t block_words = a.words / (a.bias_words / kBlock);
  const int block = static_cast<int>(i < a.words ? i / block_words : (i - a.words) / kBlock);
  int o = 0;
  while (o + 1 < a.outputs && a.first_block[o + 1] <= block) ++o;
  const int first = (block - a.first_block[o]) * kBlock, channels = a.out_channels[o], first_out = a.first_out[o];
  if (i >= a.words) {
    const int k = first + static_cast<int>((i - a.words) % kBlock);
    return __float_as_uint(a.bias.data != nullptr && k < channels ? a.bias[first_out + k] : 0.f);
  }
  i %= block_words;
  int in = 0;
  for (; in + 1 < a.inputs; ++in) {
    const int64_t words = product_block_bytes<T>(a.in_channels[in]) / 4;
    if (i < words) break;
    i -= words;
  }
  const int inputs = a.in_channels[in], first_in = a.first_in[in];
  return product_word<T>(i, inputs, [&](int k, int c) {
    return first + k < channels && c < inputs
               ? a.weight[(first_out + first + k) * a.out_stride + (first_in + c) * a.in_stride]
               : 0.f;
  });
}

struct ProductPacks {
  ProductPack each[2];  // the second one may be empty
};

// Without a loop over both, for which they would be copied to the stack.
template <class T>
__global__ void __launch_bounds__(kProductThreads) product_pack_kernel(const ProductPacks a) {
  const ProductPack &first = a.each[0], &second = a.each[1];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kProductThreads + threadIdx.x;
  const int64_t behind = i - first.words - first.bias_words;
  if (behind < 0)
    first.to[i] = product_pack_word<T>(i, first);
  else if (behind < second.words + second.bias_words)
    second.to[behind] = product_pack_word<T>(behind, second);
}

template <class T>
struct Products {
  Map<T> in[kMaxMaps], out[kMaxMaps], shortcut, grad;
  const unsigned char* packed;
  const float* bias;
  int64_t block_bytes;
  int inputs, outputs;
  unsigned pixels, w, tiles;  // pixels and tiles of an image
  int activation, accuracy, has_shortcut;
};

template <class T, int Blocks, bool Gradient>
__global__ void __launch_bounds__(kProductThreads, 2) product_kernel(const Products<T> a) {
  const int t = threadIdx.x % 4;
  const LanePixels at(a.tiles, a.pixels, a.w);
  const unsigned char* packed = a.packed;
  const float* bias = a.bias + 8 * t;
  for (int o = 0; o < a.outputs; ++o) {
    const Map<T>& out = a.out[o];
    for (int c0 = 0; c0 < out.channels;
         c0 += Blocks * kBlock, packed += Blocks * a.block_bytes, bias += Blocks * kBlock) {
      float sum[Blocks][kLanePixels][8];
#pragma unroll
      for (int i = 0; i < Blocks * kLanePixels * 8; ++i)
        sum[i / 8 / kLanePixels][i / 8 % kLanePixels][i % 8] = bias[i / 8 / kLanePixels * kBlock + i % 8];
      const unsigned char* of_map = packed;
#pragma unroll 1
      for (int i = 0; i < a.inputs; ++i) {
        const Map<T> in = a.in[i];
        int64_t offset[kLanePixels];
#pragma unroll
        for (int p = 0; p < kLanePixels; ++p) offset[p] = at.offset(in, p);
        pixel_products<T, true, Blocks>(in, offset, of_map, a.block_bytes, sum);
        of_map += product_block_bytes<T>(in.channels);
      }
#pragma unroll
      for (int i = 0; i < Blocks * kLanePixels; ++i) {
        const int p = i % kLanePixels, b = i / kLanePixels, c = c0 + b * kBlock + 8 * t;
        if (at.x[p] < 0 || c >= out.channels) continue;
        float (&z)[8] = sum[b][p];
        if (a.has_shortcut) {
          const Eight<T> e = a.shortcut.load(at.offset(a.shortcut, p), c);
#pragma unroll
          for (int j = 0; j < 8; ++j) z[j] += j % 2 ? e.pair(j / 2).y : e.pair(j / 2).x;
        }
        Eight<T> e;
        if constexpr (Gradient) {
          e = a.grad.load(at.offset(a.grad, p), c);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            e.set_pair(j, e.pair(j).x * activation_derivative(z[2 * j], a.activation),
                       e.pair(j).y * activation_derivative(z[2 * j + 1], a.activation));
        } else {
          activate_all<T>(z, a.activation, a.accuracy);
#pragma unroll
          for (int j = 0; j < 4; ++j) e.set_pair(j, z[2 * j], z[2 * j + 1]);
        }
        out.store(at.offset(out, p), c, e);
      }
    }
  }
}

}  // namespace fastsr::cuda
