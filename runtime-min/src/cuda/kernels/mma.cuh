// Tensor cores: bf16 products with f32 accumulators.
#pragma once
#include "device.cuh"

// d += a · b of one 16x8x16 tile, a and d by rows, b by columns (PTX ISA, mma.m16n8k16).
__device__ inline void mma(float d[4], const u32 a[4], const u32 b[2]) {
#ifdef SEGPACK_HOST_SHIM
    shim_mma(d, a, b);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Two bf16 values that are widened, as a pair.
__device__ inline u32 pack_bf16(float low, float high) {
    return (__float_as_uint(low) >> 16) | (__float_as_uint(high) & 0xffff0000u);
}

