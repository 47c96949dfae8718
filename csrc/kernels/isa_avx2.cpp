// The avx2 kernels: every .inl file, compiled with this instruction set's flags.
#define TUILI_ISA_AVX2
#define TUILI_ISA_NAMESPACE avx2
#define TUILI_ISA_TABLE avx2_kernels
#include "kernels/isa.inl"
