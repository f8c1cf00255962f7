// Which token goes to which expert, all of it on the device.
#include "dot.cuh"

// What a router chooses for every token.
struct Choice {
    float* probabilities; // [tokens, experts]
    u32* ids;             // [tokens, best]
    float* weights;       // [tokens, best]
    u32* order;           // [tokens, best]
    u32* uses;            // [experts], or null
};

// Softmax over all experts in f32, then the `best` greatest, the lower id on ties; their weights are divided by their sum
// if `normalise`, and rounded. `logits` are the token's, rounded as a product is. Of one token alone the experts are
// counted in `uses`. `order[j]` is the pair of the token that comes j-th when experts are sorted by id. All threads of a
// block of whole warps; `p` is shared memory for twice `experts` and `best` values.
__device__ inline void choose(const void* logits, u64 token, int tokens, int experts, int best, int normalise,
                              int bf16, const Choice& choice, float* p) {
    u32* keys = reinterpret_cast<u32*>(p + experts);
    u32* chosen = keys + experts;
    int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        float most = __uint_as_float(0xff800000u); // -∞
        for (int e = lane; e < experts; e += 32) {
            p[e] = read_fresh(logits, token * experts + e, bf16);
            most = fmaxf(most, p[e]);
        }
        most = warp_max(most);
        float sum = 0.0f;
        for (int e = lane; e < experts; e += 32) {
            p[e] = expf(p[e] - most);
            sum += p[e];
        }
        sum = warp_sum(sum);
        for (int e = lane; e < experts; e += 32) {
            p[e] /= sum;
            keys[e] = order_bits(p[e]);
            choice.probabilities[token * experts + e] = p[e];
        }
    }
    __syncthreads();
    // an expert's place is the number of those that come before it
    for (int e = threadIdx.x; e < experts; e += blockDim.x) {
        int place = 0;
        for (int i = 0; i < e; i++) place += keys[i] >= keys[e];
        for (int i = e + 1; i < experts; i++) place += keys[i] > keys[e];
        if (place < best) chosen[place] = e;
    }
    __syncthreads();
    float total = 0.0f;
    for (int j = 0; j < best; j++) total += p[chosen[j]];
    for (int j = threadIdx.x; j < best; j += blockDim.x) {
        u32 e = chosen[j];
        int before = 0;
        for (int i = 0; i < best; i++) before += chosen[i] < e;
        if (choice.uses && tokens == 1) choice.uses[e] += 1;
        choice.ids[token * best + j] = e;
        choice.weights[token * best + j] = rounded(p[e] / (normalise ? total : 1.0f), bf16);
        choice.order[token * best + before] = token * best + j;
    }
}

// The choice of every token, blockIdx.x, from its logits.
KERNEL route(const void* logits, int experts, int best, int normalise, int bf16, const __grid_constant__ Choice choice) {
    DYNAMIC_SHARED(float, p);
    choose(logits, blockIdx.x, gridDim.x, experts, best, normalise, bf16, choice, p);
}

// The router's product after a norm, and the choice, of few tokens: the last block of a token that has its logits chooses.
// blockIdx.y is the token; `arrived` counts its blocks and is 0 before and after. Blocks of 256 threads; shared memory for
// an input, and for what `choose` wants.
template <int T>
__device__ inline void router(const Product& product, const void* x, const Norm& norm, int columns, int best, int normalise,
                              int bf16, const Choice& choice, u32* arrived) {
    DYNAMIC_SHARED(float, input);
    int row = blockIdx.x * 8 + threadIdx.x / 32, experts = product.rows;
    const void* rows[1] = {row_of<T>(product.weight, row, columns)};
    bool vectors = rows_in_sixteens<T>(product.weight, columns), there = row < experts;
    Ahead<T, 1> ahead;
    if (there && vectors) ahead.load(rows, 0, columns);
    bring_input(x, norm, blockIdx.y, columns, blockIdx.x == 0, bf16, input);
    if (there) {
        const float* in[1] = {input};
        float sum[1];
        dots<T, 1>(rows, vectors, in, columns, ahead, sum, nothing);
        write_product(product, blockIdx.y, row, sum[0], bf16);
    }
    if (!is_last_block(arrived + blockIdx.y, gridDim.x)) return;
    choose(product.out, blockIdx.y, gridDim.y, experts, best, normalise, bf16, choice, input);
}

