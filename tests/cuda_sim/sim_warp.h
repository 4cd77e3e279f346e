// Test-only: 16-bit numbers, and what the lanes of a warp do together, with the fragments of the PTX manual.
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

inline float to_float(float x) { return x; }
inline float to_float(Half x) {
  static const std::vector<float> table = [] {
    std::vector<float> t(65536);
    for (int i = 0; i < 65536; ++i) t[i] = slow_half_to_float(static_cast<uint16_t>(i));
    return t;
  }();
  return table[x.bits];
}
inline float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

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

template <class T>
T from_float(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
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

inline void load_128(const void* from, uint32_t* to) { std::memcpy(to, from, 16); }
inline void store_128(void* to, const uint32_t* from) { std::memcpy(to, from, 16); }

// A copy arrives no sooner than its thread waits for it.
template <int Bytes>
void copy_async(void* to, const void* from, bool inside) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if (reinterpret_cast<uintptr_t>(to) % Bytes || (inside && reinterpret_cast<uintptr_t>(from) % Bytes))
    sim::state.error = "an asynchronous copy that is not aligned";
  sim::state.copies[threadIdx.x].push_back({to, inside ? from : nullptr, Bytes});
}
inline void wait_for_copies() {
  for (const sim::Copy& c : sim::state.copies[threadIdx.x])
    c.from ? std::memcpy(c.to, c.from, c.bytes) : std::memset(c.to, 0, c.bytes);
  sim::state.copies[threadIdx.x].clear();
}

inline int multiprocessors() { return 1; }  // few, so that a block has several tiles

inline int64_t computed_here(int64_t x) { return x; }

inline float rsqrt_approx(float x) { return 1.f / std::sqrt(x); }
inline float exp2_approx(float x) { return std::exp2(x); }
inline float tanh_approx(float x) { return std::tanh(x); }
inline float relu_nan(float x) { return x < 0.f ? 0.f : x; }

// ---- matrix products: K = 8 Steps

template <int Steps>
struct Product {
  float* d;
  uint32_t a[2 * Steps], b[Steps];
};

template <class T, int Steps>
void multiply(Product<Steps>* (&lanes)[32]) {
  constexpr int K = 8 * Steps;
  float a[16][K], b[K][8];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < K; k += 2) {
      const float2 p = unpack2<T>(lanes[row % 8 * 4 + k % 8 / 2]->a[row / 8 + k / 8 * 2]);
      a[row][k] = p.x, a[row][k + 1] = p.y;
    }
  for (int column = 0; column < 8; ++column)
    for (int k = 0; k < K; k += 2) {
      const float2 p = unpack2<T>(lanes[column * 4 + k % 8 / 2]->b[k / 8]);
      b[k][column] = p.x, b[k + 1][column] = p.y;
    }
  for (int row = 0; row < 16; ++row) {
    float sum[8] = {};
    for (int k = 0; k < K; ++k)
      for (int column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
    for (int column = 0; column < 8; ++column)
      lanes[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2] += sum[column];
  }
}

template <class T>
void mma_k16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  Product<2> p{d, {a0, a1, a2, a3}, {b0, b1}};
  sim::together<Product<2>, multiply<T, 2>>(p);
}
template <class T>
void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  Product<1> p{d, {a0, a1}, {b0}};
  sim::together<Product<1>, multiply<T, 1>>(p);
}

// ---- 8x8 matrices of 16-bit numbers

struct Matrices {
  uint32_t* r;
  const uint16_t* row;
};

template <bool Transposed>
void fetch(Matrices* (&lanes)[32]) {
  for (int m = 0; m < 4; ++m)
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t pair = 0;
      for (int i = 0; i < 2; ++i) {
        const int row = Transposed ? lane % 4 * 2 + i : lane / 4, column = Transposed ? lane / 4 : lane % 4 * 2 + i;
        const uint16_t* from = lanes[8 * m + row]->row;
        if (reinterpret_cast<uintptr_t>(from) % 16) sim::state.error = "a matrix row that is not on 16 bytes";
        pair |= static_cast<uint32_t>(from[column]) << (16 * i);
      }
      lanes[lane]->r[m] = pair;
    }
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  Matrices m{r, static_cast<const uint16_t*>(row)};
  sim::together<Matrices, fetch<false>>(m);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  Matrices m{r, static_cast<const uint16_t*>(row)};
  sim::together<Matrices, fetch<true>>(m);
}

struct Register {
  uint32_t in, out;
};
inline void transpose(Register* (&lanes)[32]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int column = lane / 4, row = lane % 4 * 2;  // of the source
    const auto at = [&](int r) { return lanes[r * 4 + column / 2]->in >> (column % 2 * 16) & 0xffff; };
    lanes[lane]->out = at(row) | at(row + 1) << 16;
  }
}
inline uint32_t transpose_matrix(uint32_t a) {
  Register r{a, 0};
  sim::together<Register, transpose>(r);
  return r.out;
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
