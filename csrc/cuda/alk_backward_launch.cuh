// The backward of alk_conv and alk_stage: nine kernels on scratch maps, one less where the forward kept its weights.
#pragma once

#include "alk_input_backward.cuh"
#include "alk_launch.cuh"
#include "alk_norm_backward.cuh"
#include "weight_gradient.cuh"

namespace fastsr::cuda {

// Where things lie in the workspace, in bytes.
struct AlkScratch {
  int64_t v, g[3], both, norm_sums, branch_sums, product_sums, end;
  int parts;
};

template <class T>
AlkScratch alk_scratch(const AlkCall& call) {
  const AlkShape s = alk_shape(call);
  const int64_t pixels = call.x.size[0] * s.h * s.w, k8 = padded_to_eight(s.k);
  const int64_t both = padded_to_eight(s.k) + s.d;
  AlkScratch at{};
  at.parts = static_cast<int>(s.tiles < kMaxParts ? s.tiles : kMaxParts);
  int64_t end = call.packed ? 0 : 4 * alk_pack_of<T>(call, true).at.end;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 127) / 128 * 128;
    return begin;
  };
  at.v = take(pixels * k8 * sizeof(T));
  for (int64_t& g : at.g) g = take(pixels * k8 * sizeof(T));
  at.both = take(pixels * padded_to_eight(static_cast<int>(both)) * sizeof(T));
  at.norm_sums = take(at.parts * 2 * s.k * sizeof(float));
  at.branch_sums = take(at.parts * s.k * (2 * s.taps + 12) * sizeof(float));
  at.product_sums = take(at.parts * both * (s.c + 1) * sizeof(float));
  at.end = end;
  return at;
}

template <class T>
cudaError_t start_norm_backward(const AlkNormBackward<T>& a, int parts, cudaStream_t stream) {
  const auto start = [&](auto kernel, int shared) { return launch(kernel, parts, kThreads, shared, stream, a); };
  switch (blocks_of(a.shape.k)) {
    case 1:
      return start(alk_norm_backward_kernel<T, 1>, norm_backward_shared<1>());
    case 2:
      return start(alk_norm_backward_kernel<T, 2>, norm_backward_shared<2>());
    default:
      return start(alk_norm_backward_kernel<T, 4>, norm_backward_shared<4>());
  }
}

template <class T, int S>
cudaError_t start_depthwise_backward(const AlkBranchBackward<T>& a, const AlkTransposed<T>& b, int parts,
                                     cudaStream_t stream) {
  constexpr int kBranch = branch_backward_shared<BackwardPlane<T, S>>(), kTransposed = TransposedPlane<T, S>::kBytes;
  static_assert(kBranch <= 99 * 1024 && kTransposed <= 99 * 1024);
  const cudaError_t error = launch(alk_branch_backward_kernel<T, S>, parts, kThreads, kBranch, stream, a);
  if (error != cudaSuccess) return error;
  return launch(alk_transposed_kernel<T, S>, b.shape.tiles, kThreads, kTransposed, stream, b);
}

// One gradient per parameter from the three sets of partial sums.
template <class T>
cudaError_t sum_alk_gradients(const AlkCall& call, const AlkScratch& at, const char* workspace, cudaStream_t stream) {
  const int64_t k = call.k, d = call.d, taps = call.taps, c = call.x.size[1], columns = 2 * taps + 12;
  const int64_t k8 = padded_to_eight(static_cast<int>(k)), both = k8 + d;
  const auto* norm = reinterpret_cast<const float*>(workspace + at.norm_sums);
  const auto* branch = reinterpret_cast<const float*>(workspace + at.branch_sums);
  const auto* product = reinterpret_cast<const float*>(workspace + at.product_sums);
  const int64_t branch_row = k * columns, product_row = both * (c + 1);
  const PartialSum all[11] = {
      {product, nullptr, d * c, d * c, 0, k8 * c, product_row},
      {product, nullptr, d, d, 0, both * c + k8, product_row},
      {product, nullptr, k * c, k * c, 0, 0, product_row},
      {branch, nullptr, k * taps, taps, columns, 0, branch_row},
      {branch, nullptr, k, 1, columns, 2 * taps + 9, branch_row},
      {branch, nullptr, k * taps, taps, columns, taps, branch_row},
      {branch, nullptr, k, 1, columns, 2 * taps + 10, branch_row},
      {branch, nullptr, k * 9, 9, columns, 2 * taps, branch_row},
      {branch, nullptr, k, 1, columns, 2 * taps + 11, branch_row},
      {norm, nullptr, k, k, 0, 0, 2 * k},
      {norm, nullptr, k, k, 0, k, 2 * k},
  };
  PartialSums sums{};
  sums.parts = at.parts;
  sums.dtype = static_cast<int>(call.parameter_dtype);
  int count = 0;
  for (int i = d > 0 ? 0 : 2; i < 11; ++i) {
    PartialSum sum = all[i];
    sum.to = call.gradients[i];
    add_sum(sums, &count, sum);
  }
  return sum_partials(sums, count, stream);
}

