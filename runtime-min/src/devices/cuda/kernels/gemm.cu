// Products of many tokens, in tiles; of dense weights, and of the experts that `expert_sort` gave tiles to.
//
// `fma`: f32 multiply-adds, exact products of bf16 weights with f32 activations (strict f32, no tf32).
// `mma`: bf16 tensor cores with f32 accumulators; activations are bf16 values already.
//
// Every sum goes through the columns in ascending order, so that no result depends on the tile that it is computed in.
#include "mma.cuh"

// Rows of weights of a block. A gated block has half of them of gate, half of up.
enum { TILE_ROWS = 128 };

// One block's work: some rows of a weight times some tokens; or of two, for silu(first) · second.
struct Tile {
    const void* weight[2]; // [rows, columns]
    const void* bias;      // [rows], or null
    int bias_type;
    int rows, columns, first_row;
    const void* x; // [.., columns], activations
    void* out;     // [.., rows], activations
    const u32* pairs; // which rows of x and out, or null for those from `first` on
    int first, tokens;
    int divide; // row of x = pair / divide
};

__device__ inline u64 out_row(const Tile& t, int token) { return t.pairs ? t.pairs[token] : t.first + token; }
__device__ inline u64 x_row(const Tile& t, int token) { return t.pairs ? t.pairs[token] / t.divide : t.first + token; }

// Four values of a row at any address, as they are stored; 0 after the end.
template <int T>
__device__ inline uint4 four_values(const char* row, int column, int columns, bool vectors) {
    u32 words[4] = {0, 0, 0, 0};
    row += column * (T == F32 ? 4 : 2);
    if (vectors) {
        if (column < columns && T == F32) return *reinterpret_cast<const uint4*>(row);
        if (column < columns) {
            uint2 two = *reinterpret_cast<const uint2*>(row);
            words[0] = two.x, words[1] = two.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (column + i >= columns) continue;
            if (T == F32) {
                words[i] = reinterpret_cast<const u32*>(row)[i];
            } else {
                words[i / 2] |= static_cast<u32>(reinterpret_cast<const u16*>(row)[i]) << (i % 2 * 16);
            }
        }
    }
    return {words[0], words[1], words[2], words[3]};
}

template <int T>
__device__ inline void widen_four(const uint4& four, float* to) {
    if (T == F32) {
        to[0] = __uint_as_float(four.x), to[1] = __uint_as_float(four.y);
        to[2] = __uint_as_float(four.z), to[3] = __uint_as_float(four.w);
    } else {
        widen_pair<T>(four.x, to), widen_pair<T>(four.y, to + 2);
    }
}

enum { FMA_DEPTH = 8, FMA_TOKENS_OUT = 32 };

// Results of some tokens from `first` on, whose sums are in shared memory.
template <bool GATED>
__device__ inline void fma_out(const Tile& t, const float* sums, int first, int bf16) {
    enum { WIDTH = GATED ? TILE_ROWS / 2 : TILE_ROWS };
#pragma unroll 1
    for (int i = threadIdx.x; i < FMA_TOKENS_OUT * WIDTH; i += blockDim.x) {
        int token = first + i / WIDTH, row = t.first_row + i % WIDTH;
        if (token >= t.tokens || row >= t.rows) continue;
        const float* sum = sums + i / WIDTH * TILE_ROWS + i % WIDTH;
        float value = sum[0];
        if (GATED) {
            value = rounded(silu(rounded(value, bf16)), bf16) * rounded(sum[TILE_ROWS / 2], bf16);
        } else if (t.bias) {
            value += value_at(t.bias, row, t.bias_type);
        }
        write(t.out, out_row(t, token) * t.rows + row, value, bf16);
    }
}

