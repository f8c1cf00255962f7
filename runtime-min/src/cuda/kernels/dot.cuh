// Products of few tokens: every weight is read once, by one warp per row, eight values per lane and load. Memory bounds
// them, so loads are what matters: those of a warp's next steps are always on their way, the first ones while the block
// still brings its input to shared memory.
#pragma once
#include "device.cuh"

// Loads in flight, and columns of a warp's load.
enum { STEPS = 4, WARP_COLUMNS = 256, CHUNK = STEPS * WARP_COLUMNS };

// Where column c of an input lies in shared memory: a lane's eight values in two parts, so that lanes that read at the
// same time meet different banks.
__device__ inline int place_of(int c) { return (c & ~255) | (c & 4) << 5 | (c & 248) >> 1 | (c & 3); }

// Values that an input of so many columns takes of shared memory.
__device__ inline int padded(int columns) { return (columns + WARP_COLUMNS - 1) / WARP_COLUMNS * WARP_COLUMNS; }

// An RMS norm that comes before a product: of x + added, or of x where nothing is to be added. The first block of a
// token writes the sum and what the norm gives; the sum must not lie where x does, which the other blocks still read.
struct Norm {
    const void* added; // [tokens, columns], or null
    const void* weight; // [columns], or null: there is no norm
    void* sum;         // [tokens, columns]
    void* normed;      // [tokens, columns]
    int type;
    float eps;
};

// The factor of an RMS norm, by all threads of a block, 256 of them: each has the sum of its own values' squares.
__device__ inline float norm_factor(float sum, int width, float eps) {
    __shared__ float of_warp[8];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < 8; i++) total += of_warp[i];
    return 1.0f / sqrtf(total / static_cast<float>(width) + eps);
}

// Values of an input that a thread has on their way at a time.
enum { BATCH = 8 };

// A token's input, widened and normed, in shared memory, for a block of 256 threads: `padded` values. A thread has the
// same columns all along. Loads come before stores, which might change what they read.
__device__ inline void bring_input(const void* x, const Norm& norm, u64 token, int columns, bool first, int bf16, float* to) {
    u64 row = token * columns;
    bool adds = norm.weight && norm.added;
    float sum = 0.0f, v[BATCH], more[BATCH];
    for (int base = threadIdx.x; base < columns; base += BATCH * 256) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int c = base + i * 256;
            v[i] = c < columns ? read(x, row + c, bf16) : 0.0f;
            more[i] = adds && c < columns ? read(norm.added, row + c, bf16) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int c = base + i * 256;
            if (adds) v[i] = rounded(v[i] + more[i], bf16);
            sum = fmaf(v[i], v[i], sum);
            if (c < columns) to[place_of(c)] = v[i];
            if (c < columns && adds && first) write(norm.sum, row + c, v[i], bf16);
        }
    }
    if (norm.weight) {
        float factor = norm_factor(sum, columns, norm.eps);
        for (int base = threadIdx.x; base < columns; base += BATCH * 256) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int c = base + i * 256;
                more[i] = c < columns ? value_at(norm.weight, c, norm.type) : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int c = base + i * 256;
                if (c >= columns) break;
                v[i] = rounded(more[i] * rounded(to[place_of(c)] * factor, bf16), bf16);
                to[place_of(c)] = v[i];
                if (first) write(norm.normed, row + c, v[i], bf16);
            }
        }
    }
    __syncthreads();
}

// A lane's part of N rows from some column on.
template <int T, int N>
struct Ahead {
    Eight of[N][STEPS];

    __device__ inline void load(const void* const rows[N], int from, int columns) {
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            int c = from + s * WARP_COLUMNS + threadIdx.x % 32 * 8;
#pragma unroll
            for (int n = 0; n < N; n++) {
                if (c < columns) of[n][s] = load_eight<T>(rows[n], c);
            }
        }
    }
};

// The products of N rows with an input each; what `ahead` holds of their beginning was loaded before. All lanes of the
// warp get the sums. A row's sum does not depend on the rows beside it.
template <int T, int N>
__device__ inline void dots(const void* const rows[N], bool vectors, const float* const x[N], int columns,
                            Ahead<T, N>& ahead, float sums[N]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N; n++) sums[n] = 0.0f;
    if (vectors) {
        for (int from = 0; from < columns; from += CHUNK) {
            Ahead<T, N> now = ahead;
            if (from + CHUNK < columns) ahead.load(rows, from + CHUNK, columns);
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int at = from + s * WARP_COLUMNS, c = at + lane * 8;
                if (c >= columns) break;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    float4 low = *reinterpret_cast<const float4*>(x[n] + at + lane * 4);
                    float4 high = *reinterpret_cast<const float4*>(x[n] + at + 128 + lane * 4);
                    float w[8], v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
                    widen_eight<T>(now.of[n][s], w);
#pragma unroll
                    for (int i = 0; i < 8; i++) sums[n] = fmaf(w[i], v[i], sums[n]);
                }
            }
        }
    } else {
        for (int c = lane; c < columns; c += 32) {
#pragma unroll
            for (int n = 0; n < N; n++) sums[n] = fmaf(value_at(rows[n], c, T), x[n][place_of(c)], sums[n]);
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) sums[n] = warp_sum(sums[n]);
}

template <int T>
__device__ inline const void* row_of(const void* matrix, u64 row, int columns) {
    return reinterpret_cast<const char*>(matrix) + row * columns * (T == F32 ? 4 : 2);
}

// A product's result, by every lane of a warp.
__device__ inline void write_product(const Product& p, u64 token, int row, float sum, int bf16) {
    if (threadIdx.x % 32 != 0) return;
    float bias = p.bias ? value_at(p.bias, row, p.bias_type) : 0.0f;
    write(p.out, token * p.rows + row, sum + bias, bf16);
}
