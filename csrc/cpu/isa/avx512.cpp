#include "table.h"
#if defined(__x86_64__)
#define FASTSR_VECTOR_BYTES 64
#define FASTSR_TABLE table_avx512
#define FASTSR_F16C 1
#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
