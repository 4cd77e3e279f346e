#include "table.h"
#if defined(__x86_64__)
#define FASTSR_VECTOR_BYTES 32
#define FASTSR_TABLE table_avx2
#define FASTSR_F16C 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
