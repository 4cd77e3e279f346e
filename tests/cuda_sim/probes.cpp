// Small kernels that test the simulator itself, some of them wrong on purpose, and the primitives of csrc/cuda.
#include "gelu.cuh"
#include "partials.cuh"
#include "pixel_lanes.cuh"
#include "product_pack.cuh"

using namespace fastsr::cuda;

namespace {

struct Arrays {
  const float* x;
  float* y;
  int which;
};

// Reverses 256 numbers through shared memory. 0: right; 1: no barrier; 2: a barrier that half of the threads reach;
// 3: a barrier of each half's own; 4: a warp's sum that a part of the warp takes.
__global__ void reverse_kernel(const Arrays a) {
  FASTSR_SHARED_MEMORY(memory);
  float* s = reinterpret_cast<float*>(memory);
  const int i = threadIdx.x;
  s[i] = a.x[i];
  if (a.which == 0) {
    __syncthreads();
  } else if (a.which == 2) {
    if (i < 128) __syncthreads();
  } else if (a.which == 3) {
    if (i < 128)
      __syncthreads();
    else
      __syncthreads();
  } else if (a.which == 4) {
    if (i % 32 < 16) s[i] = warp_sum(s[i]);
    __syncthreads();
  }
  a.y[i] = s[255 - i];
}

// Copies two (0), four (1) numbers or two of 16 bits (2) a thread, from `shift` numbers further on, where nothing of
// that size may be.
struct Shifted {
  const float* x;
  float* y;
  int which, shift;
};
__global__ void copy_kernel(const Shifted a) {
  const int i = threadIdx.x;
  if (a.which == 0) {
    reinterpret_cast<float2*>(a.y)[i] = *reinterpret_cast<const float2*>(a.x + 2 * i + a.shift);
  } else if (a.which == 1) {
    uint32_t words[4];
    load_128(a.x + 4 * i + a.shift, words);
    store_128(a.y + 4 * i, words);
  } else {
    const auto* from = reinterpret_cast<const uint16_t*>(a.x) + a.shift;
    reinterpret_cast<uint32_t*>(a.y)[i] = reinterpret_cast<const uint32_t*>(from)[i];
  }
}

// One warp: a [16][16], b [8][16] (column by column), y [16][8]; 1: two registers of A exchanged.
template <class T>
__global__ void multiply_kernel(const Arrays a) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const float* b = a.x + 256;
  const auto pair = [](const float* from) { return pack2<T>(from[0], from[1]); };
  const uint32_t a0 = pair(a.x + g * 16 + 2 * t), a1 = pair(a.x + (g + 8) * 16 + 2 * t);
  const uint32_t a2 = pair(a.x + g * 16 + 8 + 2 * t), a3 = pair(a.x + (g + 8) * 16 + 8 + 2 * t);
  float d[4] = {};
  mma_k16<T>(d, a0, a.which ? a2 : a1, a.which ? a1 : a2, a3, pair(b + g * 16 + 2 * t), pair(b + g * 16 + 8 + 2 * t));
  for (int i = 0; i < 4; ++i) a.y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// The same by the loads: a in shared memory, plain or transposed, b's columns as rows; in two steps of 8.
template <class T>
__global__ void load_and_multiply_kernel(const Arrays a) {
  FASTSR_SHARED_MEMORY(memory);
  T *sa = reinterpret_cast<T*>(memory), *sb = sa + 256;
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) sa[a.which ? i % 16 * 16 + i / 16 : i] = from_float<T>(a.x[i]);
  for (int i = lane; i < 128; i += 32) sb[i] = from_float<T>(a.x[256 + i]);
  __syncthreads();
  uint32_t ra[4], rb[4];
  if (a.which)
    load_matrices_transposed(ra, sa + (lane / 16 * 8 + lane % 8) * 16 + lane / 8 % 2 * 8);
  else
    load_matrices(ra, sa + lane % 16 * 16 + lane / 16 * 8);
  load_matrices(rb, sb + lane % 8 * 16 + lane / 8 % 2 * 8);
  float d[4] = {};
  mma_k8<T>(d, ra[0], ra[1], rb[0]);
  mma_k8<T>(d, ra[2], ra[3], transpose_matrix(transpose_matrix(rb[1])));
  for (int i = 0; i < 4; ++i) a.y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// One warp: a [16][8], b [8][8] (column by column), y [16][8] in TF32. 0: right; 1: a is not rounded; 2: b is not;
// 3: two registers of A exchanged.
__global__ void multiply_tf32_kernel(const Arrays a) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const auto number = [](float x, bool rounded) { return rounded ? to_tf32(x) : __float_as_uint(x); };
  const auto of_a = [&](int row, int k) { return number(a.x[row * 8 + k], a.which != 1); };
  const auto of_b = [&](int k) { return number(a.x[128 + g * 8 + k], a.which != 2); };
  const uint32_t a1 = of_a(g + 8, t), a2 = of_a(g, t + 4);
  float d[4] = {};
  mma_tf32(d, of_a(g, t), a.which == 3 ? a2 : a1, a.which == 3 ? a1 : a2, of_a(g + 8, t + 4), of_b(t), of_b(t + 4));
  for (int i = 0; i < 4; ++i) a.y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// 16 pixels x [16][channels] times w [32][channels] behind them, y [16][32]: by the lanes that hold them, each warp.
template <class T>
__global__ void lane_product_kernel(const Arrays a) {
  FASTSR_SHARED_MEMORY(packed);
  const int channels = a.which, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float* w = a.x + 16 * channels;
  pack_product<T>(reinterpret_cast<uint32_t*>(packed), 1, channels,
                  [&](int o, int c) { return c < channels ? w[o * channels + c] : 0.f; });
  __syncthreads();
  float sum[2][8] = {};
  for (int chunk = 0; chunk < blocks_of(channels); ++chunk) {
    Eight<T> x[2];
    for (int p = 0; p < 2; ++p) {
      float of[8];
      for (int i = 0; i < 8; ++i) {
        const int c = chunk * kBlock + 8 * t + i;
        of[i] = c < channels ? a.x[(g + 8 * p) * channels + c] : 0.f;
      }
      x[p] = to_eight<T>(of);
    }
    lane_product<T>(x, packed, channels, chunk, sum);
  }
  if (threadIdx.x >= 32) return;
  for (int i = 0; i < 16; ++i) a.y[(g + i / 8 * 8) * kBlock + 8 * t + i % 8] = sum[i / 8][i % 8];
}

// Two warps reverse 64 numbers at a time that two others bring, four times. 0: right; 1: the place is given back before
// it is read; 2: not at all; 3 to 10: barriers that are wrong by themselves.
__global__ void pass_kernel(const Arrays a) {
  FASTSR_SHARED_MEMORY(memory);
  float* s = reinterpret_cast<float*>(memory);
  const int i = threadIdx.x % 64, lane = i % 32, full = 1, read = 2;
  if (a.which == 7 && threadIdx.x < 32) return;
  if (threadIdx.x < 64) {
    for (int step = 0; step < 4; ++step) {
      if ((step && a.which != 2) || a.which == 6) barrier_sync(read, 128);
      s[i] = a.x[64 * step + i];
      if (a.which != 4 || lane < 16) barrier_arrive(a.which == 5 ? 1 + lane % 2 : a.which == 9 ? 16 : full, 128);
    }
  } else {
    if (a.which == 10) __syncthreads();
    for (int step = 0; step < 4; ++step) {
      barrier_sync(full, a.which == 3 ? 96 : 128);
      if (a.which == 1 && step < 3) barrier_arrive(read, 128);
      a.y[64 * step + i] = s[63 - i];
      if (a.which != 1 && a.which != 2 && (step < 3 || a.which == 8)) barrier_arrive(read, 128);
    }
  }
}

// A barrier of `which` threads.
__global__ void count_kernel(const Arrays a) { barrier_sync(1, a.which); }

struct Values {
  const float* x;
  float* y;
  int count, form;
};

__global__ void gelu_kernel(const Values v) {
  for (int i = blockIdx.x * 32 + threadIdx.x; i < v.count; i += gridDim.x * 32)
    v.y[i] = v.form == 0   ? gelu<Gelu::kTail>(v.x[i])
             : v.form == 1 ? gelu<Gelu::kBump9>(v.x[i])
             : v.form == 2 ? gelu<Gelu::kBump6>(v.x[i])
             : v.form == 3 ? gelu<Gelu::kTanh>(v.x[i])
                           : gelu_derivative(v.x[i]);
}

__global__ void round_tf32_kernel(const Values v) {
  for (int i = blockIdx.x * 32 + threadIdx.x; i < v.count; i += gridDim.x * 32)
    v.y[i] = __uint_as_float(to_tf32(v.x[i]) & 0xffffe000);
}

// Rounds to 16 bits and back.
template <class T>
__global__ void round_kernel(const Values v) {
  for (int i = blockIdx.x * 32 + threadIdx.x; i < v.count; i += gridDim.x * 32)
    v.y[i] = to_float(from_float<T>(v.x[i]));
}

}  // namespace

