/* For any processor, ARM's NEON included. */
#define NAME(x) x##_portable
#if defined(__aarch64__) || defined(__ARM_NEON)
#define KIND "neon"
#else
#define KIND "portable"
#endif
#include "kernels.inc"