// 256 threads; each has TOKENS / 16 tokens times 8 rows, in fours that lie 64 apart: eight lanes then read 128 bytes in a
// row. With 128 tokens, four 16-byte reads of shared memory feed 64 multiply-adds, and those are the limit. While a step
// is computed the next one is on its way to registers, then goes to the other buffer: one barrier a step.
template <int T, int TOKENS, bool GATED>
__device__ inline void fma_tile(const Tile& t, int bf16) {
    enum { FOURS = TOKENS / 64, STEP = FMA_DEPTH * (TOKENS + TILE_ROWS) };
    DYNAMIC_SHARED(float, buffers); // twice [FMA_DEPTH][TOKENS], [FMA_DEPTH][TILE_ROWS]
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    // what this thread loads: four columns of a token, and of a row
    int token = threadIdx.x % TOKENS, x_column = threadIdx.x / TOKENS * 4;
    int line = threadIdx.x % TILE_ROWS, w_column = threadIdx.x / TILE_ROWS * 4;
    bool has_token = x_column < FMA_DEPTH && token < t.tokens;
    const void* weight = GATED && line >= TILE_ROWS / 2 ? t.weight[1] : t.weight[0];
    int row = t.first_row + (GATED ? line % (TILE_ROWS / 2) : line);
    bool has_row = row < t.rows, w_vectors = rows_in_sixteens<T>(weight, t.columns);
    bool x_vectors = rows_in_sixteens<F32>(t.x, t.columns); // the same for bf16
    u64 of_x = has_token ? x_row(t, token) : 0;
    const char* x = bf16 ? row_of<BF16>(t.x, of_x, t.columns) : row_of<F32>(t.x, of_x, t.columns);
    const char* w = row_of<T>(weight, has_row ? row : 0, t.columns);
    uint4 next_x = {0, 0, 0, 0}, next_w = {0, 0, 0, 0};
    auto load = [&](int from) {
        if (has_token) {
            next_x = bf16 ? four_values<BF16>(x, from + x_column, t.columns, x_vectors)
                          : four_values<F32>(x, from + x_column, t.columns, x_vectors);
        }
        if (has_row) next_w = four_values<T>(w, from + w_column, t.columns, w_vectors);
    };
    auto put = [&](float* buffer) {
        float values[4];
        if (x_column < FMA_DEPTH) {
            if (bf16) {
                widen_four<BF16>(next_x, values);
            } else {
                widen_four<F32>(next_x, values);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) buffer[(x_column + i) * TOKENS + token] = values[i];
        }
        widen_four<T>(next_w, values);
#pragma unroll
        for (int i = 0; i < 4; i++) buffer[FMA_DEPTH * TOKENS + (w_column + i) * TILE_ROWS + line] = values[i];
    };
    float sums[FOURS * 4][8] = {};
    load(0);
    put(buffers);
    __syncthreads();
    for (int from = 0, now = 0; from < t.columns; from += FMA_DEPTH, now ^= 1) {
        bool more = from + FMA_DEPTH < t.columns;
        if (more) load(from + FMA_DEPTH);
        const float* xs = buffers + now * STEP + ty * 4;
        const float* ws = buffers + now * STEP + FMA_DEPTH * TOKENS + tx * 4;
#pragma unroll 4
        for (int k = 0; k < FMA_DEPTH; k++) {
            float a[FOURS * 4], b[8];
#pragma unroll
            for (int i = 0; i < FOURS; i++) {
                float4 four = *reinterpret_cast<const float4*>(xs + k * TOKENS + i * 64);
                a[i * 4] = four.x, a[i * 4 + 1] = four.y, a[i * 4 + 2] = four.z, a[i * 4 + 3] = four.w;
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float4 four = *reinterpret_cast<const float4*>(ws + k * TILE_ROWS + j * 64);
                b[j * 4] = four.x, b[j * 4 + 1] = four.y, b[j * 4 + 2] = four.z, b[j * 4 + 3] = four.w;
            }
#pragma unroll
            for (int i = 0; i < FOURS * 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
        }
        if (more) put(buffers + (now ^ 1) * STEP);
        __syncthreads();
    }
    // tokens of other threads lie between those of this one
#pragma unroll
    for (int part = 0; part < TOKENS / FMA_TOKENS_OUT; part++) {
        if (ty / 8 == part % 2) {
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const float* four = &sums[part / 2 * 4 + i][j * 4];
                    float* to = buffers + (ty % 8 * 4 + i) * TILE_ROWS + j * 64 + tx * 4;
                    *reinterpret_cast<float4*>(to) = {four[0], four[1], four[2], four[3]};
                }
        }
        __syncthreads();
        fma_out<GATED>(t, buffers, part * FMA_TOKENS_OUT, bf16);
        __syncthreads();
    }
}

