// Kernels whose loads, stores and products are known, for the test that they are counted (traffic.cpp).
#include "map_launch.cuh"
#include "tf32.cuh"

using namespace fastsr::cuda;

enum How : int { kAsMap, kByNumber, kByVector, kInBackground };

struct Copy {
  Map<Half> from, to;
  const float* beside;  // no map
  How how;
};

// A pixel of eight channels a thread.
__global__ void copy_kernel(const Copy a) {
  FASTSR_SHARED_MEMORY(memory);
  const int64_t from = a.from.at(0, 0, threadIdx.x), to = a.to.at(0, 0, threadIdx.x);
  const Half* x = a.from.data + from;
  Half* y = a.to.data + to;
  if (a.how == kAsMap) {
    a.to.store(to, 0, a.from.load(from, 0));
  } else if (a.how == kByNumber) {
    for (int i = 0; i < 8; ++i) y[i] = from_float<Half>(to_float(x[i]) + a.beside[i]);
  } else if (a.how == kByVector) {
    const float4 v = *reinterpret_cast<const float4*>(x);
    *reinterpret_cast<float4*>(y) = make_float4(v.x, v.y, v.z, v.w);
  } else {
    unsigned char* mine = memory + 16 * threadIdx.x;
    copy_async<16>(mine, x, true);
    wait_for_copies();
    store_128(y, reinterpret_cast<const uint32_t*>(mine));
  }
}

// As many products as it has threads for: two of each kind a warp, in 16 bits and in TF32.
__global__ void product_kernel(const Copy) {
  float d[4] = {};
  for (int i = 0; i < 2; ++i) {
    mma_k16<Half>(d, 0, 0, 0, 0, 0, 0);
    mma_k8<Half>(d, 0, 0, 0);
    mma_tf32(d, 0, 0, 0, 0, 0, 0);
  }
}

extern "C" const char* probe_copy(const TensorView* x, const TensorView* y, const float* beside, int how) {
  return launch(copy_kernel, 1, 32, 512, nullptr,
                Copy{map_of<Half>(*x), map_of<Half>(*y), beside, static_cast<How>(how)});
}
extern "C" const char* probe_products() { return launch(product_kernel, 1, 64, 0, nullptr, Copy{}); }
