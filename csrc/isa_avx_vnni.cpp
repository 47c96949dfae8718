// The avx_vnni kernels: the avx2 ones with an instruction of their own for integer dot products.
#define TUILI_ISA_AVX2
#define TUILI_ISA_AVX_VNNI
#define TUILI_ISA_NAMESPACE avx_vnni
#define TUILI_ISA_TABLE avx_vnni_kernels
#include "isa.inl"
