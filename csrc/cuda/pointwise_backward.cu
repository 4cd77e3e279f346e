// g = grad act'(pre), the inputs' gradients g W_i, and sums over pixels for the parameters'.
#include "partials.cuh"
#include "pointwise_launch.cuh"

namespace fastsr::cuda {
namespace {

// Where things lie in the workspace, in bytes.
struct Scratch {
  int64_t packed, transposed, g, sums, row;
  int64_t end;
  int parts;
};

AlkShape shape_of(const TensorView& x) {
  AlkShape s{};
  s.h = static_cast<int>(x.size[2]), s.w = static_cast<int>(x.size[3]);
  s.tiles_x = (s.w + kTile - 1) / kTile, s.tiles_y = (s.h + kTile - 1) / kTile;
  s.tiles = x.size[0] * s.tiles_x * s.tiles_y;
  return s;
}

template <class T>
WeightGradient<T, kMaxMaps> gradient_of(const PointwiseCall& call, const TensorView& g) {
  WeightGradient<T, kMaxMaps> w{};
  w.shape = shape_of(call.y);
  w.a = map_of<T>(g);
  w.maps = static_cast<int>(call.inputs);
  for (int i = 0; i < w.maps; ++i) {
    w.b[i] = map_of<T>(call.x[i]);
    w.c += w.b[i].channels;
  }
  return w;
}

template <class T>
Scratch scratch_of(const PointwiseCall& call) {
  Scratch at{};
  Sections sections;
  at.packed = sections.take(pack_bytes(pack_of<T>(call, false)));
  at.transposed = sections.take(pack_bytes(pack_of<T>(call, true)));
  const int64_t k = call.y.size[1];
  const bool own = call.activation != kNone && call.d_shortcut.data == nullptr;
  at.g = sections.take(own ? scratch_bytes(call.y, k, sizeof(T)) : 0);
  const WeightGradient<T, kMaxMaps> w = gradient_of<T>(call, call.y);
  at.parts = sum_parts(w.shape.tiles, weight_gradient_blocks(w));
  at.row = k * (w.c + 1);
  at.sums = sections.take(at.parts * at.row * static_cast<int64_t>(sizeof(float)));
  at.end = sections.end;
  return at;
}

template <class T>
cudaError_t backward_as(const PointwiseCall& call, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  const Scratch at = scratch_of<T>(call);
  char* workspace = static_cast<char*>(call.workspace);
  ProductPacks packs{{pack_of<T>(call, true, workspace + at.transposed)}};
  if (call.activation != kNone) packs.each[1] = pack_of<T>(call, false, workspace + at.packed);
  if (failed(start_packs<T>(packs, stream))) return error;
  TensorView g = call.y;
  if (call.activation != kNone) {
    g = call.d_shortcut.data ? call.d_shortcut : scratch_like(call.y, workspace + at.g, call.y.size[1], sizeof(T));
    Products<T> a = products_of<T>(call);
    a.grad = map_of<T>(call.y);
    a.out[0] = map_of<T>(g);
    if (failed(start_product<T, true>(packs.each[1], a, call.y, stream))) return error;
  }
  Products<T> back{};
  back.in[0] = map_of<T>(g);
  for (int i = 0; i < call.inputs; ++i) back.out[i] = map_of<T>(call.dx[i]);
  if (failed(start_product<T, false>(packs.each[0], back, call.y, stream))) return error;

  WeightGradient<T, kMaxMaps> w = gradient_of<T>(call, g);
  w.partials = reinterpret_cast<float*>(workspace + at.sums);
  w.parts = at.parts;
  if (failed(start_weight_gradient(w, stream))) return error;
  PartialSums sums{};
  sums.parts = at.parts, sums.dtype = static_cast<int>(call.parameter_dtype);
  int count = 0;
  const int64_t k = call.y.size[1], elements = k * w.c;
  add_sum(sums, &count, {w.partials, call.d_weight, elements, elements, 0, 0, at.row});
  add_sum(sums, &count, {w.partials, call.d_bias, k, k, 0, elements, at.row});
  return sum_partials(sums, count, stream);
}

}  // namespace

int64_t pointwise_backward_workspace(const PointwiseCall& call) {
  return call.dtype == kFloat32 ? scratch_of<float>(call).end : scratch_of<Half>(call).end;
}

cudaError_t pointwise_backward(const PointwiseCall& call, cudaStream_t stream) {
  switch (call.dtype) {
    case kFloat32:
      return call.tf32 ? backward_as<Tf32>(call, stream) : backward_as<float>(call, stream);
    case kFloat16:
      return backward_as<Half>(call, stream);
    default:
      return backward_as<BFloat16>(call, stream);
  }
}

}  // namespace fastsr::cuda
