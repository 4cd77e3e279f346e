#include "conv3x3_launch.cuh"

namespace fastsr::cuda {

template cudaError_t start_conv3x3(Conv3x3<float>, cudaStream_t);
template cudaError_t start_conv3x3(Conv3x3<Tf32>, cudaStream_t);
template cudaError_t start_conv3x3(Conv3x3<Half>, cudaStream_t);
template cudaError_t start_conv3x3(Conv3x3<BFloat16>, cudaStream_t);

cudaError_t conv3x3_forward(const Conv3x3Call& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) {
    using T = decltype(type);
    Conv3x3<T> a = conv3x3_of<T>(call, call.y);
    if (call.shortcut.data) a.other = pixel_map<T>(call.shortcut);
    return start_conv3x3(a, stream);
  });
}

}  // namespace fastsr::cuda
