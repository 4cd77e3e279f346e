// A 1x1 convolution of several maps, and the 1x1 with which the ESA behind it begins, for inference:
//
//   y[p] = sum_i in_i[p] W_i^T + b;  reduced[p] = W1 y[p] + b1
//
// The first product leaves eight adjacent channels of two pixels on a lane, which is how the second one wants them.
#pragma once

#include "pixel_lanes.cuh"
#include "pointwise.cuh"

namespace fastsr::cuda {

constexpr int kReduceBlocks = 2;  // blocks of channels of y

template <class T>
struct PointwiseReduce {
  Products<T> c5;  // out[0] is y
  Map<T> reduced;
  const unsigned char* w1;
  const float* b1;
};

template <class T>
__global__ void __launch_bounds__(kProductThreads, 2) pointwise_reduce_kernel(const PointwiseReduce<T> a) {
  const Products<T>& c5 = a.c5;
  const Map<T>& y = c5.out[0];
  const int c = threadIdx.x % 4 * 8;
  const LanePixels at(c5.tiles, c5.pixels, c5.w);
  float sum[kReduceBlocks][kLanePixels][8];
#pragma unroll
  for (int i = 0; i < kReduceBlocks * kLanePixels * 8; ++i)
    sum[i / 8 / kLanePixels][i / 8 % kLanePixels][i % 8] = c5.bias[i / 8 / kLanePixels * kBlock + c + i % 8];
  const unsigned char* of_map = c5.packed;
#pragma unroll 1
  for (int i = 0; i < c5.inputs; ++i) {
    const Map<T> in = c5.in[i];
    int64_t offset[kLanePixels];
#pragma unroll
    for (int p = 0; p < kLanePixels; ++p) offset[p] = at.offset(in, p);
    pixel_products<T, true, kReduceBlocks>(in, offset, of_map, c5.block_bytes, sum);
    of_map += product_block_bytes<T>(in.channels);
  }
  // The same pixels once more for float32, which has no registers left to keep them in during the product.
  const LanePixels to =
      kTensorCores<T> ? at : LanePixels(static_cast<unsigned>(computed_here(c5.tiles)), c5.pixels, c5.w);
  float reduced[kLanePixels][8];
#pragma unroll
  for (int i = 0; i < kLanePixels * 8; ++i) reduced[i / 8][i % 8] = a.b1[c + i % 8];
#pragma unroll
  for (int block = 0; block < kReduceBlocks; ++block) {
    Eight<T> e[kLanePixels];  // as it is rounded in memory
#pragma unroll
    for (int p = 0; p < kLanePixels; ++p) {
      e[p] = to_eight<T>(sum[block][p]);
      if (to.x[p] >= 0 && block * kBlock + c < y.channels) y.store(to.offset(y, p), block * kBlock + c, e[p]);
    }
    if (block < blocks_of(y.channels)) lane_product<T>(e, a.w1, y.channels, block, reduced);
  }
#pragma unroll
  for (int p = 0; p < kLanePixels; ++p)
    if (to.x[p] >= 0 && c < a.reduced.channels) a.reduced.store(to.offset(a.reduced, p), c, to_eight<T>(reduced[p]));
}

}  // namespace fastsr::cuda
