// Which token goes to which expert, all of it on the device.
#include "device.cuh"

// Softmax over all experts in f32, then the `best` greatest, the lower id on ties; their weights are divided by their sum
// if `normalise`, and rounded. One warp per token; shared memory for `experts` values. `logits` are the router's, rounded
// as a product is. Of one token alone the experts are counted in `uses`, unless it is null. `order[j]` is the pair of the token that comes j-th when experts are sorted by id.
KERNEL route(const void* logits, int experts, int best, int normalise, int bf16, float* probabilities, u32* ids,
             float* weights, u32* order, u32* uses) {
    DYNAMIC_SHARED(float, p);
    u64 token = blockIdx.x;
    int lane = threadIdx.x;
    float most = __uint_as_float(0xff800000u); // -∞
    for (int e = lane; e < experts; e += 32) most = fmaxf(most, read(logits, token * experts + e, bf16));
    most = warp_max(most);
    float sum = 0.0f;
    for (int e = lane; e < experts; e += 32) {
        p[e] = expf(read(logits, token * experts + e, bf16) - most);
        sum += p[e];
    }
    sum = warp_sum(sum);
    for (int e = lane; e < experts; e += 32) {
        p[e] /= sum;
        probabilities[token * experts + e] = p[e];
    }
    // a lane reads and clears its own values alone
    u32* taken = reinterpret_cast<u32*>(p + experts);
    for (int e = lane; e < experts; e += 32) taken[e] = 0;
    float total = 0.0f;
    for (int j = 0; j < best; j++) {
        u64 key = 0;
        for (int e = lane; e < experts; e += 32) {
            u64 own = order_key(p[e], e);
            key = !taken[e] && own > key ? own : key;
        }
        u32 chosen = key_id(warp_greatest(key));
        if (static_cast<int>(chosen % 32) == lane) taken[chosen] = 1;
        __syncwarp();
        total += p[chosen];
        if (lane == 0) ids[token * best + j] = chosen;
    }
    __syncwarp();
    for (int j = lane; j < best; j += 32) {
        u32 chosen = ids[token * best + j];
        if (uses && gridDim.x == 1) uses[chosen] += 1;
        weights[token * best + j] = rounded(p[chosen] / (normalise ? total : 1.0f), bf16);
        int before = 0;
        for (int i = 0; i < best; i++) before += ids[token * best + i] < chosen;
        order[token * best + before] = token * best + j;
    }
}

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
