// From a Conv3x3Call to the convolution's kernel.
#pragma once

#include "conv3x3.cuh"
#include "conv3x3.h"
#include "pixels_launch.cuh"

namespace fastsr::cuda {

template <class T, int N>
cudaError_t start_conv3x3_block(const Conv3x3<T>& a, cudaStream_t stream) {
  using B = ConvBlock<T, N>;
  static_assert(B::kShared <= 99 * 1024);
  const int64_t blocks = (a.conv.outputs + B::kOut - 1) / B::kOut;
  return launch(conv3x3_kernel<T, N>, blocks * resident_blocks(a.conv.tiles.count, B::kResident), kConvThreads,
                B::kShared, stream, a);
}

// Blocks of 16 channels out serve the last convolution of a network for scale 2.
template <class T>
cudaError_t start_conv3x3(Conv3x3<T> a, cudaStream_t stream) {
  a.conv.outputs = a.y.channels;
  if (a.other.data && a.other.vector < a.y.vector) a.y.vector = a.other.vector;
  return a.conv.outputs <= 16 ? start_conv3x3_block<T, 1>(a, stream) : start_conv3x3_block<T, 4>(a, stream);
}

// Compiled with the forward, and used by the backward.
extern template cudaError_t start_conv3x3(Conv3x3<float>, cudaStream_t);
extern template cudaError_t start_conv3x3(Conv3x3<Tf32>, cudaStream_t);
extern template cudaError_t start_conv3x3(Conv3x3<Half>, cudaStream_t);
extern template cudaError_t start_conv3x3(Conv3x3<BFloat16>, cudaStream_t);

// conv3x3(x) + b with the call's activation, into `y`.
template <class T>
Conv3x3<T> conv3x3_of(const Conv3x3Call& call, const TensorView& y) {
  Conv3x3<T> a{};
  const int dtype = static_cast<int>(call.parameter_dtype);
  a.conv.tiles = tiles_of(call.x, kConvRows);
  a.conv.x = pixel_map<T>(call.x), a.y = pixel_map<T>(y);
  a.conv.weights = {Parameter{call.weight, dtype}, static_cast<int>(call.y.size[1]), a.conv.x.channels, 0};
  a.conv.bias = Parameter{call.bias, dtype};
  a.activation = static_cast<int>(call.activation), a.accuracy = static_cast<int>(call.accuracy);
  return a;
}

}  // namespace fastsr::cuda
