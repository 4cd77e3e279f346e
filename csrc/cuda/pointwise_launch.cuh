// From a PointwiseCall to kernels.
#pragma once

#include "map_launch.cuh"
#include "pointwise.cuh"
#include "weight_gradient.cuh"

namespace fastsr::cuda {

// Blocks of 32 channels out that a warp makes at once.
inline int product_blocks(const int* out_channels, int outputs) {
  for (int i = 0; i < outputs; ++i)
    if (out_channels[i] > kBlock) return 2;
  return 1;
}

// Fills in first_block and the sizes, once the channels are known, for warps that make `step` blocks at once.
template <class T>
void lay_out(ProductPack& a, int step) {
  a.first_block[0] = 0;
  for (int o = 0; o < a.outputs; ++o)
    a.first_block[o + 1] = a.first_block[o] + (blocks_of(a.out_channels[o]) + step - 1) / step * step;
  a.bias_words = static_cast<int64_t>(a.first_block[a.outputs]) * kBlock;
  a.words = 0;
  for (int i = 0; i < a.inputs; ++i) a.words += product_block_bytes<T>(a.in_channels[i]) / 4;
  a.words *= a.first_block[a.outputs];
}

inline int64_t pack_bytes(const ProductPack& a) { return 4 * (a.words + a.bias_words); }

// The weights of the convolution itself, or with `transposed` of the gradients of its inputs.
template <class T>
ProductPack pack_of(const PointwiseCall& call, bool transposed, void* to = nullptr) {
  ProductPack a{};
  a.to = static_cast<uint32_t*>(to);
  const int k = static_cast<int>(call.y.size[1]);
  int64_t c = 0;
  int* several = transposed ? a.out_channels : a.in_channels;
  int* first = transposed ? a.first_out : a.first_in;
  for (int i = 0; i < call.inputs; ++i) {
    first[i] = static_cast<int>(c);
    several[i] = static_cast<int>(call.x[i].size[1]);
    c += several[i];
  }
  (transposed ? a.in_channels : a.out_channels)[0] = k;
  a.inputs = transposed ? 1 : static_cast<int>(call.inputs);
  a.outputs = transposed ? static_cast<int>(call.inputs) : 1;
  a.out_stride = transposed ? 1 : c, a.in_stride = transposed ? c : 1;
  a.weight = {call.weight, static_cast<int>(call.parameter_dtype)};
  if (!transposed) a.bias = {call.bias, static_cast<int>(call.parameter_dtype)};
  lay_out<T>(a, product_blocks(a.out_channels, a.outputs));
  return a;
}

template <class T>
cudaError_t start_packs(const ProductPacks& a, cudaStream_t stream) {
  const int64_t words = (pack_bytes(a.each[0]) + pack_bytes(a.each[1])) / 4;
  return launch(product_pack_kernel<T>, (words + kProductThreads - 1) / kProductThreads, kProductThreads, 0, stream, a);
}

// What a product on maps that `a` holds already takes beside them.
template <class T>
void use_packed(const ProductPack& pack, Products<T>& a, const TensorView& like) {
  a.packed = reinterpret_cast<const unsigned char*>(pack.to);
  a.bias = reinterpret_cast<const float*>(a.packed + 4 * pack.words);
  a.block_bytes = 4 * pack.words / pack.first_block[pack.outputs];
  a.inputs = pack.inputs, a.outputs = pack.outputs;
  a.w = static_cast<unsigned>(like.size[3]);
  a.pixels = static_cast<unsigned>(like.size[2] * like.size[3]);
  a.tiles = product_tiles(a.pixels);
}

template <class T, bool Gradient>
cudaError_t start_product(const ProductPack& pack, Products<T>& a, const TensorView& like, cudaStream_t stream) {
  use_packed(pack, a, like);
  const auto kernel = product_blocks(pack.out_channels, pack.outputs) == 1 ? product_kernel<T, 1, Gradient>
                                                                           : product_kernel<T, 2, Gradient>;
  return launch(kernel, like.size[0] * a.tiles, kProductThreads, 0, stream, a);
}

template <class T>
Products<T> products_of(const PointwiseCall& call) {
  Products<T> a{};
  for (int i = 0; i < call.inputs; ++i) a.in[i] = map_of<T>(call.x[i]);
  a.has_shortcut = call.shortcut.data != nullptr;
  if (a.has_shortcut) a.shortcut = map_of<T>(call.shortcut);
  a.activation = static_cast<int>(call.activation), a.accuracy = static_cast<int>(call.accuracy);
  return a;
}

}  // namespace fastsr::cuda
