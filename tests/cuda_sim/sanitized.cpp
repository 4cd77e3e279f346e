// A program for AddressSanitizer: the backward and forward of alk_stage on memory of exactly the size they need, and
// once more with weights that the forward keeps. With an argument, the image is said to be one row higher than it is,
// which must be found.
#include "alk_backward.cu"
#include "alk_forward.cu"

using namespace fastsr::cuda;

int main(int count, char**) {
  constexpr int64_t n = 1, c = 20, d = 12, h = 9, w = 18, taps = 9;
  for (const int kind : {0, 1, 2}) {  // float32, the same in TF32, float16
    const int64_t dtype = kind < 2 ? kFloat32 : kFloat16, bytes = kind < 2 ? 4 : 2;
    std::vector<void*> allocated;
    const auto memory = [&](int64_t elements) {
      void* m = std::malloc(elements * bytes);
      std::memset(m, 0, elements * bytes);
      allocated.push_back(m);
      return m;
    };
    const auto map = [&](int64_t channels, int64_t rows) {
      return TensorView{
          memory(n * channels * h * w), {n, channels, rows, w}, {h * w * channels, 1, w * channels, channels}};
    };
    AlkCall call{};
    call.dtype = call.parameter_dtype = dtype;
    call.tf32 = kind == 1;
    call.k = c, call.d = d, call.taps = taps, call.activation = 1, call.residual = 1, call.eps = 1e-6;
    const int64_t sizes[11] = {d * c, d, c * c, c * taps, c, c * taps, c, c * 9, c, c, c};
    for (int i = 0; i < 11; ++i) call.parameters[i] = memory(sizes[i]), call.gradients[i] = memory(sizes[i]);
    call.x = map(c, count > 1 ? h + 1 : h), call.y = map(c, h), call.dx = map(c, h), call.distilled = map(d, h);
    const auto run = [&](int64_t size, cudaError_t (*function)(const AlkCall&, cudaStream_t)) {
      if (posix_memalign(&call.workspace, 16, size)) std::exit(3);
      if (const char* error = function(call, nullptr)) std::puts(error), std::exit(2);
      std::free(call.workspace);
    };
    run(alk_forward_workspace(call), alk_forward);
    run(alk_backward_workspace(call), alk_backward);
    call.keeps = 1;
    void* packed = nullptr;
    if (posix_memalign(&packed, 16, alk_packed_bytes(call))) std::exit(3);
    if (const char* error = alk_pack(call, packed, nullptr)) std::puts(error), std::exit(2);
    call.packed = packed;
    run(alk_forward_workspace(call), alk_forward);
    run(alk_backward_workspace(call), alk_backward);
    std::free(packed);
    for (void* m : allocated) std::free(m);
  }
  std::puts("clean");
}
