// The side path again, the gate's gradients, back through the side path, and sums over pixels for the parameters'.
#include "esa_launch.cuh"
#include "esa_low_backward.cuh"
#include "partials.cuh"
#include "weight_gradient.cuh"

namespace fastsr::cuda {
namespace {

// Rows of partial sums, one after the other: conv1's, conv_f's, conv4's, conv2's, then the small convolutions'.
struct EsaSums {
  int64_t row[7], begin[7];  // in numbers, of a row, of the first one
  int64_t end;
  int parts;
};

AlkShape tiles_of(int64_t n, int h, int w) {
  AlkShape s{};
  s.h = h, s.w = w;
  s.tiles_x = (w + kTile - 1) / kTile, s.tiles_y = (h + kTile - 1) / kTile;
  s.tiles = n * s.tiles_x * s.tiles_y;
  return s;
}

EsaSums sums_of(const EsaShape& s) {
  EsaSums sums{};
  const int64_t tiles = tiles_of(s.n, s.h, s.w).tiles, wide = s.wide;
  sums.parts = static_cast<int>(tiles < kMaxParts ? tiles : kMaxParts);
  const int64_t rows[7] = {
      wide * (s.c + 1),        wide * (wide + 1),       s.c * (wide + 1),       wide * (kEsaTaps * wide + 1),
      esa_layer_words(s.wide), esa_layer_words(s.wide), esa_layer_words(s.wide)};
  for (int i = 0; i < 4 + s.layers; ++i) {
    sums.row[i] = rows[i];
    sums.begin[i] = sums.end;
    sums.end += rows[i] * sums.parts;
  }
  return sums;
}

template <class T>
EsaPack<T> pack_of(const EsaCall& call) {
  const EsaShape s = esa_shape(call);
  EsaPack<T> a{};
  a.w = esa_weights(call);
  a.c = s.c, a.f = s.f, a.wide = s.wide, a.layers = s.layers, a.h = s.h, a.width = s.w;
  const int64_t of_c = product_block_bytes<T>(s.c) / 4, of_f = product_block_bytes<T>(s.f) / 4, blocks = blocks_of(s.c);
  EsaPacked& at = a.at;
  at.wf = 0;
  at.w4 = at.wf + of_f;
  at.bf = at.w4 + blocks * of_f;
  at.b4 = at.bf + kBlock;
  at.small = at.b4 + blocks * kBlock;
  at.w1t = at.small + s.layers * esa_layer_words(s.wide);
  at.w2t = at.w1t + blocks * of_f;
  at.wft = at.w2t + kEsaTaps * of_f;
  at.w4t = at.wft + of_f;
  at.end = at.w4t + of_c;
  a.border_parts = s.n * (2 * (static_cast<int64_t>(s.w) + 2) + 2 * s.h) * s.wide * static_cast<int>(sizeof(T)) / 16;
  return a;
}

// Where things lie in the workspace, in bytes.
struct EsaScratch {
  EsaMaps maps;
  int64_t packed, q, m, index, other, z, dz, dgate, dlow, dc1, sums, dense, end;
};

template <class T>
EsaScratch backward_scratch(const EsaCall& call) {
  const EsaShape s = esa_shape(call);
  constexpr int64_t kNumber = sizeof(float), kElement = sizeof(T);
  Sections sections;
  EsaScratch at{};
  at.maps = esa_maps(call, 1, sections);
  at.packed = sections.take(4 * pack_of<T>(call).at.end);
  const int64_t small = esa_cells(s, s.small_h, s.small_w) * kNumber, map = esa_cells(s, s.h, s.w) * kElement;
  at.q = sections.take(2 * small), at.m = sections.take(small), at.index = sections.take(small);
  at.other = sections.take(small);
  at.z = sections.take(map), at.dz = sections.take(map), at.dc1 = sections.take(map);
  at.dgate = sections.take(scratch_bytes(call.x, s.c, kElement));
  at.dlow = sections.take(esa_cells(s, s.h2, s.w2) * kElement);
  at.sums = sections.take(sums_of(s).end * kNumber);
  at.dense = sections.take((1 + s.layers) * kEsaTaps * s.wide * s.wide * kNumber);
  at.end = sections.end;
  return at;
}

// c1 has a margin of zeros, which the gradients of conv2's weights read.
template <class T>
Map<T> c1_within_margin(void* data, const EsaShape& s) {
  Map<T> c1 = esa_map<T>(data, s, s.h + 2, s.w + 2);
  c1.data += c1.h_stride + c1.w_stride;
  return c1;
}

template <class T>
using EsaGradient = WeightGradient<T, kEsaTaps>;

template <class T>
EsaGradient<T> matrix_gradient(const Map<T>& g, const Map<T>& v, const EsaShape& s, float* to, int parts) {
  EsaGradient<T> w{};
  w.shape = tiles_of(s.n, s.h, s.w);
  w.a = g, w.b[0] = v, w.maps = 1, w.c = v.channels;
  w.partials = to, w.parts = parts;
  return w;
}

// conv2's: the nine taps are nine maps of every other pixel of c1.
template <class T>
EsaGradient<T> conv2_gradient(const Esa<T>& a, float* to) {
  EsaGradient<T> w{};
  w.shape = tiles_of(a.s.n, a.s.h2, a.s.w2);
  w.a = a.dlow;
  w.maps = kEsaTaps, w.c = kEsaTaps * a.s.wide;
  for (int tap = 0; tap < kEsaTaps; ++tap) {
    Map<T>& m = w.b[tap] = a.c1;
    m.data += (tap / 3 - a.s.padding) * m.h_stride + (tap % 3 - a.s.padding) * m.w_stride;
    m.h_stride *= 2, m.w_stride *= 2;
  }
  w.partials = to, w.parts = a.parts;
  return w;
}

// Partial sums to gradients; those of 3x3 convolutions by way of dense ones.
template <class T>
cudaError_t finish_gradients(const EsaCall& call, const EsaPack<T>& pack, const EsaSums& at, const float* rows,
                             float* dense, cudaStream_t stream) {
  const EsaShape s = esa_shape(call);
  const int64_t f = s.f, wide = s.wide, c = s.c, count = call.count;
  PartialSums all{};
  all.parts = at.parts, all.dtype = static_cast<int>(call.parameter_dtype);
  int sums = 0;
  const auto add = [&](int which, int64_t parameter, int64_t elements, int64_t width, int64_t pitch, int64_t begin) {
    add_sum(all, &sums,
            {rows + at.begin[which], call.gradients[parameter], elements, width, pitch, begin, at.row[which]});
  };
  add(0, 0, f * c, f * c, 0, 0);
  add(0, 1, f, f, 0, wide * c);
  add(1, count - 4, f * f, f, wide, 0);
  add(1, count - 3, f, f, 0, wide * wide);
  add(2, count - 2, c * f, f, wide, 0);
  add(2, count - 1, c, c, 0, c * wide);
  EsaUnfold unfold{};
  unfold.sums = dense;
  unfold.f = s.f, unfold.wide = s.wide, unfold.count = 1 + s.layers, unfold.dtype = all.dtype;
  const int64_t elements = kEsaTaps * wide * wide;
  for (int i = 0; i <= s.layers; ++i) {
    const EsaPlaces places = esa_places(call, i);
    add(3 + i, places.bias, f, f, 0, elements);
    add_sum(all, &sums,
            {rows + at.begin[3 + i], dense + i * elements, elements, elements, 0, 0, at.row[3 + i], 1, true});
    unfold.conv[i] = pack.w.conv[i];
    unfold.d_w[i] = call.gradients[places.w];
    if (places.dw >= 0) unfold.d_dw[i] = call.gradients[places.dw];
  }
  const cudaError_t error = sum_partials(all, sums, stream);
  if (error != cudaSuccess) return error;
  return launch(esa_unfold_kernel<kProductThreads>, 1 + s.layers, kProductThreads, 0, stream, unfold);
}

template <class T>
cudaError_t backward_as(const EsaCall& call, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  const auto failed = [&](cudaError_t e) { return (error = e) != cudaSuccess; };
  const EsaScratch at = backward_scratch<T>(call);
  Esa<T> a = esa_of<T>(call);
  const EsaShape& s = a.s;
  char* workspace = static_cast<char*>(call.workspace);
  const auto floats = [&](int64_t offset) { return reinterpret_cast<float*>(workspace + offset); };
  EsaPack<T> pack = pack_of<T>(call);
  pack.to = reinterpret_cast<uint32_t*>(workspace + at.packed);
  pack.border = reinterpret_cast<uint4*>(workspace + at.maps.c1);
  const auto words = [&](int64_t offset) { return reinterpret_cast<unsigned char*>(pack.to + offset); };
  a.wf = words(pack.at.wf), a.w4 = words(pack.at.w4), a.bf = floats(at.packed) + pack.at.bf;
  a.b4 = floats(at.packed) + pack.at.b4, a.small = floats(at.packed) + pack.at.small;
  a.w1t = words(pack.at.w1t), a.w2t = words(pack.at.w2t), a.wft = words(pack.at.wft), a.w4t = words(pack.at.w4t);
  a.c1 = c1_within_margin<T>(workspace + at.maps.c1, s), a.out = esa_small_maps(workspace + at.maps.out, s);
  a.q = esa_small_maps(workspace + at.q, s, 2), a.m = esa_small_maps(workspace + at.m, s);
  a.index = reinterpret_cast<int*>(workspace + at.index);
  if (failed(launch(esa_pack_kernel<T>, (pack.at.end + pack.border_parts + kProductThreads - 1) / kProductThreads,
                    kProductThreads, 0, stream, pack)))
    return error;
  if (failed(start_esa_reduce(a, stream))) return error;
  if (failed(start_esa_small(a, stream))) return error;

  a.grad = map_of<T>(call.y), a.dx = map_of<T>(call.dx);
  a.z = esa_map<T>(workspace + at.z, s, s.h, s.w), a.dz = esa_map<T>(workspace + at.dz, s, s.h, s.w);
  a.dc1 = esa_map<T>(workspace + at.dc1, s, s.h, s.w);
  a.dgate = map_of<T>(scratch_like(call.x, workspace + at.dgate, s.c, sizeof(T)));
  a.dlow = esa_map<T>(workspace + at.dlow, s, s.h2, s.w2);
  if (failed(launch(esa_gate_backward_kernel<T>, s.n * a.tiles, kProductThreads, 0, stream, a))) return error;

  const EsaSums sums = sums_of(s);
  float* rows = floats(at.sums);
  a.parts = sums.parts;
  const int64_t small = s.n * s.small_h * s.small_w, warps = kProductThreads / 32;
  float *from = a.out, *to = esa_small_maps(workspace + at.other, s);  // `out` is of no use any more
  using S = Stored<T>;
  Esa<S> gathered = esa_of<S>(call);
  gathered.dz = esa_map<S>(workspace + at.dz, s, s.h, s.w);
  gathered.dlow = esa_map<S>(workspace + at.dlow, s, s.h2, s.w2);
  gathered.index = a.index, gathered.d_to = from;
  if (failed(launch(esa_enlarge_backward_kernel<S>, (small + warps - 1) / warps, kProductThreads, 0, stream, gathered)))
    return error;
  for (a.layer = s.layers; a.layer > 0; --a.layer) {
    a.d_from = from, a.d_to = to, a.partials = rows + sums.begin[3 + a.layer];
    if (failed(launch(esa_small_backward_kernel<T>, a.parts, kProductThreads, esa_small_backward_shared(s), stream, a)))
      return error;
    float* other = from;
    from = to, to = other;
  }
  gathered.d_from = from;
  const int64_t items = s.n * s.h2 * s.w2 * (s.wide / 8);
  if (failed(launch(esa_pool_backward_kernel<S>, (items + kProductThreads - 1) / kProductThreads, kProductThreads, 0,
                    stream, gathered)))
    return error;
  if (failed(launch(esa_input_backward_kernel<T>, s.n * a.tiles, kProductThreads, 0, stream, a))) return error;

  WeightGradients<T, kEsaTaps, 4> weights{};
  weights.each[0] = matrix_gradient(a.dc1, a.x, s, rows + sums.begin[0], a.parts);
  weights.each[1] = matrix_gradient(a.dz, a.c1, s, rows + sums.begin[1], a.parts);
  weights.each[2] = matrix_gradient(a.dgate, a.z, s, rows + sums.begin[2], a.parts);
  weights.each[3] = conv2_gradient(a, rows + sums.begin[3]);
  if (failed(start_weight_gradients(weights, stream))) return error;
  return finish_gradients(call, pack, sums, rows, floats(at.dense), stream);
}

}  // namespace

int64_t esa_backward_workspace(const EsaCall& call) {
  return call.dtype == kFloat32 ? backward_scratch<float>(call).end : backward_scratch<Half>(call).end;
}

cudaError_t esa_backward(const EsaCall& call, cudaStream_t stream) {
  return with_numbers(call.dtype, call.tf32, [&](auto type) { return backward_as<decltype(type)>(call, stream); });
}

}  // namespace fastsr::cuda
