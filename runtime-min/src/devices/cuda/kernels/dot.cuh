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

// A thread's next values of a row, 256 columns apart; 0 after its end.
template <int T>
__device__ inline void read_batch(const void* from, u64 row, int c, int columns, float to[BATCH]) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) to[i] = c + i * 256 < columns ? value_at(from, row + c + i * 256, T) : 0.0f;
}

// As `bring_input`, at one precision: few instructions, since every block does it.
template <bool IS_BF16>
__device__ inline void bring(const void* x, const Norm& norm, u64 row, int columns, bool first, float* to) {
    enum { TYPE = IS_BF16 ? BF16 : F32 };
    bool adds = norm.weight && norm.added;
    float sum = 0.0f, v[BATCH], more[BATCH];
    int thread = threadIdx.x;
    to += place_of(thread) - thread; // the places of a thread's columns are 256 apart like them
    for (int base = thread; base < columns; base += BATCH * 256) {
        read_batch<TYPE>(x, row, base, columns, v);
        if (adds) {
            read_batch<TYPE>(norm.added, row, base, columns, more);
#pragma unroll
            for (int i = 0; i < BATCH; i++) v[i] = rounded(v[i] + more[i], IS_BF16);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            sum = fmaf(v[i], v[i], sum);
            if (base + i * 256 < columns) to[base + i * 256] = v[i];
        }
        for (int i = 0; adds && first && i < BATCH && base + i * 256 < columns; i++) {
            write(norm.sum, row + base + i * 256, to[base + i * 256], IS_BF16);
        }
    }
    if (norm.weight) {
        float factor = norm_factor(sum, columns, norm.eps);
        for (int base = thread; base < columns; base += BATCH * 256) {
            if (norm.type == BF16) {
                read_batch<BF16>(norm.weight, 0, base, columns, more);
            } else if (norm.type == F16) {
                read_batch<F16>(norm.weight, 0, base, columns, more);
            } else {
                read_batch<F32>(norm.weight, 0, base, columns, more);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int c = base + i * 256;
                if (c < columns) to[c] = rounded(more[i] * rounded(to[c] * factor, IS_BF16), IS_BF16);
            }
            for (int i = 0; first && i < BATCH && base + i * 256 < columns; i++) {
                write(norm.normed, row + base + i * 256, to[base + i * 256], IS_BF16);
            }
        }
    }
    __syncthreads();
}

// A token's input, widened and normed, in shared memory, for a block of 256 threads: `padded` values. A thread has the
// same columns all along. Loads come before stores, which might change what they read.
__device__ inline void bring_input(const void* x, const Norm& norm, u64 token, int columns, bool first, int bf16, float* to) {
    if (bf16) {
        bring<true>(x, norm, token * columns, columns, first, to);
    } else {
        bring<false>(x, norm, token * columns, columns, first, to);
    }
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

// The products of N rows with an input each; what `ahead` holds of their beginning was loaded before. `next` begins what
// comes after them, while they are multiplied. All lanes of the warp get the sums. A row's sum does not depend on the rows
// beside it.
template <int T, int N, class Next>
__device__ inline void dots(const void* const rows[N], bool vectors, const float* const inputs[N], int columns,
                            Ahead<T, N>& ahead, float sums[N], Next next) {
    int lane = threadIdx.x % 32;
    const float* x[N];
#pragma unroll
    for (int n = 0; n < N; n++) sums[n] = 0.0f, x[n] = inputs[n];
    if (vectors) {
        for (int from = 0; from < columns; from += CHUNK) {
            Ahead<T, N> now = ahead;
            if (from + CHUNK < columns) {
                ahead.load(rows, from + CHUNK, columns);
            } else {
                next();
            }
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
        next();
    }
#pragma unroll
    for (int n = 0; n < N; n++) sums[n] = warp_sum(sums[n]);
}

__device__ inline void nothing() {}

// A product's result, by every lane of a warp.
__device__ inline void write_product(const Product& p, u64 token, int row, float sum, int bf16) {
    if (threadIdx.x % 32 != 0) return;
    float bias = p.bias ? value_at(p.bias, row, p.bias_type) : 0.0f;
    write(p.out, token * p.rows + row, sum + bias, bf16);
}
