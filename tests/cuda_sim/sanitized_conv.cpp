// A program for AddressSanitizer: conv3x3_gelu's forward and backward on memory of exactly the size they need.
// With an argument, the image is said to be one row higher than it is, which must be found.
#include "conv3x3_backward.cu"
#include "conv3x3_forward.cu"

using namespace fastsr::cuda;

int main(int count, char**) {
  constexpr int64_t n = 2, c = 5, k = 58, h = 9, w = 18;
  for (const int64_t dtype : {kFloat32, kFloat16}) {
    const int64_t bytes = dtype == kFloat32 ? 4 : 2;
    std::vector<void*> allocated;
    const auto memory = [&](int64_t size) {
      void* m = nullptr;
      if (posix_memalign(&m, 16, size)) std::exit(3);
      std::memset(m, 0, size);
      allocated.push_back(m);
      return m;
    };
    const auto map = [&](int64_t channels, int64_t rows) {
      return TensorView{
          memory(n * channels * h * w * bytes), {n, channels, rows, w}, {h * w * channels, 1, w * channels, channels}};
    };
    Conv3x3Call call{};
    call.dtype = call.parameter_dtype = dtype;
    call.activation = kGelu;
    call.weight = memory(k * c * 9 * bytes), call.bias = memory(k * bytes);
    call.d_weight = memory(k * c * 9 * bytes), call.d_bias = memory(k * bytes);
    call.x = map(c, count > 1 ? h + 1 : h), call.y = map(k, h), call.shortcut = map(k, h), call.dx = map(c, h);
    call.workspace = memory(conv3x3_workspace(call));
    for (const char* error : {conv3x3_forward(call, nullptr), conv3x3_backward(call, nullptr)})
      if (error) std::puts(error), std::exit(2);
    for (void* m : allocated) std::free(m);
  }
  std::puts("clean");
}
