// A program for AddressSanitizer, as sanitized.cpp: the operators around the ALK stage.
#include "alk_condense_forward.cu"
#include "alk_together.cu"
#include "cca_norm_backward.cu"
#include "cca_norm_forward.cu"
#include "esa_backward.cu"
#include "esa_cca_forward.cu"
#include "esa_forward.cu"
#include "pixel_norm_backward.cu"
#include "pixel_norm_forward.cu"
#include "pointwise_backward.cu"
#include "pointwise_forward.cu"
#include "pointwise_reduce_forward.cu"

using namespace fastsr::cuda;

namespace {

constexpr int64_t kN = 2, kH = 16, kW = 18;

// Memory of exactly the size that was asked for.
struct Memory {
  int64_t dtype;
  std::vector<void*> allocated;

  explicit Memory(int64_t d) : dtype(d) {}
  ~Memory() {
    for (void* m : allocated) std::free(m);
  }
  void* bytes(int64_t size) {
    void* m = nullptr;
    if (posix_memalign(&m, 16, size)) std::exit(3);
    std::memset(m, 0, size);
    allocated.push_back(m);
    return m;
  }
  void* elements(int64_t count) { return bytes(count * (dtype == kFloat32 ? 4 : 2)); }
  TensorView map(int64_t c, int64_t more_rows = 0) {
    return {elements(kN * c * kH * kW), {kN, c, kH + more_rows, kW}, {kH * kW * c, 1, kW * c, c}};
  }
};

template <class Call>
void run(Memory& m, Call& call, int64_t size, cudaError_t (*function)(const Call&, cudaStream_t)) {
  call.workspace = m.bytes(size);
  if (const char* error = function(call, nullptr)) std::puts(error), std::exit(2);
}

void pointwise(int64_t dtype, int64_t more_rows, int64_t tf32) {
  constexpr int64_t k = 40, channels[2] = {32, 20};
  Memory m(dtype);
  PointwiseCall call{};
  call.tf32 = tf32;
  call.dtype = call.parameter_dtype = dtype;
  call.inputs = 2, call.activation = kGelu;
  call.weight = m.elements(k * 52), call.bias = m.elements(k);
  call.d_weight = m.elements(k * 52), call.d_bias = m.elements(k);
  for (int i = 0; i < 2; ++i) call.x[i] = m.map(channels[i], more_rows), call.dx[i] = m.map(channels[i], more_rows);
  call.y = m.map(k, more_rows), call.shortcut = m.map(k, more_rows);
  run(m, call, pointwise_forward_workspace(call), pointwise_forward);
  run(m, call, pointwise_backward_workspace(call), pointwise_backward);
}

void pointwise_reduce(int64_t dtype, int64_t more_rows, int64_t tf32) {
  constexpr int64_t k = 40, inner = 12, channels[2] = {32, 20};
  Memory m(dtype);
  PointwiseReduceCall call{};
  call.c5.tf32 = tf32;
  call.c5.dtype = call.c5.parameter_dtype = dtype;
  call.c5.inputs = 2;
  call.c5.weight = m.elements(k * 52), call.c5.bias = m.elements(k);
  for (int i = 0; i < 2; ++i) call.c5.x[i] = m.map(channels[i], more_rows);
  call.c5.y = m.map(k, more_rows), call.reduced = m.map(16, more_rows);
  call.inner = inner;
  call.parameters[0] = m.elements(inner * k), call.parameters[1] = m.elements(inner);
  run(m, call, pointwise_reduce_forward_workspace(call), pointwise_reduce_forward);
  void* packed = m.bytes(pointwise_reduce_packed_bytes(call));
  if (const char* error = pointwise_reduce_pack(call, packed, nullptr)) std::puts(error), std::exit(2);
  call.packed = packed;
  run(m, call, 0, pointwise_reduce_forward);
}

void cca_norm(int64_t dtype, int64_t more_rows) {
  constexpr int64_t c = 20, r = 3, sizes[6] = {r * c, r, c * r, c, c, c};
  Memory m(dtype);
  CcaCall call{};
  call.dtype = call.parameter_dtype = dtype;
  call.hidden = r, call.eps = 1e-5;
  for (int i = 0; i < 6; ++i) call.parameters[i] = m.elements(sizes[i]), call.gradients[i] = m.elements(sizes[i]);
  call.x = m.map(c, more_rows), call.shortcut = m.map(c, more_rows);
  call.y = m.map(c, more_rows), call.dx = m.map(c, more_rows);
  call.statistics = static_cast<double*>(m.bytes(kN * 2 * c * 8));
  run(m, call, cca_norm_forward_workspace(call), cca_norm_forward);
  run(m, call, cca_norm_backward_workspace(call), cca_norm_backward);
}

EsaCall esa_call(Memory& m, int64_t more_rows, int64_t tf32) {
  constexpr int64_t c = 20, f = 12;
  EsaCall call{};
  call.dtype = call.parameter_dtype = m.dtype;
  call.f = f, call.padding = 1, call.count = 18, call.tf32 = tf32;
  for (int i = 0; i < 18; ++i) {
    const int64_t in_conv = (i - 2) % 3;  // of a blueprint convolution
    int64_t size = in_conv == 0 ? f * f : in_conv == 1 ? f * 9 : f;
    if (i == 0 || i == 16) size = c * f;
    if (i == 1 || i == 15) size = f;
    if (i == 17) size = c;
    call.parameters[i] = m.elements(size), call.gradients[i] = m.elements(size);
  }
  call.x = m.map(c, more_rows), call.y = m.map(c, more_rows), call.dx = m.map(c, more_rows);
  return call;
}

void esa(int64_t dtype, int64_t more_rows, int64_t tf32) {
  Memory m(dtype);
  EsaCall call = esa_call(m, more_rows, tf32);
  run(m, call, esa_forward_workspace(call), esa_forward);
  run(m, call, esa_backward_workspace(call), esa_backward);
  call.reduced = m.map(16, more_rows);
  run(m, call, esa_forward_workspace(call), esa_forward);
}

void esa_cca(int64_t dtype, int64_t more_rows, int64_t tf32) {
  constexpr int64_t c = 20, r = 3, sizes[6] = {r * c, r, c * r, c, c, c};
  Memory m(dtype);
  EsaCcaCall call{};
  call.esa = esa_call(m, more_rows, tf32);
  call.shortcut = m.map(c, more_rows);
  call.hidden = r, call.eps = 1e-5;
  for (int i = 0; i < 6; ++i) call.cca[i] = m.elements(sizes[i]);
  run(m, call, esa_cca_forward_workspace(call), esa_cca_forward);
  call.esa.reduced = m.map(16, more_rows);
  run(m, call, esa_cca_forward_workspace(call), esa_cca_forward);
}

// Without maps.
AlkCondenseCall condense_call(Memory& m) {
  constexpr int64_t c = 20, k = 12, d = 9, outputs = 20, inner = 12, taps = 9;
  constexpr int64_t sizes[9] = {k * c, k * taps, k, k * taps, k, k * 9, k, k, k};
  AlkCondenseCall call{};
  call.alk.dtype = call.alk.parameter_dtype = m.dtype;
  call.alk.k = k, call.alk.taps = taps, call.alk.activation = 1, call.alk.eps = 1e-6;
  for (int i = 0; i < 9; ++i) call.alk.parameters[2 + i] = m.elements(sizes[i]);
  call.alk.x.size[1] = c;
  call.d = d, call.outputs = outputs, call.inner = inner;
  const int64_t rest[4] = {outputs * (3 * d + k), outputs, inner * outputs, inner};
  for (int i = 0; i < 4; ++i) call.parameters[i] = m.elements(rest[i]);
  return call;
}

void alk_condense(int64_t dtype, int64_t more_rows, int64_t tf32) {
  Memory m(dtype);
  AlkCondenseCall call = condense_call(m);
  call.alk.tf32 = tf32;
  call.alk.x = m.map(call.alk.x.size[1], more_rows);
  for (TensorView& map : call.maps) map = m.map(call.d, more_rows);
  call.y = m.map(call.outputs, more_rows), call.reduced = m.map(16, more_rows);
  run(m, call, alk_condense_forward_workspace(call), alk_condense_forward);
}

// One part more than a launch takes, with weights of alk_condense and without.
void alk_together(int64_t dtype) {
  Memory m(dtype);
  std::vector<AlkPart> parts;
  for (int i = 0; i <= kMostTogether; ++i) {
    AlkPart& part = parts.emplace_back(condense_call(m));
    if (i % 2) part.outputs = 0;
    part.workspace = m.bytes(alk_part_bytes(part));
  }
  const cudaError_t error = alk_pack_together(parts.data(), static_cast<int64_t>(parts.size()), nullptr);
  if (error) std::puts(error), std::exit(2);
}

void pixel_norm(int64_t dtype, int64_t more_rows) {
  constexpr int64_t c = 20;
  Memory m(dtype);
  PixelNormCall call{};
  call.dtype = call.parameter_dtype = dtype;
  call.eps = 1e-6;
  call.weight = m.elements(c), call.bias = m.elements(c), call.d_weight = m.elements(c), call.d_bias = m.elements(c);
  call.x = m.map(c, more_rows), call.y = m.map(c, more_rows), call.dx = m.map(c, more_rows);
  run(m, call, 0, pixel_norm_forward);
  run(m, call, pixel_norm_backward_workspace(call), pixel_norm_backward);
}

}  // namespace

int main(int count, char**) {
  pointwise(kFloat32, count > 1, 1);
  alk_condense(kFloat32, count > 1, 1);
  pointwise_reduce(kFloat32, count > 1, 1);
  esa(kFloat32, count > 1, 1);
  esa_cca(kFloat32, count > 1, 1);
  for (const int64_t dtype : {kFloat32, kFloat16}) {
    pointwise(dtype, count > 1, 0);
    pointwise_reduce(dtype, count > 1, 0);
    cca_norm(dtype, count > 1);
    esa(dtype, count > 1, 0);
    esa_cca(dtype, count > 1, 0);
    alk_condense(dtype, count > 1, 0);
    alk_together(dtype);
    pixel_norm(dtype, count > 1);
  }
  std::puts("clean");
}
