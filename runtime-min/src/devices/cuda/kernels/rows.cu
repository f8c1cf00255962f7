// Operations on single rows and values.
#include "dot.cuh"
#include "heads.cuh"

// x[token] = row ids[token] of the embedding. One block per token.
KERNEL embed(const void* table, int type, const u32* ids, int hidden, int bf16, void* x) {
    u64 from = static_cast<u64>(ids[blockIdx.x]) * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        write(x, static_cast<u64>(blockIdx.x) * hidden + i, value_at(table, from + i, type), bf16);
    }
}

// sum = x + added where there is something to add, which may be x itself; normed = the RMS norm of that. One block of 256
// threads per row.
KERNEL __launch_bounds__(256) rms_norm(const void* x, const __grid_constant__ Norm norm, int width, int bf16) {
    DYNAMIC_SHARED(float, row);
    bring_input(x, norm, blockIdx.x, width, true, bf16, row);
}

// to = to + x.
KERNEL add(void* to, const void* x, u64 n, int bf16) {
    u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) write(to, i, read(to, i, bf16) + read(x, i, bf16), bf16);
}

// to = to + x · sigmoid(gates[token]), a gate for each token, blockIdx.x; every step rounded as the eager code does it.
KERNEL add_gated(void* to, const void* x, const void* gates, int hidden, int bf16) {
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= hidden) return;
    u64 token = blockIdx.x, at = token * hidden + c;
    float factor = rounded(1.0f / (1.0f + expf(-read(gates, token, bf16))), bf16);
    write(to, at, read(to, at, bf16) + rounded(read(x, at, bf16) * factor, bf16), bf16);
}

// gate = silu(gate) · up.
KERNEL silu_mul(void* gate, const void* up, u64 n, int bf16) {
    u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) write(gate, i, rounded(silu(read(gate, i, bf16)), bf16) * read(up, i, bf16), bf16);
}

// Norms and rotates the heads of q and k, and puts k and v where attention finds them: position + token of the cache.
// One warp per head of q, then of k, then of v; blockIdx.x is the token. `cos` and `sin` are [positions, width / 2]. Heads are
// at most 128 wide. Bound by memory: every value is read once and written once, in pairs.
KERNEL heads(void* q, const void* k, const void* v, const void* q_norm, int q_type, const void* k_norm, int k_type,
             const float* cos, const float* sin, float eps, int queries, int kv_heads, int width, const int* position,
             void* keys, void* values, int bf16) {
    int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, half = width / 2;
    if (head >= queries + 2 * kv_heads) return;
    u64 token = blockIdx.x, at = token + *position;
    u64 cached = (at * kv_heads + (head - queries) % kv_heads) * width;
    if (head >= queries + kv_heads) {
        u64 from = (token * kv_heads + head - queries - kv_heads) * width;
        for (int i = lane; i < width; i += 32) write(values, cached + i, read(v, from + i, bf16), bf16);
        return;
    }
    bool is_query = head < queries;
    u64 first = is_query ? (token * queries + head) * width : (token * kv_heads + head - queries) * width;
    Turned t = norm_and_turn(place(is_query ? q : k, first, bf16), is_query ? q_norm : k_norm, is_query ? q_type : k_type,
                             cos + at * half, sin + at * half, eps, width, bf16);
    put_turned(is_query ? q : keys, is_query ? first : cached, t, width, bf16);
}

// The greatest logit of every block's part: `best[blockIdx.x]`. Blocks of 256 threads.
KERNEL argmax_parts(const void* logits, int n, int bf16, u64* best) {
    __shared__ u64 of_warp[8];
    u64 most = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        u64 key = logit_key(read(logits, i, bf16), i);
        most = key > most ? key : most;
    }
    most = warp_greatest(most);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 8; i++) most = of_warp[i] > most ? of_warp[i] : most;
        best[blockIdx.x] = most;
    }
}

// The greatest of all: its id becomes the next token, and the next position is counted. One warp.
KERNEL argmax_next(const u64* best, int parts, u32* id, int* position, float* logit, const void* logits, int bf16) {
    u64 most = 0;
    for (int i = threadIdx.x; i < parts; i += 32) most = best[i] > most ? best[i] : most;
    most = warp_greatest(most);
    if (threadIdx.x == 0) {
        *id = key_id(most);
        *logit = read(logits, key_id(most), bf16);
        *position += 1;
    }
}
