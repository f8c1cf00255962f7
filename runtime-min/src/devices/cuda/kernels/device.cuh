// What all kernels share. No header is needed: NVRTC brings the built-in functions, the host shim brings its own.
//
// Activations are row-major, one row per token; `bf16` says whether they are bf16 values, rounded where the official bf16
// code rounds, or f32. Weights are little-endian BF16 (0), F16 (1) or F32 (2), at any address that their width divides.
#pragma once

#ifdef SEGPACK_HOST_SHIM
#include "device.hpp"
#else
extern __shared__ __align__(16) unsigned char raw_[];
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(raw_)
#endif

#define KERNEL extern "C" __global__ void
#define FULL 0xffffffffu

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { BF16 = 0, F16 = 1, F32 = 2 };

__device__ inline float from_bf16(u32 bits) { return __uint_as_float(bits << 16); }

// The bits of the nearest bf16, ties to even; NaN stays NaN.
__device__ inline u16 bf16_bits(float x) {
#ifdef SEGPACK_HOST_SHIM
    return shim_bf16_bits(x);
#else
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#endif
}

__device__ inline float to_bf16(float x) { return from_bf16(bf16_bits(x)); }

__device__ inline float rounded(float x, int bf16) { return bf16 ? to_bf16(x) : x; }

__device__ inline float from_f16(u16 bits) {
#ifdef SEGPACK_HOST_SHIM
    return shim_from_f16(bits);
#else
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#endif
}

// One value of a vector or matrix of any type.
__device__ inline float value_at(const void* from, u64 i, int type) {
    if (type == F32) return reinterpret_cast<const float*>(from)[i];
    u16 bits = reinterpret_cast<const u16*>(from)[i];
    return type == BF16 ? from_bf16(bits) : from_f16(bits);
}

// An activation.
__device__ inline float read(const void* from, u64 i, int bf16) {
    return bf16 ? from_bf16(reinterpret_cast<const u16*>(from)[i]) : reinterpret_cast<const float*>(from)[i];
}

// An activation that another block of the same launch may have written.
__device__ inline float read_fresh(const void* from, u64 i, int bf16) {
    return bf16 ? from_bf16(__ldcg(reinterpret_cast<const u16*>(from) + i)) : __ldcg(reinterpret_cast<const float*>(from) + i);
}

// Puts an activation, rounded if it is bf16.
__device__ inline void write(void* to, u64 i, float x, int bf16) {
    if (bf16) {
        reinterpret_cast<u16*>(to)[i] = bf16_bits(x);
    } else {
        reinterpret_cast<float*>(to)[i] = x;
    }
}

// 16 bytes of a weight, at a multiple of 16. They are read once: not kept near, and a little more is fetched from afar.
// The compiler could not know that a pointer out of a table is one to global memory.
__device__ inline uint4 load_sixteen(const void* from) {
#ifdef SEGPACK_HOST_SHIM
    return *reinterpret_cast<const uint4*>(from);
#else
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(from));
    return v;
#endif
}

// Eight weights of a row, which begins at a multiple of 16 bytes.
struct Eight {
    uint4 low, high; // `high` for F32 alone
};

template <int T>
__device__ inline Eight load_eight(const void* row, int column) {
    const char* from = reinterpret_cast<const char*>(row) + column * (T == F32 ? 4 : 2);
    Eight e;
    e.low = load_sixteen(from);
    e.high = T == F32 ? load_sixteen(from + 16) : e.low;
    return e;
}

template <int T>
__device__ inline void widen_pair(u32 word, float* to) {
    if (T == BF16) {
        to[0] = __uint_as_float(word << 16);
        to[1] = __uint_as_float(word & 0xffff0000u);
    } else {
        to[0] = from_f16(static_cast<u16>(word));
        to[1] = from_f16(static_cast<u16>(word >> 16));
    }
}

template <int T>
__device__ inline void widen_eight(const Eight& e, float* to) {
    if (T == F32) {
        to[0] = __uint_as_float(e.low.x), to[1] = __uint_as_float(e.low.y);
        to[2] = __uint_as_float(e.low.z), to[3] = __uint_as_float(e.low.w);
        to[4] = __uint_as_float(e.high.x), to[5] = __uint_as_float(e.high.y);
        to[6] = __uint_as_float(e.high.z), to[7] = __uint_as_float(e.high.w);
    } else {
        widen_pair<T>(e.low.x, to), widen_pair<T>(e.low.y, to + 2);
        widen_pair<T>(e.low.z, to + 4), widen_pair<T>(e.low.w, to + 6);
    }
}

