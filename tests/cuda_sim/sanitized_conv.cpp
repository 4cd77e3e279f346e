// A program for AddressSanitizer: forward and backward of bsconv, conv3x3_gelu, conv_mix (and conv_mix_reduce) and
// upsample on memory of exactly the size they need. With an argument, the image is said to be one row higher than it
// is, which must be found.
#include "bsconv_backward.cu"
#include "bsconv_forward.cu"
#include "conv3x3_backward.cu"
#include "conv3x3_forward.cu"
#include "conv_mix_backward.cu"
#include "conv_mix_forward.cu"
#include "conv_mix_reduce_forward.cu"
#include "upsample_backward.cu"
#include "upsample_forward.cu"

using namespace fastsr::cuda;

namespace {

constexpr int64_t kN = 2, kC = 5, kK = 58, kH = 9, kW = 18;

// Zeros, freed at the end.
struct Memory {
  int64_t bytes;  // of an element
  std::vector<void*> allocated;

  void* operator()(int64_t size) {
    void* m = nullptr;
    if (posix_memalign(&m, 16, size)) std::exit(3);
    std::memset(m, 0, size);
    allocated.push_back(m);
    return m;
  }
  void* elements(int64_t count) { return (*this)(count * bytes); }
  TensorView map(int64_t channels, int64_t rows = kH, int64_t scale = 1) {
    const int64_t h = kH * scale, w = kW * scale;
    return {elements(kN * channels * h * w),
            {kN, channels, rows * scale, w},
            {h * w * channels, 1, w * channels, channels}};
  }
  ~Memory() {
    for (void* m : allocated) std::free(m);
  }
};

void check(cudaError_t error) {
  if (error) std::puts(error), std::exit(2);
}

void run_conv3x3(int64_t dtype, int64_t rows, int64_t tf32) {
  Memory memory{dtype == kFloat32 ? 4 : 2, {}};
  Conv3x3Call call{};
  call.tf32 = tf32;
  call.dtype = call.parameter_dtype = dtype;
  call.activation = kGelu;
  call.weight = memory.elements(kK * kC * 9), call.bias = memory.elements(kK);
  call.d_weight = memory.elements(kK * kC * 9), call.d_bias = memory.elements(kK);
  call.x = memory.map(kC, rows), call.y = memory.map(kK), call.shortcut = memory.map(kK), call.dx = memory.map(kC);
  call.workspace = memory(conv3x3_workspace(call));
  check(conv3x3_forward(call, nullptr));
  check(conv3x3_backward(call, nullptr));
}

void run_conv_mix(int64_t dtype, int64_t tf32) {
  Memory memory{dtype == kFloat32 ? 4 : 2, {}};
  ConvMixCall call{};
  call.tf32 = tf32;
  call.dtype = call.parameter_dtype = dtype;
  call.activation = kGelu;
  const int64_t sizes[6] = {kC * 9, kC, kC * kC, kC, kK * kC, kK};
  for (int i = 0; i < 6; ++i) {
    call.parameters[i] = memory.elements(sizes[i]);
    call.gradients[i] = memory.elements(sizes[i]);
  }
  call.x = memory.map(kC), call.shortcut = memory.map(kC), call.y = memory.map(kK);
  call.dx = memory.map(kC), call.d_shortcut = memory.map(kC);
  call.workspace = memory(conv_mix_workspace(call));
  check(conv_mix_forward(call, nullptr));
  check(conv_mix_backward(call, nullptr));
  ConvMixReduceCall reducing{};
  reducing.mix = call, reducing.inner = 12;
  reducing.parameters[0] = memory.elements(12 * kK), reducing.parameters[1] = memory.elements(12);
  reducing.reduced = memory.map(kMostMixReduced);
  check(conv_mix_reduce_forward(reducing, nullptr));
}

void run_bsconv(int64_t dtype, int64_t channels, int64_t tf32) {
  Memory memory{dtype == kFloat32 ? 4 : 2, {}};
  BsconvCall call{};
  call.tf32 = tf32;
  call.dtype = call.parameter_dtype = dtype;
  call.activation = kGelu;
  call.pw = memory.elements(channels * channels), call.d_pw = memory.elements(channels * channels);
  call.dw = memory.elements(channels * 9), call.d_dw = memory.elements(channels * 9);
  call.dw_bias = memory.elements(channels), call.d_bias = memory.elements(channels);
  call.x = memory.map(channels), call.y = memory.map(channels), call.shortcut = memory.map(channels);
  check(bsconv_forward(call, nullptr));
  BsconvCall stage = call;
  stage.distil = memory.elements(7 * channels), stage.distil_bias = memory.elements(7);
  stage.distilled = memory.map(7);
  check(bsconv_forward(stage, nullptr));
  stage.dx = memory.map(channels);
  stage.d_distil = memory.elements(7 * channels), stage.d_distil_bias = memory.elements(7);
  stage.workspace = memory(bsconv_workspace(stage));
  check(bsconv_backward(stage, nullptr));
  call.dx = memory.map(channels), call.d_shortcut = memory.map(channels);
  call.workspace = memory(bsconv_workspace(call));
  check(bsconv_backward(call, nullptr));
}

void run_upsample(int64_t dtype, int64_t tf32) {
  constexpr int64_t kScale = 3, kOut = 3 * kScale * kScale;
  Memory memory{dtype == kFloat32 ? 4 : 2, {}};
  UpsampleCall call{};
  call.dtype = call.parameter_dtype = dtype;
  call.scale = kScale, call.residual = kBilinear, call.tf32 = tf32;
  call.weight = memory.elements(kOut * kC * 9), call.bias = memory.elements(kOut);
  call.d_weight = memory.elements(kOut * kC * 9), call.d_bias = memory.elements(kOut);
  call.x = memory.map(kC), call.dx = memory.map(kC), call.y = memory.map(3, kH, kScale);
  call.lr = memory.map(3), call.d_lr = memory.map(3);
  call.workspace = memory(upsample_workspace(call));
  check(upsample_forward(call, nullptr));
  check(upsample_backward(call, nullptr));
}

}  // namespace

int main(int count, char**) {
  run_conv3x3(kFloat32, count > 1 ? kH + 1 : kH, 1);
  run_upsample(kFloat32, 1);
  run_conv_mix(kFloat32, 1);
  run_bsconv(kFloat32, kC, 1);
  run_bsconv(kFloat32, kK, 1);
  for (const int64_t dtype : {kFloat32, kFloat16}) {
    run_conv3x3(dtype, count > 1 ? kH + 1 : kH, 0);
    run_conv_mix(dtype, 0);
    run_bsconv(dtype, kC, 0);
    run_bsconv(dtype, kK, 0);
    run_upsample(dtype, 0);
  }
  std::puts("clean");
}