#define ROUTER(name, T)                                                                                                    KERNEL __launch_bounds__(256)                                                                                              router_##name(const __grid_constant__ Product product, const void* x, const __grid_constant__ Norm norm,                             int columns, int best, int normalise, int bf16, const __grid_constant__ Choice choice,                                 u32* arrived) {                                                                                          router<T>(product, x, norm, columns, best, normalise, bf16, choice, arrived);                                      }

ROUTER(bf16, BF16)
ROUTER(f16, F16)
ROUTER(f32, F32)

// counts[expert] = its pairs, and one more use where it has any, unless `uses` is null. One block per expert, of whole warps.
KERNEL expert_count(const u32* ids, int pairs, u32* counts, u32* uses) {
    __shared__ u32 of_warp[32];
    u32 own = 0;
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) own += ids[i] == blockIdx.x;
    for (int i = 16; i > 0; i /= 2) own += __shfl_xor_sync(FULL, own, i);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < blockDim.x / 32; i++) own += of_warp[i];
        counts[blockIdx.x] = own;
        if (uses && own > 0) uses[blockIdx.x] += 1;
    }
}

// sorted = the pairs by expert, those of one expert in ascending order; tiles = for every `tile` pairs of an expert
// (expert, first place in `sorted`, how many). tiles[0] is their number, the first one begins at tiles[4]. One block of
// 256 threads per expert.
KERNEL expert_sort(const u32* ids, int pairs, const u32* counts, int experts, int tile, u32* sorted, u32* tiles) {
    __shared__ u32 of_warp[8];
    u32 expert = blockIdx.x, before = 0, tiles_before = 0;
    for (u32 e = 0; e < expert; e++) {
        before += counts[e];
        tiles_before += (counts[e] + tile - 1) / tile;
    }
    u32 own = counts[expert], own_tiles = (own + tile - 1) / tile;
    for (u32 i = threadIdx.x; i < own_tiles; i += blockDim.x) {
        u32* to = tiles + 4 * (1 + tiles_before + i);
        to[0] = expert;
        to[1] = before + i * tile;
        to[2] = own - i * tile < static_cast<u32>(tile) ? own - i * tile : tile;
    }
    if (expert + 1 == static_cast<u32>(experts) && threadIdx.x == 0) tiles[0] = tiles_before + own_tiles;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, done = before;
    for (int from = 0; from < pairs; from += blockDim.x) {
        int i = from + threadIdx.x;
        bool mine = i < pairs && ids[i] == expert;
        u32 mask = __ballot_sync(FULL, mine);
        if (lane == 0) of_warp[warp] = __popc(mask);
        __syncthreads();
        u32 place = done + __popc(mask & ((1u << lane) - 1));
        for (u32 w = 0; w < 8; w++) {
            if (w < warp) place += of_warp[w];
            done += of_warp[w];
        }
        if (mine) sorted[place] = i;
        __syncthreads();
    }
}

// added[token] = the sum of weight · y over its pairs in ascending order of experts, each step rounded as the eager code
// does it. blockIdx.x is the token.
KERNEL expert_combine(const void* y, const float* weights, const u32* order, int best, int hidden, int bf16, void* added) {
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= hidden) return;
    u64 token = blockIdx.x;
    float sum = 0.0f;
    for (int j = 0; j < best; j++) {
        u64 pair = order[token * best + j];
        float term = rounded(read(y, pair * hidden + c, bf16) * weights[pair], bf16);
        sum = rounded(sum + term, bf16);
    }
    write(added, token * hidden + c, sum, bf16);
}
