// Test-only: matrix products of a warp and the loads for them, with the fragments of the PTX manual.
#pragma once

namespace fastsr::cuda {

// ---- products: K = 8 Steps in 16 bits

template <int Steps>
struct Product {
  float* d;
  uint32_t a[2 * Steps], b[Steps];
};

template <class T, int Steps>
void multiply(Product<Steps>* (&lanes)[32]) {
  fastsr_traffic_product();
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

// The hardware takes the upper 19 bits of a register: what was not rounded before is cut off.
inline void multiply_tf32(Product<2>* (&lanes)[32]) {
  fastsr_traffic_product();
  const auto number = [](uint32_t bits) { return __uint_as_float(bits & 0xffffe000); };
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = 0.f;
      for (int k = 0; k < 8; ++k)
        sum += number(lanes[row % 8 * 4 + k % 4]->a[row / 8 + k / 4 * 2]) * number(lanes[column * 4 + k % 4]->b[k / 4]);
      lanes[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2] += sum;
    }
}
inline void mma_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  Product<2> p{d, {a0, a1, a2, a3}, {b0, b1}};
  sim::together<Product<2>, multiply_tf32>(p);
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
  fastsr_traffic_row(row);
  Matrices m{r, static_cast<const uint16_t*>(row)};
  sim::together<Matrices, fetch<false>>(m);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  fastsr_traffic_row(row);
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

}  // namespace fastsr::cuda