extern "C" const char* probe_reverse(const float* x, float* y, int which, unsigned seed) {
  sim::state.seed = seed;
  return launch(reverse_kernel, 1, 256, 1024, nullptr, Arrays{x, y, which});
}
extern "C" const char* probe_copy(const float* x, float* y, int which, int shift) {
  return launch(copy_kernel, 1, 32, 0, nullptr, Shifted{x, y, which, shift});
}
extern "C" const char* probe_multiply(const float* x, float* y, int which, int bfloat) {
  return launch(bfloat ? multiply_kernel<BFloat16> : multiply_kernel<Half>, 1, 32, 0, nullptr, Arrays{x, y, which});
}
extern "C" const char* probe_load_and_multiply(const float* x, float* y, int which, int bfloat) {
  return launch(bfloat ? load_and_multiply_kernel<BFloat16> : load_and_multiply_kernel<Half>, 1, 32, 768, nullptr,
                Arrays{x, y, which});
}
extern "C" const char* probe_gelu(const float* x, float* y, int count, int form) {
  return launch(gelu_kernel, 8, 32, 0, nullptr, Values{x, y, count, form});
}
extern "C" const char* probe_round(const float* x, float* y, int count, int bfloat) {
  return launch(bfloat ? round_kernel<BFloat16> : round_kernel<Half>, 8, 32, 0, nullptr, Values{x, y, count, 0});
}
extern "C" const char* probe_round_tf32(const float* x, float* y, int count) {
  return launch(round_tf32_kernel, 8, 32, 0, nullptr, Values{x, y, count, 0});
}
extern "C" const char* probe_multiply_tf32(const float* x, float* y, int which) {
  return launch(multiply_tf32_kernel, 1, 32, 0, nullptr, Arrays{x, y, which});
}
extern "C" const char* probe_lane_product(const float* x, float* y, int channels, int form) {
  const auto start = [&](auto type) {
    using T = decltype(type);
    return launch(lane_product_kernel<T>, 1, kProductThreads, product_block_bytes<T>(channels), nullptr,
                  Arrays{x, y, channels});
  };
  return form == 0 ? start(float{}) : form == 1 ? start(Half{}) : form == 2 ? start(BFloat16{}) : start(Tf32{});
}
extern "C" const char* probe_pass(const float* x, float* y, int which, unsigned seed) {
  sim::state.seed = seed;
  return launch(pass_kernel, 2, 128, 256, nullptr, Arrays{x, y, which});
}
extern "C" const char* probe_count(int threads) {
  return launch(count_kernel, 1, 64, 0, nullptr, Arrays{nullptr, nullptr, threads});
}
