// Norms and turns of single heads, for `heads` and for the attention of few tokens.
#pragma once
#include "device.cuh"

enum { MOST_WIDTH = 128 }; // of a head

// What a lane of a warp has of a head: the values 2 · lane and the next of the first half, those of the second half, and in
// lane 0 the last value of an odd width, which has no partner to turn with.
struct Turned {
    float low[2], high[2], last;
};

__device__ inline const void* place(const void* all, u64 i, int bf16) {
    return reinterpret_cast<const char*>(all) + i * (bf16 ? 2 : 4);
}

// The values i and i + 1 of a row, 0 from `end` on.
__device__ inline void read_two(const void* row, int i, int end, int bf16, float to[2]) {
    const void* from = place(row, i, bf16);
    u64 unaligned = reinterpret_cast<u64>(from) & (bf16 ? 3 : 7);
    if (i + 1 < end && unaligned == 0) {
        if (bf16) {
            widen_pair<BF16>(*reinterpret_cast<const u32*>(from), to);
        } else {
            float2 two = *reinterpret_cast<const float2*>(from);
            to[0] = two.x, to[1] = two.y;
        }
        return;
    }
    to[0] = i < end ? read(row, i, bf16) : 0.0f;
    to[1] = i + 1 < end ? read(row, i + 1, bf16) : 0.0f;
}

// One warp norms a head and turns it; `cos` and `sin` are those of its position, [width / 2].
__device__ inline Turned norm_and_turn(const void* head, const void* norm, int type, const float* cos, const float* sin,
                                       float eps, int width, int bf16) {
    int j = threadIdx.x % 32 * 2, half = width / 2;
    Turned t;
    read_two(head, j, half, bf16, t.low);
    read_two(place(head, half, bf16), j, half, bf16, t.high);
    t.last = width % 2 && j == 0 ? read(head, width - 1, bf16) : 0.0f;
    float sum = t.last * t.last;
#pragma unroll
    for (int i = 0; i < 2; i++) sum = fmaf(t.low[i], t.low[i], fmaf(t.high[i], t.high[i], sum));
    float factor = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(width) + eps);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (j + i >= half) continue;
        float a = rounded(value_at(norm, j + i, type) * rounded(t.low[i] * factor, bf16), bf16);
        float b = rounded(value_at(norm, j + i + half, type) * rounded(t.high[i] * factor, bf16), bf16);
        float c = cos[j + i], s = sin[j + i];
        t.low[i] = rounded(rounded(a * c, bf16) + rounded(-b * s, bf16), bf16);
        t.high[i] = rounded(rounded(b * c, bf16) + rounded(a * s, bf16), bf16);
    }
    if (width % 2) t.last = rounded(value_at(norm, width - 1, type) * rounded(t.last * factor, bf16), bf16);
    return t;
}

// Puts a head to to[first..].
__device__ inline void put_turned(void* to, u64 first, const Turned& t, int width, int bf16) {
    int j = threadIdx.x % 32 * 2, half = width / 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (j + i >= half) continue;
        write(to, first + j + i, t.low[i], bf16);
        write(to, first + j + i + half, t.high[i], bf16);
    }
    if (width % 2 && j == 0) write(to, first + width - 1, t.last, bf16);
}
