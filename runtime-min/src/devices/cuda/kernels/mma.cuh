// Tensor cores: bf16 products with f32 accumulators, and the ways of their operands.
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

// Copies 16 bytes to shared memory while the thread goes on; only the first `bytes` of them are read, the rest becomes 0.
// Both addresses are multiples of 16, also where nothing is read.
__device__ inline void copy_async(void* to, const void* from, u32 bytes) {
#ifdef SEGPACK_HOST_SHIM
    shim_copy_async(to, from, bytes);
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#endif
}

// What was copied since the last one is a group.
__device__ inline void commit_copies() {
#ifdef SEGPACK_HOST_SHIM
    shim_commit_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the last `Left` groups of this thread are on their way. Other threads' copies take a barrier more.
template <int Left>
__device__ inline void wait_copies() {
#ifdef SEGPACK_HOST_SHIM
    shim_wait_copies(Left);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit values from shared memory: lane i gives the address of row i % 8 of matrix i / 8, a multiple
// of 16; it gets the values (i / 4, i % 4 * 2) and the next of the row (PTX ISA, ldmatrix), or of the column if transposed.
template <bool Transposed>
__device__ inline void load_matrices(u32 to[4], const void* row) {
#ifdef SEGPACK_HOST_SHIM
    shim_load_matrices(to, row, Transposed);
#else
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    if (Transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
    }
#endif
}

// Two values, rounded to bf16, as a pair.
__device__ inline u32 round_pair(float low, float high) {
#ifdef SEGPACK_HOST_SHIM
    return bf16_bits(low) | static_cast<u32>(bf16_bits(high)) << 16;
#else
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}
