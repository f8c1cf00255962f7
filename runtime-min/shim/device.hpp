// The device side of the host shim: what the kernels use of CUDA, for one fiber per lane. See driver.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// all lanes of a block run on one thread of the host, one block after the other
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(shim::dynamic_shared())

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};

namespace shim {

struct Dim3 {
    unsigned x, y, z;
};

// An asynchronous copy to shared memory, made when somebody waits for it, as late as it may be.
struct Copy {
    void* to;
    const void* from;
    unsigned bytes;

    void make() const {
        std::memset(to, 0, 16);
        std::memcpy(to, from, bytes);
    }
};

struct Lane {
    Dim3 thread;
    // groups that were committed, then the one that is open
    mutable std::deque<std::vector<Copy>> copies;
    mutable unsigned copied = 0; // in this block so far
};

extern thread_local const Lane* lane;
extern thread_local Dim3 block_index, block_size, grid_size;

void* dynamic_shared();

// Waits until all threads of the block are here.
void block_barrier();

// Puts this lane's bytes where all lanes of the warp can read them, and waits until all have. The result is valid until
// the next exchange but one.
const void* exchange(const void* mine, unsigned bytes, unsigned stride);

enum { EXCHANGED = 64 }; // most bytes of a lane

template <class T>
struct Warp {
    const char* all;
    T of(unsigned lane) const {
        T t;
        std::memcpy(&t, all + lane * EXCHANGED, sizeof(T));
        return t;
    }
};

template <class T>
Warp<T> exchanged(const T& mine) {
    static_assert(sizeof(T) <= EXCHANGED, "too much");
    return {static_cast<const char*>(exchange(&mine, sizeof(T), EXCHANGED))};
}

void require_full(unsigned mask);

// Copies are made at once, as early as they may be.
bool early_copies();

// Eight lanes reach 16 bytes each of shared memory at a time: those that share banks are counted for the kernel.
void count_conflicts(const void* const eight[8]);
void count_conflicts_of_copy(const void* to);

[[noreturn]] void misused(const char* what);

} // namespace shim

#define threadIdx (shim::lane->thread)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)

inline void __syncthreads() { shim::block_barrier(); }
inline void __syncwarp() { shim::exchanged(0); }

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int other) {
    shim::require_full(mask);
    return shim::exchanged(value).of((threadIdx.x % 32) ^ other);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from) {
    shim::require_full(mask);
    return shim::exchanged(value).of(static_cast<unsigned>(from) % 32);
}

inline unsigned __ballot_sync(unsigned mask, int flag) {
    shim::require_full(mask);
    auto all = shim::exchanged<int>(flag != 0);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++) bits |= static_cast<unsigned>(all.of(i)) << i;
    return bits;
}

// one block runs after the other, and a lane only stops where it waits
inline unsigned atomicAdd(unsigned* to, unsigned x) {
    unsigned before = *to;
    *to += x;
    return before;
}

inline void __threadfence() {}

template <class T>
inline T __ldcg(const T* from) {
    return *from;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// f64 that is rounded after each operation; the shim is built without fused products and sums
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

// PTX ISA, cvt.rn.bf16.f32
inline unsigned short shim_bf16_bits(float x) {
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float shim_from_f16(unsigned short bits) {
    int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    float x = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
              : exponent == 31 ? (fraction ? NAN : INFINITY)
                               : std::ldexp(static_cast<float>(fraction | 1024), exponent - 25);
    return bits & 0x8000 ? -x : x;
}

// PTX ISA, cp.async with a source size: what the source does not fill is 0.
inline void shim_copy_async(void* to, const void* from, unsigned bytes) {
    if (bytes > 16 || reinterpret_cast<uintptr_t>(to) % 16 || (bytes && reinterpret_cast<uintptr_t>(from) % 16))
        shim::misused("cp.async at an address that is no multiple of 16");
    shim::count_conflicts_of_copy(to);
    shim::Copy copy = {to, from, bytes};
    if (shim::early_copies()) return copy.make();
    auto& groups = shim::lane->copies;
    if (groups.empty()) groups.emplace_back();
    groups.back().push_back(copy);
}

inline void shim_commit_copies() {
    if (shim::lane->copies.empty()) shim::lane->copies.emplace_back();
    shim::lane->copies.emplace_back();
}

// Waits until at most `left` committed groups are on their way.
inline void shim_wait_copies(unsigned left) {
    auto& groups = shim::lane->copies;
    while (groups.size() > left + 1) {
        for (const auto& copy : groups.front()) copy.make();
        groups.pop_front();
    }
}

// PTX ISA, ldmatrix.x4: lane i gives the address of row i % 8 of matrix i / 8.
inline void shim_load_matrices(unsigned to[4], const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) shim::misused("ldmatrix at an address that is no multiple of 16");
    struct Row {
        unsigned short values[8];
        const void* at;
    } mine;
    std::memcpy(mine.values, row, sizeof mine.values);
    mine.at = row;
    auto all = shim::exchanged(mine);
    unsigned lane = threadIdx.x % 32;
    if (lane < 4) {
        const void* eight[8];
        for (unsigned i = 0; i < 8; i++) eight[i] = all.of(lane * 8 + i).at;
        shim::count_conflicts(eight);
    }
    for (unsigned i = 0; i < 4; i++) {
        unsigned first = lane / 4, pair = lane % 4 * 2;
        unsigned low = transposed ? all.of(i * 8 + pair).values[first] : all.of(i * 8 + first).values[pair];
        unsigned high = transposed ? all.of(i * 8 + pair + 1).values[first] : all.of(i * 8 + first).values[pair + 1];
        to[i] = low | high << 16;
    }
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": where each value of a lane lies.
inline void shim_mma(float d[4], const unsigned a[4], const unsigned b[2]) {
    struct Fragments {
        unsigned a[4], b[2];
    } mine;
    std::memcpy(mine.a, a, sizeof mine.a);
    std::memcpy(mine.b, b, sizeof mine.b);
    auto all = shim::exchanged(mine);
    auto value = [](unsigned pair, int which) { return __uint_as_float(which ? pair & 0xffff0000u : pair << 16); };
    unsigned lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned step = 0; step < 16; step++) {
            unsigned k = step ^ 1; // the order is the hardware's own; this is that of vdpbf16ps, the later of a pair first
            unsigned holder = k % 8 / 2, late = k / 8;
            float left = value(all.of(row % 8 * 4 + holder).a[row / 8 + 2 * late], k % 2);
            float right = value(all.of(column * 4 + holder).b[late], k % 2);
            d[i] += left * right;
        }
    }
}
