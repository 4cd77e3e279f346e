// What every CUDA binding needs: views of tensors for the launchers, the current stream, launch checks.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../format.h"

namespace fastsr::cuda {

using torch::stable::accelerator::DeviceGuard;

inline int64_t dtype_code(ScalarType t) { return t == ScalarType::Float ? 0 : t == ScalarType::Half ? 1 : 2; }

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or PyTorch's next check of a launch would report it, for another operator
  STD_TORCH_CHECK(false, op, ": the kernel did not start: ", cudaGetErrorString(error));
}

inline void check_on_device(const char* op, const Tensor& x, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(other.is_cuda() && other.get_device_index() == x.get_device_index(), op, ": ", name,
                  " is not on the device of x; move one of them");
}

template <class View>
View view_of(const Tensor& x) {
  View v{const_cast<void*>(x.const_data_ptr()), {}, {}};
  for (int i = 0; i < 4; ++i) v.size[i] = x.size(i), v.stride[i] = x.stride(i);
  return v;
}

inline Tensor empty_map(const Tensor& like, int64_t channels, MemoryFormat format) {
  const int64_t size[4] = {like.size(0), channels, like.size(2), like.size(3)};
  return torch::stable::empty({size, 4}, like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
}
inline Tensor empty_map(const Tensor& like, int64_t channels) { return empty_map(like, channels, output_format(like)); }

// Memory for the time of the call; the allocator keeps it until the stream is past the kernels.
inline Tensor workspace(const Tensor& like, int64_t bytes) {
  return torch::stable::empty({&bytes, 1}, ScalarType::Byte, std::nullopt, like.device());
}

}  // namespace fastsr::cuda