// Eight values of a row, 0 from `width` on; `vectors` says that whole eights can be loaded at once.
template <int T>
__device__ inline Eight eight_of(const void* row, int column, int width, bool vectors) {
    if (vectors && column < width) return load_eight<T>(row, column);
    u32 words[8] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (vectors || column + i >= width) continue;
        if (T == F32) {
            words[i] = reinterpret_cast<const u32*>(row)[column + i];
        } else {
            words[i / 2] |= static_cast<u32>(reinterpret_cast<const u16*>(row)[column + i]) << (i % 2 * 16);
        }
    }
    Eight e;
    e.low.x = words[0], e.low.y = words[1], e.low.z = words[2], e.low.w = words[3];
    e.high.x = words[4], e.high.y = words[5], e.high.z = words[6], e.high.w = words[7];
    return e;
}

__device__ inline bool in_sixteens(const void* p) { return (reinterpret_cast<u64>(p) & 15u) == 0; }

// Rows of a matrix can be read in vectors.
template <int T>
__device__ inline bool rows_in_sixteens(const void* matrix, int columns) {
    return in_sixteens(matrix) && columns % 8 == 0;
}

// The beginning of a row of a matrix.
template <int T>
__device__ inline const char* row_of(const void* matrix, u64 row, int columns) {
    return reinterpret_cast<const char*>(matrix) + row * columns * (T == F32 ? 4 : 2);
}

__device__ inline float warp_sum(float x) {
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(FULL, x, i);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, i));
    return x;
}

// Whether this block is the last of so many to come here, told to all its threads, which may then read (past the first
// cache) what the others wrote. `arrived` is 0 before, and after the last one.
__device__ inline bool is_last_block(u32* arrived, u32 blocks) {
    __shared__ int is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); // what this block wrote before the count
        is_last = atomicAdd(arrived, 1u) + 1u == blocks;
        if (is_last) *arrived = 0;
        __threadfence(); // the count before what the others wrote
    }
    __syncthreads();
    return is_last;
}

// Greater for greater values in the total order of IEEE 754 (as Rust's `total_cmp`).
__device__ inline u32 order_bits(float x) {
    u32 bits = __float_as_uint(x);
    return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// The same, and greater for lower ids on ties.
__device__ inline u64 order_key(float x, u32 id) {
    return (static_cast<u64>(order_bits(x)) << 32) | (0xffffffffu - id);
}

// The key of a logit. -0 and 0 are equal. NaN and infinity are greater than all others, so that the first of them is found
// wherever it is; the host refuses it.
__device__ inline u64 logit_key(float x, u32 id) {
    float infinity = __uint_as_float(0x7f800000u);
    return order_key(x == 0.0f ? 0.0f : x < infinity ? x : infinity, id);
}

__device__ inline u32 key_id(u64 key) { return 0xffffffffu - static_cast<u32>(key); }

__device__ inline u64 warp_greatest(u64 key) {
    for (int i = 16; i > 0; i /= 2) {
        u32 low = __shfl_xor_sync(FULL, static_cast<u32>(key), i);
        u32 high = __shfl_xor_sync(FULL, static_cast<u32>(key >> 32), i);
        u64 other = (static_cast<u64>(high) << 32) | low;
        key = other > key ? other : key;
    }
    return key;
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

// One of the products that share their input: `out[token] = x[token] · weightᵀ + bias`.
struct Product {
    const void* weight; // [rows, columns]
    const void* bias;   // [rows], or null
    void* out;          // [tokens, rows], activations
    int rows;
    int bias_type;
};

struct Products {
    Product of[3]; // those that are not there have 0 rows
};

// Where the matrices of the experts of a layer are, one after the other: gate, up, down. Null where one is not to be
// computed now.
typedef const u64* ExpertTable;

__device__ inline const void* expert_matrix(ExpertTable table, int expert, int which) {
    return reinterpret_cast<const void*>(table[expert * 3 + which]);
}