enum { MMA_THREADS = 128 };

// How four warps share a tile: WARPS of them beside each other along the rows, each with M · 16 tokens and N · 8 rows; and
// how many steps of how many columns shared memory holds.
template <int WARPS_, int M_, int N_, int DEPTH_, int STAGES_>
struct Cut {
    enum {
        WARPS = WARPS_,
        M = M_,
        N = N_,
        DEPTH = DEPTH_,
        STAGES = STAGES_,
        TOKENS = 4 / WARPS * M * 16,
        CHUNKS = DEPTH / 8,             // sixteens of bytes of a line
        LINES = MMA_THREADS / CHUNKS,   // that are copied at a time
        STAGE = (TOKENS + TILE_ROWS) * DEPTH,
        HALF = N * 4,                   // rows of gate, then of up, of a gated warp
    };
    static_assert(WARPS * N * 8 == TILE_ROWS && TOKENS % LINES == 0 && HALF % LINES == 0, "no such cut");
};

// A line's sixteens lie in another order in each of eight lines, so that a column of eight lines, which is what ldmatrix
// reads, is in all banks, as are the eight that eight lanes copy.
template <class C>
__device__ inline int swizzled(int line, int chunk) {
    static_assert(C::DEPTH == 64 || C::DEPTH == 32, "a line is 128 or 64 bytes");
    return line * C::DEPTH + (chunk ^ (C::DEPTH == 64 ? line & 7 : line >> 1 & 3)) * 8;
}

// silu(gate) · up of two rows, rounded as the eager code does it.
__device__ inline u32 gated_two(const float* gate, const float* up) {
    float g[2], u[2];
    widen_pair<BF16>(round_pair(gate[0], gate[1]), g);
    widen_pair<BF16>(round_pair(up[0], up[1]), u);
    widen_pair<BF16>(round_pair(silu(g[0]), silu(g[1])), g);
    return round_pair(g[0] * u[0], g[1] * u[1]);
}

// The biases of a block's rows, 0 where there are none, in shared memory that nobody uses any more.
__device__ inline const float* biases(const Tile& t, void* shared) {
    float* to = reinterpret_cast<float*>(shared);
    int row = t.first_row + threadIdx.x; // one thread a row
    to[threadIdx.x] = t.bias && row < t.rows ? value_at(t.bias, row, t.bias_type) : 0.0f;
    __syncthreads();
    return to;
}

