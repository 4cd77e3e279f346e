#include "pixels_launch.cuh"
#include "pointwise_launch.cuh"
#include "pointwise_reduce.cuh"
#include "pointwise_reduce.h"

namespace fastsr::cuda {
namespace {

static_assert(kMostPointwiseReduced <= kReduceBlocks * kBlock && kMostPointwiseInner <= kBlock);

// Of c5 and, behind it, of conv1.
template <class T>
ProductPacks packs_of(const PointwiseReduceCall& call, const void* to) {
  ProductPacks packs{{pack_of<T>(call.c5, false, const_cast<void*>(to))}};
  ProductPack &a = packs.each[0], &b = packs.each[1];
  const auto parameter = [&](int i) {
    return Parameter{call.parameters[i], static_cast<int>(call.c5.parameter_dtype)};
  };
  b.weight = parameter(0), b.bias = parameter(1);
  b.in_channels[0] = a.out_channels[0], b.out_channels[0] = static_cast<int>(call.inner);
  b.inputs = b.outputs = 1;
  b.out_stride = b.in_channels[0], b.in_stride = 1;
  lay_out<T>(a, kReduceBlocks), lay_out<T>(b, 1);
  b.to = a.to + a.words + a.bias_words;
  return packs;
}

template <class T>
int64_t bytes_of(const PointwiseReduceCall& call) {
  const ProductPacks packs = packs_of<T>(call, nullptr);
  return pack_bytes(packs.each[0]) + pack_bytes(packs.each[1]);
}

template <class T>
cudaError_t forward_as(const PointwiseReduceCall& call, cudaStream_t stream) {
  const char* weights = static_cast<const char*>(call.packed ? call.packed : call.workspace);
  if (call.packed && __is_same(T, Tf32)) weights += bytes_of<float>(call);
  if (!call.packed) {
    const cudaError_t error = start_packs<T>(packs_of<T>(call, weights), stream);
    if (error != cudaSuccess) return error;
  }
  const ProductPacks packs = packs_of<T>(call, weights);
  PointwiseReduce<T> a{};
  a.c5 = products_of<T>(call.c5);
  a.c5.out[0] = map_of<T>(call.c5.y), a.reduced = map_of<T>(call.reduced);
  use_packed(packs.each[0], a.c5, call.c5.y);
  a.w1 = reinterpret_cast<const unsigned char*>(packs.each[1].to);
  a.b1 = reinterpret_cast<const float*>(packs.each[1].to + packs.each[1].words);
  return launch(pointwise_reduce_kernel<T>, call.c5.y.size[0] * a.c5.tiles, kProductThreads, 0, stream, a);
}

}  // namespace

int64_t pointwise_reduce_packed_bytes(const PointwiseReduceCall& call) {
  return call.c5.dtype == kFloat32 ? bytes_of<float>(call) + bytes_of<Tf32>(call) : bytes_of<Half>(call);
}

int64_t pointwise_reduce_forward_workspace(const PointwiseReduceCall& call) {
  if (call.packed) return 0;
  return call.c5.dtype == kFloat32 ? bytes_of<float>(call) : bytes_of<Half>(call);
}

cudaError_t pointwise_reduce_pack(const PointwiseReduceCall& call, void* to, cudaStream_t stream) {
  const cudaError_t error = with_dtype(call.c5.dtype, [&](auto type) {
    using T = decltype(type);
    return start_packs<T>(packs_of<T>(call, to), stream);
  });
  if (error != cudaSuccess || call.c5.dtype != kFloat32) return error;
  return start_packs<Tf32>(packs_of<Tf32>(call, static_cast<char*>(to) + bytes_of<float>(call)), stream);
}

cudaError_t pointwise_reduce_forward(const PointwiseReduceCall& call, cudaStream_t stream) {
  return with_numbers(call.c5.dtype, call.c5.tf32, [&](auto type) { return forward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