template <class T>
cudaError_t alk_backward_as(const AlkCall& call, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  const AlkScratch at = alk_scratch<T>(call);
  char* workspace = static_cast<char*>(call.workspace);
  AlkPack<T> packed;
  if (failed(packed_of(call, true, workspace, stream, &packed))) return error;
  const auto sums_at = [&](int64_t offset) { return reinterpret_cast<float*>(workspace + offset); };

  AlkForward<T> forward = alk_forward_of(call, packed);
  const AlkShape& s = forward.shape;
  const int k8 = padded_to_eight(s.k);
  const Map<T> v = scratch_map<T>(workspace + at.v, s, s.k);
  forward.y = v;
  forward.raw = 1;
  forward.shape.d = 0;
  if (failed(start_alk_forward(forward, 1, stream))) return error;

  using S = Stored<T>;
  AlkNormBackward<S> norm{};
  norm.shape = s;
  norm.v = scratch_map<S>(workspace + at.v, s, s.k);
  norm.grad = map_of<S>(call.y), norm.x = map_of<S>(call.x), norm.gz = map_of<S>(call.dx);
  norm.gamma = forward.vectors + 3 * blocks_of(s.k) * kBlock;
  norm.beta = norm.gamma + blocks_of(s.k) * kBlock;
  norm.partials = sums_at(at.norm_sums);
  norm.eps = forward.eps, norm.activation = forward.activation, norm.residual = forward.residual;
  if (failed(start_norm_backward(norm, at.parts, stream))) return error;

  AlkBranchBackward<T> branch{};
  AlkTransposed<T> transposed{};
  branch.shape = transposed.shape = s;
  branch.x = forward.x, branch.gv = v;
  for (int i = 0; i < 3; ++i) branch.g[i] = transposed.g[i] = scratch_map<T>(workspace + at.g[i], s, s.k);
  branch.rows = forward.rows, branch.filters = forward.filters, branch.vectors = forward.vectors;
  branch.partials = sums_at(at.branch_sums);
  AlkProducts<T> products{};
  products.shape = s;
  products.shape.d = static_cast<int>(call.d);
  products.both = scratch_map<T>(workspace + at.both, s, k8 + static_cast<int>(call.d));
  transposed.du = products.gd = products.both;
  transposed.du.channels = k8;
  transposed.filters = reinterpret_cast<const unsigned char*>(packed.to + packed.at.reversed);
  switch (alk_side(call.taps)) {
    case 24:
      error = start_depthwise_backward<T, 24>(branch, transposed, at.parts, stream);
      break;
    case 32:
      error = start_depthwise_backward<T, 32>(branch, transposed, at.parts, stream);
      break;
    case 40:
      error = start_depthwise_backward<T, 40>(branch, transposed, at.parts, stream);
      break;
    default:
      error = start_depthwise_backward<T, 48>(branch, transposed, at.parts, stream);
  }
  if (error != cudaSuccess) return error;

  products.x = forward.x, products.dx = map_of<T>(call.dx);
  products.distil = forward.distil, products.distil_bias = forward.distil_bias;
  products.back = reinterpret_cast<const unsigned char*>(packed.to + packed.at.back);
  products.residual = forward.residual;
  if (call.d > 0) {
    products.gd.data += k8;
    products.gd.channels = static_cast<int>(call.d);
    products.grad_distilled = map_of<T>(call.distilled);
    if (failed(launch(alk_distil_backward_kernel<T>, s.tiles, kThreads, 0, stream, products))) return error;
  }
  if (failed(launch(alk_input_gradient_kernel<T>, s.tiles, kThreads, 0, stream, products))) return error;

  WeightGradient<T> weight{};
  weight.shape = s;
  weight.a = products.both, weight.b[0] = forward.x;
  weight.maps = 1, weight.c = s.c;
  weight.partials = sums_at(at.product_sums);
  weight.parts = at.parts;
  if (failed(start_weight_gradient(weight, stream))) return error;
  return sum_alk_gradients<T>(call, at, workspace, stream);
}

}  // namespace fastsr::cuda
