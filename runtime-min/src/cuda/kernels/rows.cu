// Operations on single rows and values.
#include "device.cuh"

// x[token] = row ids[token] of the embedding. One block per token.
KERNEL embed(const void* table, int type, const u32* ids, int hidden, float* x) {
    u64 from = static_cast<u64>(ids[blockIdx.x]) * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        x[static_cast<u64>(blockIdx.x) * hidden + i] = value_at(table, from + i, type);
    }
}

// x += added where that is not null; out = norm(x) · weight. One block of whole warps, at most 1024 threads, per row.
KERNEL add_rms_norm(float* x, const float* added, const void* weight, int type, int width, float eps, int bf16, float* out) {
    __shared__ float sums[32];
    u64 row = static_cast<u64>(blockIdx.x) * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float v = x[row + i];
        if (added) {
            v = rounded(v + added[row + i], bf16);
            x[row + i] = v;
        }
        sum = fmaf(v, v, sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
    for (u32 i = 0; i < blockDim.x / 32; i++) total += sums[i];
    float factor = 1.0f / sqrtf(total / static_cast<float>(width) + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        out[row + i] = rounded(value_at(weight, i, type) * rounded(x[row + i] * factor, bf16), bf16);
    }
}

// to = to + x.
KERNEL add(float* to, const float* x, u64 n, int bf16) {
    u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) to[i] = rounded(to[i] + x[i], bf16);
}

// gate = silu(gate) · up.
KERNEL silu_mul(float* gate, const float* up, u64 n, int bf16) {
    u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) gate[i] = rounded(rounded(silu(gate[i]), bf16) * up[i], bf16);
}

// Norms and rotates the heads of q and k, and puts k and v where attention finds them: position + token of the cache.
// One warp per head of q, then of k, then of v; blockIdx.x is the token. `cos` and `sin` are [positions, width / 2].
KERNEL heads(float* q, const float* k, const float* v, const void* q_norm, int q_type, const void* k_norm, int k_type,
             const float* cos, const float* sin, float eps, int queries, int kv_heads, int width, const int* position,
             float* keys, float* values, int bf16) {
    int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (head >= queries + 2 * kv_heads) return;
    u64 token = blockIdx.x, at = token + *position;
    u64 cached = (at * kv_heads + (head - queries) % kv_heads) * width;
    if (head >= queries + kv_heads) {
        u64 from = (token * kv_heads + head - queries - kv_heads) * width;
        for (int i = lane; i < width; i += 32) values[cached + i] = v[from + i];
        return;
    }
    bool is_query = head < queries;
    const float* from = is_query ? q + (token * queries + head) * width : k + (token * kv_heads + head - queries) * width;
    float* to = is_query ? q + (token * queries + head) * width : keys + cached;
    const void* norm = is_query ? q_norm : k_norm;
    int type = is_query ? q_type : k_type, half = width / 2;
    float sum = 0.0f;
    for (int i = lane; i < width; i += 32) sum = fmaf(from[i], from[i], sum);
    float factor = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(width) + eps);
    for (int j = lane; j < half; j += 32) {
        float a = rounded(value_at(norm, j, type) * rounded(from[j] * factor, bf16), bf16);
        float b = rounded(value_at(norm, j + half, type) * rounded(from[j + half] * factor, bf16), bf16);
        float c = cos[at * half + j], s = sin[at * half + j];
        to[j] = rounded(rounded(a * c, bf16) + rounded(-b * s, bf16), bf16);
        to[j + half] = rounded(rounded(b * c, bf16) + rounded(a * s, bf16), bf16);
    }
}

// The greatest logit of every block's part: `best[blockIdx.x]`. -0 and 0 are equal. NaN and infinity are greater than all
// others, so that the first of them is found wherever it is; the host refuses it. Blocks of 256 threads.
KERNEL argmax_parts(const float* logits, int n, u64* best) {
    __shared__ u64 of_warp[8];
    u64 most = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float x = logits[i], infinity = __uint_as_float(0x7f800000u);
        u64 key = order_key(x == 0.0f ? 0.0f : x < infinity ? x : infinity, i);
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
KERNEL argmax_next(const u64* best, int parts, u32* id, int* position, float* logit, const float* logits) {
    u64 most = 0;
    for (int i = threadIdx.x; i < parts; i += 32) most = best[i] > most ? best[i] : most;
    most = warp_greatest(most);
    if (threadIdx.x == 0) {
        *id = key_id(most);
        *logit = logits[key_id(most)];
        *position += 1;
    }
}
