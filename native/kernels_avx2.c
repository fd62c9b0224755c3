/* For x86 processors with AVX2; whether this one has it is asked at run time (batch.c). */
#if defined(__x86_64__) || defined(__i386__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define NAME(x) x##_avx2
#define KIND "avx2"
#define MN_AVX2
#include "kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