template <class C, bool GATED>
__device__ inline void mma_tile(const Tile& t) {
    DYNAMIC_SHARED(u16, stages); // of TOKENS lines of x, then TILE_ROWS of the weight; each warp's of gate, then of up
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_token = warp / C::WARPS * C::M * 16, warp_row = warp % C::WARPS * C::N * 8;

    // what this thread copies: one sixteen of every line of LINES
    enum { X_COPIES = C::TOKENS / C::LINES, W_COPIES = TILE_ROWS / C::LINES };
    int chunk = threadIdx.x % C::CHUNKS, line = threadIdx.x / C::CHUNKS, copied = swizzled<C>(line, chunk);
    bool x_vectors = rows_in_sixteens<BF16>(t.x, t.columns);
    bool w_vectors = rows_in_sixteens<BF16>(t.weight[0], t.columns) && (!GATED || in_sixteens(t.weight[1]));
    auto x_line = [&](int token) { return row_of<BF16>(t.x, x_row(t, token < t.tokens ? token : 0), t.columns); };
    // of the i-th copy, less `line`
    auto which = [](int i) { return GATED ? i * C::LINES / C::HALF % 2 : 0; };
    auto row_of_copy = [](int i) {
        return GATED ? i * C::LINES / (C::HALF * 2) * C::HALF + i * C::LINES % C::HALF : i * C::LINES;
    };
    const char *x[X_COPIES], *w[2];
#pragma unroll
    for (int i = 0; i < X_COPIES; i++) x[i] = x_line(line + i * C::LINES) + chunk * 16;
#pragma unroll
    for (int i = 0; i < 2; i++) w[i] = row_of<BF16>(t.weight[GATED ? i : 0], t.first_row + line, t.columns) + chunk * 16;
    u64 row_bytes = static_cast<u64>(t.columns) * 2;
    auto load = [&](int stage, int step) {
        u16* to = stages + stage * C::STAGE + copied;
        int column = step * C::DEPTH + chunk * 8;
        u32 left = column < t.columns ? 16 : 0;
        u64 from = static_cast<u64>(step) * C::DEPTH * 2;
        if (x_vectors) {
#pragma unroll
            for (int i = 0; i < X_COPIES; i++) {
                copy_async(to + i * C::LINES * C::DEPTH, x[i] + from, line + i * C::LINES < t.tokens ? left : 0);
            }
        } else {
#pragma unroll 1
            for (int i = line; i < C::TOKENS; i += C::LINES, to += C::LINES * C::DEPTH) {
                *reinterpret_cast<uint4*>(to) = eight_of<BF16>(x_line(i), column, i < t.tokens ? t.columns : 0, false).low;
            }
        }
        to = stages + stage * C::STAGE + C::TOKENS * C::DEPTH + copied;
        if (w_vectors) {
#pragma unroll
            for (int i = 0; i < W_COPIES; i++) {
                bool inside = t.first_row + line + row_of_copy(i) < t.rows;
                copy_async(to + i * C::LINES * C::DEPTH, w[which(i)] + row_of_copy(i) * row_bytes + from, inside ? left : 0);
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < W_COPIES; i++, to += C::LINES * C::DEPTH) {
                int row = t.first_row + line + row_of_copy(i);
                const char* of = row_of<BF16>(which(i) ? t.weight[1] : t.weight[0], row, t.columns);
                *reinterpret_cast<uint4*>(to) = eight_of<BF16>(of, column, row < t.rows ? t.columns : 0, false).low;
            }
        }
    };

    // 16 columns of what this warp multiplies: of the tokens 16 lines at a time, low columns, then high; of the rows 8
    // lines, low and high, then the next 8
    int a_place = swizzled<C>(warp_token + lane % 16, lane / 16);
    int b_place = C::TOKENS * C::DEPTH + swizzled<C>(warp_row + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    u32 a[2][C::M][4], b[2][C::N / 2][4];
    auto read_columns = [&](int stage, int k) {
        const u16* from = stages + stage * C::STAGE;
#pragma unroll
        for (int i = 0; i < C::M; i++) load_matrices<false>(a[k % 2][i], from + (a_place ^ k * 16) + i * 16 * C::DEPTH);
#pragma unroll
        for (int j = 0; j < C::N / 2; j++) {
            load_matrices<false>(b[k % 2][j], from + (b_place ^ k * 16) + j * 16 * C::DEPTH);
        }
    };

    float sums[C::M][C::N][4] = {};
    int steps = (t.columns + C::DEPTH - 1) / C::DEPTH, now = 0, free = C::STAGES - 1;
#pragma unroll 1
    for (int s = 0; s < C::STAGES - 1; s++) {
        if (s < steps) load(s, s);
        commit_copies();
    }
    wait_copies<C::STAGES - 2>();
    __syncthreads();
    read_columns(0, 0);
    for (int step = 0; step < steps; step++) {
        enum { LAST = C::DEPTH / 16 - 1 };
#pragma unroll
        for (int k = 0; k <= LAST; k++) {
            if (k == 0) {
                // nobody reads this stage any more since the last barrier
                if (step + C::STAGES - 1 < steps) load(free, step + C::STAGES - 1);
                commit_copies();
                free = free + 1 == C::STAGES ? 0 : free + 1;
            }
            if (k == LAST) {
                wait_copies<C::STAGES - 2>();
                __syncthreads();
                now = now + 1 == C::STAGES ? 0 : now + 1;
            }
            // the next columns come while these are multiplied
            if (k < LAST || step + 1 < steps) read_columns(now, k == LAST ? 0 : k + 1);
#pragma unroll
            for (int i = 0; i < C::M; i++)
#pragma unroll
                for (int j = 0; j < C::N; j++) mma(sums[i][j], a[k % 2][i], &b[k % 2][j / 2][j % 2 * 2]);
        }
    }
    // after the barrier of the last step nobody reads the stage that `biases` writes, nor any copy comes
    const float* bias = GATED ? nullptr : biases(t, stages);
    bool pairs_fit = t.rows % 2 == 0 && (reinterpret_cast<u64>(t.out) & 3u) == 0;
#pragma unroll
    for (int i = 0; i < C::M * 2; i++) {
        int token = warp_token + i * 8 + lane / 4;
        if (token >= t.tokens) continue;
        u16* out = reinterpret_cast<u16*>(t.out) + out_row(t, token) * t.rows;
#pragma unroll
        for (int j = 0; j < (GATED ? C::N / 2 : C::N); j++) {
            int line = (GATED ? warp_row / 2 : warp_row) + j * 8 + lane % 4 * 2, row = t.first_row + line;
            const float* sum = &sums[i / 2][j][i % 2 * 2];
            u32 two = GATED ? gated_two(sum, &sums[i / 2][(j + C::N / 2) % C::N][i % 2 * 2])
                            : round_pair(sum[0] + bias[line], sum[1] + bias[line + 1]);
            if (pairs_fit) {
                if (row < t.rows) *reinterpret_cast<u32*>(out + row) = two;
            } else {
                if (row < t.rows) out[row] = static_cast<u16>(two);
                if (row + 1 < t.rows) out[row + 1] = static_cast<u16>(two >> 16);
            }
        }
    }
}

// Few tokens: the limit is reading the weights, once each. Three blocks of a multiprocessor have two stages on their way
// each, 96 KiB of weights; 4 TB/s bring an H200's multiprocessor 32 KiB in the microsecond that a read may take. A line
// is 128 bytes, what memory gives at a time.
typedef Cut<4, 2, 4, 64, 3> Cut32;
typedef Cut<4, 4, 4, 64, 3> Cut64;
// Many tokens: the limit is the tensor cores, then L2. Of shared memory an mma takes 128 bytes (a warp of 64 tokens by 64
// rows reads 4 KiB for 32 of them) and 64 more that are copied, 1.5 clocks together; the mma itself 1.6 on an H200, 2 on an
// A100. L2 brings a byte per 64 operations: its 5.5 TB/s on an H200 feed 350 TFLOP/s. Two blocks of 48 KiB fit everywhere.
typedef Cut<2, 2, 8, 32, 3> Cut64Shallow;
typedef Cut<2, 4, 8, 32, 3> Cut128;

// A tile is padded to the least of two sizes: the last one of an expert, or its only one, often has few tokens.
template <bool GATED>
__device__ inline void mma_tile_64(const Tile& t) {
    if (t.tokens > Cut32::TOKENS) {
        mma_tile<Cut64, GATED>(t);
    } else {
        mma_tile<Cut32, GATED>(t);
    }
}

template <bool GATED>
__device__ inline void mma_tile_128(const Tile& t) {
    if (t.tokens > Cut64Shallow::TOKENS) {
        mma_tile<Cut128, GATED>(t);
    } else {
        mma_tile<Cut64Shallow, GATED>(t);
    }
}

template <int T, bool GATED>
__device__ inline void fma_tiles(const Tile& t, int bf16) {
    if (t.tokens > 64) {
        fma_tile<T, 128, GATED>(t, bf16);
    } else {
        fma_tile<T, 64, GATED>(t, bf16);
    }
}

// blockIdx.x: tokens, so that those that share weights run at the same time; y: rows of one product after the other.
__device__ inline bool dense_tile(const Products& products, const void* x, int columns, int tokens, int tile, Tile& t) {
    int number = 0, rows = blockIdx.y;
    while (number < 3 && rows >= (products.of[number].rows + TILE_ROWS - 1) / TILE_ROWS) {
        rows -= (products.of[number].rows + TILE_ROWS - 1) / TILE_ROWS;
        number++;
    }
    if (number == 3) return false;
    const Product& p = products.of[number];
    t.weight[0] = t.weight[1] = p.weight, t.bias = p.bias, t.bias_type = p.bias_type;
    t.rows = p.rows, t.columns = columns, t.first_row = rows * TILE_ROWS;
    t.x = x, t.out = p.out, t.pairs = nullptr, t.divide = 1, t.first = blockIdx.x * tile;
    t.tokens = tokens - t.first < tile ? tokens - t.first : tile;
    return true;
}

// What an expert computes: silu(gate) · up from `x[pair / divide]`, or down from `x[pair]`.
struct Experts {
    ExpertTable table;
    const u32* sorted;
    const u32* tiles;
    const void* x;
    void* out;
    int rows, columns, divide, padding;
};

// blockIdx.x: rows, y: tile; those of one expert are neighbours, so that its weights come from memory once.
template <bool GATED>
__device__ inline bool expert_tile(const Experts& e, Tile& t) {
    if (blockIdx.y >= e.tiles[0]) return false;
    const u32* tile = e.tiles + 4 * (1 + blockIdx.y);
    t.weight[0] = expert_matrix(e.table, tile[0], GATED ? 0 : 2);
    t.weight[1] = GATED ? expert_matrix(e.table, tile[0], 1) : t.weight[0];
    t.bias = nullptr, t.bias_type = 0, t.rows = e.rows, t.columns = e.columns;
    t.first_row = blockIdx.x * (GATED ? TILE_ROWS / 2 : TILE_ROWS);
    t.x = e.x, t.out = e.out, t.pairs = e.sorted + tile[1], t.first = 0, t.tokens = tile[2], t.divide = e.divide;
    return t.weight[0] && t.weight[1];
}

#define FMA(name, T)                                                                                             \
    KERNEL __launch_bounds__(256, 2)                                                                             \
        gemm_fma_##name(const __grid_constant__ Products products, const void* x, int columns, int tokens, int tile, \
                        int bf16) {                                                                              \
        Tile t;                                                                                                  \
        if (dense_tile(products, x, columns, tokens, tile, t)) fma_tiles<T, false>(t, bf16);                     \
    }                                                                                                            \
    KERNEL __launch_bounds__(256, 2) expert_gated_fma_##name(const __grid_constant__ Experts experts, int bf16) {  \
        Tile t;                                                                                                  \
        if (expert_tile<true>(experts, t)) fma_tiles<T, true>(t, bf16);                                          \
    }                                                                                                            \
    KERNEL __launch_bounds__(256, 2) expert_fma_##name(const __grid_constant__ Experts experts, int bf16) {       \
        Tile t;                                                                                                  \
        if (expert_tile<false>(experts, t)) fma_tiles<T, false>(t, bf16);                                        \
    }

