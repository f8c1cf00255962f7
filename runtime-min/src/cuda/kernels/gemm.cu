// Products of many tokens, in tiles; of dense weights, and of the experts that `expert_sort` gave tiles to.
//
// `fma`: f32 multiply-adds, exact products of bf16 weights with f32 activations (strict f32, no tf32).
// `mma`: bf16 tensor cores with f32 accumulators; activations are bf16 values already.
#include "mma.cuh"

// One block's work: some rows of a weight times some tokens.
struct Tile {
    const void* weight; // [rows, columns]
    const void* bias;   // [rows], or null
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

enum { FMA_TOKENS = 64, FMA_ROWS = 64, FMA_DEPTH = 16, FMA_PAD = 4 };

// 256 threads: each has 4 tokens times 4 rows.
template <int T>
__device__ inline void fma_tile(const Tile& t, int bf16) {
    __shared__ __align__(16) float xs[FMA_DEPTH][FMA_TOKENS + FMA_PAD];
    __shared__ __align__(16) float ws[FMA_DEPTH][FMA_ROWS + FMA_PAD];
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    // what this thread loads: four columns of one row
    int line = threadIdx.x / 4, column = threadIdx.x % 4 * 4;
    bool has_token = line < t.tokens, has_row = t.first_row + line < t.rows;
    u64 x = (has_token ? x_row(t, line) : 0) * t.columns;
    u64 w = static_cast<u64>(t.first_row + line) * t.columns;
    float sums[4][4] = {};
    for (int from = 0; from < t.columns; from += FMA_DEPTH) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int c = from + column + i;
            xs[column + i][line] = has_token && c < t.columns ? read(t.x, x + c, bf16) : 0.0f;
            ws[column + i][line] = has_row && c < t.columns ? value_at(t.weight, w + c, T) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < FMA_DEPTH; k++) {
            float a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = xs[k][ty * 4 + i], b[i] = ws[k][tx * 4 + i];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int token = ty * 4 + i;
        if (token >= t.tokens) continue;
        u64 out = out_row(t, token) * t.rows;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int row = t.first_row + tx * 4 + j;
            if (row >= t.rows) continue;
            float bias = t.bias ? value_at(t.bias, row, t.bias_type) : 0.0f;
            write(t.out, out + row, sums[i][j] + bias, bf16);
        }
    }
}

enum { MMA_TOKENS = 64, MMA_ROWS = 128, MMA_DEPTH = 64, MMA_STRIDE = MMA_DEPTH + 8 };

// Eight bf16 values of a row at any even address; 0 after the end.
__device__ inline uint4 eight_values(const u16* row, int column, int columns, bool vectors) {
    uint4 e = {0, 0, 0, 0};
    if (vectors) {
        if (column < columns) e = *reinterpret_cast<const uint4*>(row + column);
        return e;
    }
    u32 words[4] = {0, 0, 0, 0};
    for (int i = 0; i < 8; i++) {
        if (column + i < columns) words[i / 2] |= static_cast<u32>(row[column + i]) << (i % 2 * 16);
    }
    e.x = words[0], e.y = words[1], e.z = words[2], e.w = words[3];
    return e;
}

// 256 threads: eight warps of 32 tokens times 32 rows. The next step's loads are in flight while this one is computed.
__device__ inline void mma_tile(const Tile& t) {
    __shared__ __align__(16) u16 xs[MMA_TOKENS][MMA_STRIDE];
    __shared__ __align__(16) u16 ws[MMA_ROWS][MMA_STRIDE];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warp_token = warp % 2 * 32, warp_row = warp / 2 * 32;
    // what this thread loads: 16 bytes of two lines of x and four of the weight
    int line = threadIdx.x / 8, column = threadIdx.x % 8 * 8;
    const u16 *x[2], *w[4];
    bool x_vectors = rows_in_sixteens<BF16>(t.x, t.columns), w_vectors = rows_in_sixteens<BF16>(t.weight, t.columns);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int token = line + 32 * i;
        x[i] = token < t.tokens ? reinterpret_cast<const u16*>(t.x) + x_row(t, token) * t.columns : nullptr;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = t.first_row + line + 32 * i;
        w[i] = row < t.rows ? reinterpret_cast<const u16*>(t.weight) + static_cast<u64>(row) * t.columns : nullptr;
    }
    uint4 next_x[2], next_w[4], none = {0, 0, 0, 0};
    auto load = [&](int from) {
#pragma unroll
        for (int i = 0; i < 2; i++) next_x[i] = x[i] ? eight_values(x[i], from + column, t.columns, x_vectors) : none;
#pragma unroll
        for (int i = 0; i < 4; i++) next_w[i] = w[i] ? eight_values(w[i], from + column, t.columns, w_vectors) : none;
    };
    float sums[2][4][4] = {};
    load(0);
    for (int from = 0; from < t.columns; from += MMA_DEPTH) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) *reinterpret_cast<uint4*>(&xs[line + 32 * i][column]) = next_x[i];
