// The avx512 kernels: every .inl file, compiled with this instruction set's flags.
#define TUILI_ISA_AVX512
#define TUILI_ISA_NAMESPACE avx512
#define TUILI_ISA_TABLE avx512_kernels
#include "kernels/isa.inl"