FMA(bf16, BF16)
FMA(f16, F16)
FMA(f32, F32)

#define MMA(tokens_of_tile, blocks)                                                                                    \
    KERNEL __launch_bounds__(MMA_THREADS, blocks)                                                                      \
        gemm_mma_##tokens_of_tile(const __grid_constant__ Products products, const void* x, int columns, int tokens,   \
                                  int tile) {                                                                          \
        Tile t;                                                                                                        \
        if (dense_tile(products, x, columns, tokens, tile, t)) mma_tile_##tokens_of_tile<false>(t);                    \
    }                                                                                                                  \
    KERNEL __launch_bounds__(MMA_THREADS, blocks)                                                                      \
        expert_gated_mma_##tokens_of_tile(const __grid_constant__ Experts experts) {                                   \
        Tile t;                                                                                                        \
        if (expert_tile<true>(experts, t)) mma_tile_##tokens_of_tile<true>(t);                                         \
    }                                                                                                                  \
    KERNEL __launch_bounds__(MMA_THREADS, blocks)                                                                      \
        expert_mma_##tokens_of_tile(const __grid_constant__ Experts experts) {                                         \
        Tile t;                                                                                                        \
        if (expert_tile<false>(experts, t)) mma_tile_##tokens_of_tile<false>(t);                                       \
    }

MMA(64, 3)
MMA(128, 2)
