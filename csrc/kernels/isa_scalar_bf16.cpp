// The scalar_bf16 kernels: the slow twin of those that multiply pairs of bfloat16.
#define TUILI_ISA_SCALAR
#define TUILI_ISA_NAMESPACE scalar_bf16
#define TUILI_ISA_BASE scalar_kernels
#define TUILI_ISA_TABLE scalar_bf16_kernels
#include "kernels/isa_bf16.inl"
