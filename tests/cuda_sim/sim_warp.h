// Test-only: 16-bit numbers and TF32, and what the lanes of a warp do together (matrix products: sim_products.h).
#pragma once

namespace fastsr::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float slow_half_to_float(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  float f = exponent == 31 ? (mantissa ? NAN : INFINITY)
            : exponent     ? std::ldexp(1.f + mantissa / 1024.f, exponent - 15)
                           : std::ldexp(mantissa / 1024.f, -14);
  return h & 0x8000 ? -f : f;
}

__forceinline__ float to_float(float x) { return x; }
__forceinline__ float to_float(Half x) {
  static const std::vector<float> table = [] {
    std::vector<float> t(65536);
    for (int i = 0; i < 65536; ++i) t[i] = slow_half_to_float(static_cast<uint16_t>(i));
    return t;
  }();
  return table[x.bits];
}
__forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

inline uint16_t half_bits(float x) {  // rounds to nearest, ties to even
  const uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (a < 0x38800000)
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::fabs(x) * 0x1p24f)));
  return static_cast<uint16_t>(sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
}
inline uint16_t bfloat_bits(float x) {
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// As cvt.rna is compiled: what is left below the 10 bits of mantissa, the product cuts off.
inline uint32_t to_tf32(float x) {
  const uint32_t u = __float_as_uint(x);
  return (u & 0x7fffffff) < 0x7f800000 ? u + 0x1000 : u;
}

template <class T>
__forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4)
    return T{x};
  else if constexpr (std::is_same_v<T, Half>)
    return {half_bits(x)};
  else
    return {bfloat_bits(x)};
}

template <class T>
uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <class T>
float2 unpack2(uint32_t both) {
  return {to_float(T{static_cast<uint16_t>(both)}), to_float(T{static_cast<uint16_t>(both >> 16)})};
}

inline void check_alignment(const void* at, int bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes) sim::state.error = "an access that is not aligned";
}
inline void load_128(const void* from, uint32_t* to) {
  check_alignment(from, 16);
  std::memcpy(to, from, 16);
}
inline void store_128(void* to, const uint32_t* from) {
  check_alignment(to, 16);
  std::memcpy(to, from, 16);
}

// A copy arrives no sooner than its thread waits for it.
template <int Bytes>
__forceinline__ void copy_async(void* to, const void* from, bool inside) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  check_alignment(to, Bytes);
  if (inside) check_alignment(from, Bytes);
  fastsr_traffic_copy(to, inside ? from : nullptr, Bytes);
  sim::state.copies[threadIdx.x].push_back({to, inside ? from : nullptr, Bytes});
}
inline void wait_for_copies() {
  for (const sim::Copy& c : sim::state.copies[threadIdx.x])
    c.from ? std::memcpy(c.to, c.from, c.bytes) : std::memset(c.to, 0, c.bytes);
  sim::state.copies[threadIdx.x].clear();
}

inline int multiprocessors() { return 1; }  // few, so that a block has several tiles

inline int64_t computed_here(int64_t x) { return x; }
inline unsigned computed_here(unsigned x) { return x; }

inline float rsqrt_approx(float x) { return 1.f / std::sqrt(x); }
inline float exp2_approx(float x) { return std::exp2(x); }
inline float tanh_approx(float x) { return std::tanh(x); }
inline float relu_nan(float x) { return x < 0.f ? 0.f : x; }

// ---- named barriers

struct Coming {
  int id, threads, warp, openings;
};
inline void come(Coming* (&lanes)[32]) {
  const Coming& first = *lanes[0];
  for (const Coming* lane : lanes)
    if (lane->id != first.id || lane->threads != first.threads) {
      sim::state.error = "the lanes of a warp come to different barriers";
      return;
    }
  const bool exists = first.id >= 0 && first.id < sim::kBarriers;
  const int openings = exists ? sim::state.barriers.barrier[first.id].openings : 0;
  for (Coming* lane : lanes) lane->openings = openings;
  const int threads = static_cast<int>(sim::state.block_size.x);
  const std::string wrong = sim::state.barriers.come(first.id, first.threads, first.warp, threads);
  if (!wrong.empty()) sim::state.error = wrong;
}

inline Coming barrier_arrive(int id, int threads, int site = __builtin_LINE()) {
  Coming mine{id, threads, sim::state.current->warp, 0};
  sim::together<Coming, come>(mine, site);
  return mine;
}
inline void barrier_sync(int id, int threads, int site = __builtin_LINE()) {
  sim::state.current->openings = barrier_arrive(id, threads, site).openings;
  if (sim::state.barriers.barrier[id].openings == sim::state.current->openings) sim::wait(sim::Wait::kBarrier, id);
}

// ---- shuffles

struct Shuffle {
  uint64_t in, out;
  int from;
};
inline void shuffle(Shuffle* (&lanes)[32]) {
  for (Shuffle* lane : lanes) lane->out = lanes[lane->from & 31]->in;
}

template <class Arguments>
cudaError_t launch(void (*kernel)(Arguments), int64_t blocks, int threads, int shared_bytes, cudaStream_t,
                   const Arguments& arguments) {
  if (blocks == 0) return cudaSuccess;
  sim::state.started.push_back(reinterpret_cast<const void*>(kernel));
  fastsr_traffic_launch(reinterpret_cast<const void*>(kernel));
  return sim::launch(blocks, threads, shared_bytes, [&] { kernel(arguments); });
}

}  // namespace fastsr::cuda

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  fastsr::cuda::Shuffle s{0, 0, from};
  std::memcpy(&s.in, &value, sizeof value);
  sim::together<fastsr::cuda::Shuffle, fastsr::cuda::shuffle>(s);
  std::memcpy(&value, &s.out, sizeof value);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, sim::state.current->lane ^ bits);
}

#include "sim_products.h"
