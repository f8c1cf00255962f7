// Products of few tokens, of dense weights and of experts. Blocks of 256 threads.
#include "dot.cuh"

// Row number `i` of all rows of the products, if there are so many.
__device__ inline bool find_row(const Products& products, int i, int& number, int& row) {
    for (number = 0; number < 3; number++) {
        if (i < products.of[number].rows) {
            row = i;
            return true;
        }
        i -= products.of[number].rows;
    }
    return false;
}

// Up to three products of the same tokens, after a norm where there is one. blockIdx.y is the token; warps go through the
// rows.
template <int T>
__device__ inline void gemv(const Products& products, const void* x, const Norm& norm, int columns, int bf16) {
    DYNAMIC_SHARED(float, input);
    int warps = gridDim.x * 8, next = blockIdx.x * 8 + threadIdx.x / 32, number, row;
    bool more = find_row(products, next, number, row);
    const void* rows[1] = {nullptr};
    bool vectors = false;
    Ahead<T, 1> ahead;
    auto begin = [&] {
        const void* weight = products.of[number].weight;
        rows[0] = row_of<T>(weight, row, columns);
        vectors = rows_in_sixteens<T>(weight, columns);
        if (vectors) ahead.load(rows, 0, columns);
    };
    if (more) begin();
    bring_input(x, norm, blockIdx.y, columns, blockIdx.x == 0, bf16, input);
    const float* in[1] = {input};
    while (more) {
        float sum[1];
        int done = number, done_row = row;
        dots<T, 1>(rows, vectors, in, columns, ahead, sum, [&] {
            next += warps;
            more = find_row(products, next, number, row);
            if (more) begin();
        });
        write_product(products.of[done], blockIdx.y, done_row, sum[0], bf16);
    }
}

// inner[pair] = silu(gate · x) · (up · x) for every pair of token and expert; blockIdx.y is the pair, and a warp has one
// row of both matrices.
template <int T>
__device__ inline void expert_gate_up(ExpertTable table, const u32* ids, int best, const void* x, int hidden, int inner,
                                      int bf16, void* out) {
    DYNAMIC_SHARED(float, input);
    int pair = blockIdx.y;
    const void* gate = expert_matrix(table, ids[pair], 0);
    const void* up = expert_matrix(table, ids[pair], 1);
    if (!gate || !up) return; // of the whole block
    int row = blockIdx.x * 8 + threadIdx.x / 32;
    bool vectors = rows_in_sixteens<T>(gate, hidden) && rows_in_sixteens<T>(up, hidden);
    const void* rows[2] = {row_of<T>(gate, row, hidden), row_of<T>(up, row, hidden)};
    Ahead<T, 2> ahead;
    if (row < inner && vectors) ahead.load(rows, 0, hidden);
    bring_input(x, Norm(), pair / best, hidden, false, bf16, input);
    if (row >= inner) return;
    const float* in[2] = {input, input};
    float sums[2];
    dots<T, 2>(rows, vectors, in, hidden, ahead, sums, nothing);
    if (threadIdx.x % 32 == 0) {
        float g = rounded(silu(rounded(sums[0], bf16)), bf16);
        write(out, static_cast<u64>(pair) * inner + row, g * rounded(sums[1], bf16), bf16);
    }
}

// y[pair] = down · inner[pair], of those pairs whose expert is there.
template <int T>
__device__ inline void expert_down(ExpertTable table, const u32* ids, const void* inner, int width, int hidden, int bf16,
                                   void* y) {
    DYNAMIC_SHARED(float, input);
    int pair = blockIdx.y;
    const void* down = expert_matrix(table, ids[pair], 2);
    if (!down) return; // of the whole block
    int row = blockIdx.x * 8 + threadIdx.x / 32;
    bool vectors = rows_in_sixteens<T>(down, width);
    const void* rows[1] = {row_of<T>(down, row, width)};
    Ahead<T, 1> ahead;
    if (row < hidden && vectors) ahead.load(rows, 0, width);
    bring_input(inner, Norm(), pair, width, false, bf16, input);
    if (row >= hidden) return;
    const float* in[1] = {input};
    float sum[1];
    dots<T, 1>(rows, vectors, in, width, ahead, sum, nothing);
    if (threadIdx.x % 32 == 0) write(y, static_cast<u64>(pair) * hidden + row, sum[0], bf16);
}

