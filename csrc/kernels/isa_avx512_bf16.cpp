// The avx512_bf16 kernels: the avx512 ones, but for products of bfloat16 pairs, which have an instruction of their own.
#define TUILI_ISA_AVX512
#define TUILI_ISA_NAMESPACE avx512_bf16
#define TUILI_ISA_BASE avx512_kernels
#define TUILI_ISA_TABLE avx512_bf16_kernels
#include "kernels/isa_bf16.inl"