#pragma unroll
        for (int i = 0; i < 4; i++) *reinterpret_cast<uint4*>(&ws[line + 32 * i][column]) = next_w[i];
        __syncthreads();
        load(from + MMA_DEPTH);
#pragma unroll
        for (int k = 0; k < MMA_DEPTH; k += 16) {
            u32 a[2][4], b[4][2];
            int group = lane / 4, at = k + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u16* upper = xs[warp_token + i * 16 + group];
                const u16* lower = xs[warp_token + i * 16 + group + 8];
                a[i][0] = *reinterpret_cast<const u32*>(upper + at);
                a[i][1] = *reinterpret_cast<const u32*>(lower + at);
                a[i][2] = *reinterpret_cast<const u32*>(upper + at + 8);
                a[i][3] = *reinterpret_cast<const u32*>(lower + at + 8);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u16* line = ws[warp_row + j * 8 + group];
                b[j][0] = *reinterpret_cast<const u32*>(line + at);
                b[j][1] = *reinterpret_cast<const u32*>(line + at + 8);
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma(sums[i][j], a[i], b[j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int token = warp_token + i * 16 + half * 8 + lane / 4;
            if (token >= t.tokens) continue;
            u64 out = out_row(t, token) * t.rows;
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    int row = t.first_row + warp_row + j * 8 + lane % 4 * 2 + c;
                    if (row >= t.rows) continue;
                    float bias = t.bias ? value_at(t.bias, row, t.bias_type) : 0.0f;
                    write(t.out, out + row, sums[i][j][half * 2 + c] + bias, 1);
                }
            }
        }
    }
}

// blockIdx.x: rows, y: tokens, z: which product.
__device__ inline bool dense_tile(const Products& products, const void* x, int columns, int tokens, int tile_tokens,
                                  int tile_rows, Tile& t) {
    const Product& p = products.of[blockIdx.z];
    t.weight = p.weight, t.bias = p.bias, t.bias_type = p.bias_type, t.rows = p.rows, t.columns = columns;
    t.first_row = blockIdx.x * tile_rows, t.x = x, t.out = p.out, t.pairs = nullptr, t.divide = 1;
    t.first = blockIdx.y * tile_tokens;
    t.tokens = tokens - t.first < tile_tokens ? tokens - t.first : tile_tokens;
    return t.first_row < t.rows && t.tokens > 0;
}

// What an expert computes: gate and up (blockIdx.z: which) from `x[pair / divide]`, or down from `x[pair]`.
struct Experts {
    ExpertTable table;
    const u32* sorted;
    const u32* tiles;
    const void* x;
    void* out[2];
    int which; // of the first matrix
    int rows, columns, divide;
};

// blockIdx.x: rows, y: tile.
__device__ inline bool expert_tile(const Experts& e, int tile_rows, Tile& t) {
    if (blockIdx.y >= e.tiles[0]) return false;
    const u32* tile = e.tiles + 4 * (1 + blockIdx.y);
    t.weight = expert_matrix(e.table, tile[0], e.which + blockIdx.z);
    t.bias = nullptr, t.bias_type = 0, t.rows = e.rows, t.columns = e.columns, t.first_row = blockIdx.x * tile_rows;
    t.x = e.x, t.out = e.out[blockIdx.z], t.pairs = e.sorted + tile[1], t.first = 0, t.tokens = tile[2];
    t.divide = e.divide;
    return t.weight != nullptr;
}

#define FMA(name, T)                                                                                     \
    KERNEL __launch_bounds__(256) gemm_fma_##name(const __grid_constant__ Products products, const void* x, int columns, int tokens, int bf16) { \
        Tile t;                                                                                          \
        if (dense_tile(products, x, columns, tokens, FMA_TOKENS, FMA_ROWS, t)) fma_tile<T>(t, bf16);     \
    }                                                                                                    \
    KERNEL __launch_bounds__(256) expert_fma_##name(const __grid_constant__ Experts experts, int bf16) {                         \
        Tile t;                                                                                          \
        if (expert_tile(experts, FMA_ROWS, t)) fma_tile<T>(t, bf16);                                     \
    }

FMA(bf16, BF16)
FMA(f16, F16)
FMA(f32, F32)

KERNEL __launch_bounds__(256) gemm_mma(const __grid_constant__ Products products, const void* x, int columns, int tokens) {
    Tile t;
    if (dense_tile(products, x, columns, tokens, MMA_TOKENS, MMA_ROWS, t)) mma_tile(t);
}

KERNEL __launch_bounds__(256) expert_mma(const __grid_constant__ Experts experts) {
    Tile t;
    if (expert_tile(experts, MMA_ROWS, t)) mma_tile(t);
}