// added[token] = the sum of weight · (down · inner) over its experts, all of which are there: expert_down and
// expert_combine in one, with the same bits. blockIdx.y is the token; a warp has one row of all its experts.
template <int T>
__device__ inline void expert_down_all(ExpertTable table, const u32* ids, const float* weights, const u32* order, int best,
                                       const void* inner, int width, int hidden, int bf16, void* added) {
    enum { TOGETHER = 2 };
    DYNAMIC_SHARED(float, inputs);
    // of each expert, in the order of their numbers
    struct Source {
        const void* down;
        int input; // where it begins in `inputs`
        float weight;
    };
    Source* sources = reinterpret_cast<Source*>(inputs + best * padded(width));
    u64 token = blockIdx.y;
    int row = blockIdx.x * 8 + threadIdx.x / 32;
    const void* rows[TOGETHER];
    const float* in[TOGETHER];
    float factors[TOGETHER];
    bool vectors;
    Ahead<T, TOGETHER> ahead;
    auto look_up = [&](int j) -> Source {
        u32 pair = order[token * best + j];
        return {expert_matrix(table, ids[pair], 2), static_cast<int>(pair - token * best) * padded(width), weights[pair]};
    };
    // experts from `from` on; the last one again where there are fewer. The first ones do not wait for shared memory
    auto begin = [&](int from) {
        vectors = true;
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            int j = from + n < best ? from + n : best - 1;
            Source source = from == 0 ? look_up(j) : sources[j];
            rows[n] = row_of<T>(source.down, row, width);
            in[n] = inputs + source.input;
            factors[n] = source.weight;
            vectors = vectors && rows_in_sixteens<T>(source.down, width);
        }
        if (vectors && row < hidden) ahead.load(rows, 0, width);
    };
    begin(0);
    for (int j = threadIdx.x; j < best; j += 256) sources[j] = look_up(j);
#pragma unroll 4
    for (int i = threadIdx.x; i < best * width; i += 256) {
        int j = i / width;
        inputs[j * padded(width) + place_of(i - j * width)] = read(inner, token * best * width + i, bf16);
    }
    __syncthreads();
    if (row >= hidden) return;
    float sum = 0.0f;
    for (int from = 0; from < best; from += TOGETHER) {
        float y[TOGETHER], of[TOGETHER];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) of[n] = factors[n];
        dots<T, TOGETHER>(rows, vectors, in, width, ahead, y, [&] {
            if (from + TOGETHER < best) begin(from + TOGETHER);
        });
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            if (from + n < best) sum = rounded(sum + rounded(rounded(y[n], bf16) * of[n], bf16), bf16);
        }
    }
    if (threadIdx.x % 32 == 0) write(added, token * hidden + row, sum, bf16);
}

#define GEMV(name, T)                                                                                                 \
    KERNEL __launch_bounds__(256)                                                                                     \
        gemv_##name(const __grid_constant__ Products products, const void* x, const __grid_constant__ Norm norm,      \
                    int columns, int bf16) {                                                                          \
        gemv<T>(products, x, norm, columns, bf16);                                                                    \
    }                                                                                                                 \
    KERNEL __launch_bounds__(256)                                                                                     \
        expert_gate_up_##name(ExpertTable table, const u32* ids, int best, const void* x, int hidden, int inner,      \
                              int bf16, void* out) {                                                                  \
        expert_gate_up<T>(table, ids, best, x, hidden, inner, bf16, out);                                             \
    }                                                                                                                 \
    KERNEL __launch_bounds__(256)                                                                                     \
        expert_down_##name(ExpertTable table, const u32* ids, const void* inner, int width, int hidden, int bf16,     \
                           void* y) {                                                                                 \
        expert_down<T>(table, ids, inner, width, hidden, bf16, y);                                                    \
    }                                                                                                                 \
    KERNEL __launch_bounds__(256)                                                                                     \
        expert_down_all_##name(ExpertTable table, const u32* ids, const float* weights, const u32* order, int best,   \
                               const void* inner, int width, int hidden, int bf16, void* added) {                     \
        expert_down_all<T>(table, ids, weights, order, best, inner, width, hidden, bf16, added);                      \
    }

GEMV(bf16, BF16)
GEMV(f16, F16)
GEMV(f32, F32)
