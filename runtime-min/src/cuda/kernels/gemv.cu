// Products of few tokens: every weight is read once, by one warp per two rows, eight values per lane and load.
#include "device.cuh"

// Rows that a warp multiplies at a time, and loads of each in flight.
enum { STEPS = 4, WARP_COLUMNS = 256 };

// The products of two rows with x. All lanes of the warp get both sums.
template <int T>
__device__ inline void dot_two(const void* first, const void* second, bool vectors, const float* x, int columns,
                               float sums[2]) {
    int lane = threadIdx.x % 32;
    float a = 0.0f, b = 0.0f;
    if (vectors) {
        for (int from = lane * 8; from < columns; from += STEPS * WARP_COLUMNS) {
            Eight of_first[STEPS], of_second[STEPS];
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int c = from + s * WARP_COLUMNS;
                if (c < columns) {
                    of_first[s] = load_eight<T>(first, c);
                    of_second[s] = load_eight<T>(second, c);
                }
            }
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                int c = from + s * WARP_COLUMNS;
                if (c < columns) {
                    float w[8], v[8];
                    widen_eight<T>(of_first[s], w);
                    widen_eight<T>(of_second[s], v);
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        a = fmaf(w[i], x[c + i], a);
                        b = fmaf(v[i], x[c + i], b);
                    }
                }
            }
        }
    } else {
        for (int c = lane; c < columns; c += 32) {
            a = fmaf(value_at(first, c, T), x[c], a);
            b = fmaf(value_at(second, c, T), x[c], b);
        }
    }
    sums[0] = warp_sum(a);
    sums[1] = warp_sum(b);
}

template <int T>
__device__ inline const void* row_of(const void* matrix, u64 row, int columns) {
    return reinterpret_cast<const char*>(matrix) + row * columns * (T == F32 ? 4 : 2);
}

// The block's input, widened, in shared memory.
__device__ inline const float* input(const void* x, u64 first, int columns, int bf16) {
    DYNAMIC_SHARED(float, copy);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) copy[i] = read(x, first + i, bf16);
    __syncthreads();
    return copy;
}

// Up to three products of the same tokens. blockIdx.y is the token; warps go through pairs of rows.
template <int T>
__device__ inline void gemv(const Products& products, const void* x, int columns, int bf16) {
    const float* in = input(x, static_cast<u64>(blockIdx.y) * columns, columns, bf16);
    int pair = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, number = 0;
    while (number < 3 && pair >= (products.of[number].rows + 1) / 2) {
        pair -= (products.of[number].rows + 1) / 2;
        number++;
    }
    if (number == 3) return;
    const Product& p = products.of[number];
    int row = pair * 2, second = row + 1 < p.rows ? row + 1 : row;
    float sums[2];
    dot_two<T>(row_of<T>(p.weight, row, columns), row_of<T>(p.weight, second, columns),
               rows_in_sixteens<T>(p.weight, columns), in, columns, sums);
    int lane = threadIdx.x % 32;
    if (lane < 2 && row + lane < p.rows) {
        float bias = p.bias ? value_at(p.bias, row + lane, p.bias_type) : 0.0f;
        write(p.out, static_cast<u64>(blockIdx.y) * p.rows + row + lane, (lane ? sums[1] : sums[0]) + bias, bf16);
    }
}

// inner[pair] = silu(gate · x) · (up · x) for every pair of token and expert; blockIdx.y is the pair, and a warp has one
// row of both matrices.
template <int T>
__device__ inline void expert_gate_up(ExpertTable table, const u32* ids, int best, const void* x, int hidden, int inner,
                                      int bf16, void* out) {
    int pair = blockIdx.y;
    const void* gate = expert_matrix(table, ids[pair], 0);
    const void* up = expert_matrix(table, ids[pair], 1);
    if (!gate || !up) return; // of the whole block
    const float* in = input(x, static_cast<u64>(pair / best) * hidden, hidden, bf16);
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= inner) return;
    float sums[2];
    dot_two<T>(row_of<T>(gate, row, hidden), row_of<T>(up, row, hidden),
               rows_in_sixteens<T>(gate, hidden) && rows_in_sixteens<T>(up, hidden), in, hidden, sums);
    if (threadIdx.x % 32 == 0) {
        float g = rounded(silu(rounded(sums[0], bf16)), bf16);
        write(out, static_cast<u64>(pair) * inner + row, g * rounded(sums[1], bf16), bf16);
    }
}

// y[pair] = down · inner[pair].
template <int T>
__device__ inline void expert_down(ExpertTable table, const u32* ids, const void* inner, int width, int hidden, int bf16, void* y) {
    int pair = blockIdx.y;
    const void* down = expert_matrix(table, ids[pair], 2);
    if (!down) return; // of the whole block
    const float* in = input(inner, static_cast<u64>(pair) * width, width, bf16);
    int row = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * 2;
    if (row >= hidden) return;
    int second = row + 1 < hidden ? row + 1 : row;
    float sums[2];
    dot_two<T>(row_of<T>(down, row, width), row_of<T>(down, second, width), rows_in_sixteens<T>(down, width), in, width,
               sums);
    int lane = threadIdx.x % 32;
    if (lane < 2 && row + lane < hidden) {
        write(y, static_cast<u64>(pair) * hidden + row + lane, lane ? sums[1] : sums[0], bf16);
    }
}

#define GEMV(name, T)                                                                                                 \
    KERNEL gemv_##name(const __grid_constant__ Products products, const void* x, int columns, int bf16) {                        \
        gemv<T>(products, x, columns, bf16);                                                                  \
    }                                                                                                                 \
    KERNEL expert_gate_up_##name(ExpertTable table, const u32* ids, int best, const void* x, int hidden, int inner,  \
                                 int bf16, void* out) {                                                  \
        expert_gate_up<T>(table, ids, best, x, hidden, inner, bf16, out);                                     \
    }                                                                                                                 \
    KERNEL expert_down_##name(ExpertTable table, const u32* ids, const void* inner, int width, int hidden, int bf16, \
                              void* y) {                                                                 \
        expert_down<T>(table, ids, inner, width, hidden, bf16, y);                                            \
    }

GEMV(bf16, BF16)
GEMV(f16, F16)
GEMV(f32, F32)
