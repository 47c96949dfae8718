// The scalar kernels: every .inl file, compiled with this instruction set's flags.
#define TUILI_ISA_SCALAR
#define TUILI_ISA_NAMESPACE scalar
#define TUILI_ISA_TABLE scalar_kernels
#include "kernels/isa.inl"
