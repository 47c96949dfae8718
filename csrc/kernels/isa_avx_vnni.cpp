// The avx_vnni kernels: avx2's, with an instruction of their own for integer dot products.
#define TUILI_ISA_AVX2
#define TUILI_ISA_AVX_VNNI
#define TUILI_ISA_NAMESPACE avx_vnni
#include "kernels/simd.h"
//
#include "kernels/kernels.h"
//
#include "kernels/matmul.inl"
#include "kernels/probe.inl"

namespace tuili {

const Kernels& avx2_kernels();

const Kernels& avx_vnni_kernels() {
    static const Kernels table = [] {
        Kernels kernels = avx2_kernels();
        kernels.isa = "avx_vnni";
        kernels.matmul_panel = avx_vnni::matmul_panel;
        kernels.dot_operations = avx_vnni::dot_operations;
        return kernels;
    }();
    return table;
}

}  // namespace tuili
