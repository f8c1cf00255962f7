// Causal attention over the cache of keys and values, both [positions, kv_heads · width]; query head h reads key head
// h / (queries / kv_heads). The softmax is online (Milakov and Gimelshein, 2018; FlashAttention): the greatest score, the
// sum and the result are carried on. Under bf16 scores and probabilities are rounded as in the eager
// code, which takes the greatest score and the sum of a row before its first probability: a round of its own. Heads are at most 128 wide.
#include "mma.cuh"

#define MINUS_INFINITY __uint_as_float(0xff800000u)

enum { MOST_WIDTH = 128, LANE_VALUES = MOST_WIDTH / 32 };
enum { DECODE_HEADS = 8, DECODE_WARPS = 4 };

__device__ inline float score(float dot, float scale, int bf16) { return rounded(rounded(dot, bf16) * scale, bf16); }

// e^(x - most), 0 where nothing was seen yet.
__device__ inline float weight_of(float x, float most) { return x == MINUS_INFINITY ? 0.0f : expf(x - most); }

// What a launch of attention_parts is for.
enum { IN_ONE = 0, SUMS = 1, RESULTS = 2 };

// Some positions of some heads of one token. blockIdx.x: part of the positions, y: token, z: key head and eight of its
// query heads. Parts of [greatest score, sum, result] go to `partial`: [token][query head][part][2 + width], at most 32 parts.
// In f32 that is one launch (IN_ONE); under bf16 one has the greatest scores and the sums (SUMS), and the next one, knowing
// those of all parts, rounded probabilities (RESULTS). 128 threads.
KERNEL __launch_bounds__(128) attention_parts(const void* q, const void* keys, const void* values, int queries,
                                              int kv_heads, int width, float scale, const int* position, int step,
                                              float* partial) {
    __shared__ float tops[DECODE_WARPS][DECODE_HEADS], totals[DECODE_WARPS][DECODE_HEADS];
    __shared__ float results[DECODE_WARPS][MOST_WIDTH];
    int group = queries / kv_heads, chunks = (group + DECODE_HEADS - 1) / DECODE_HEADS, bf16 = step != IN_ONE;
    int kv = blockIdx.z / chunks, first = blockIdx.z % chunks * DECODE_HEADS;
    int heads = group - first < DECODE_HEADS ? group - first : DECODE_HEADS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 token = blockIdx.y, head = kv * group + first, stride = static_cast<u64>(kv_heads) * width;
    int seen = *position + blockIdx.y + 1;
    int part = (seen + gridDim.x - 1) / gridDim.x, from = part * blockIdx.x, end = from + part < seen ? from + part : seen;
    float own[DECODE_HEADS][LANE_VALUES], sum[DECODE_HEADS][LANE_VALUES], top[DECODE_HEADS], total[DECODE_HEADS];
#pragma unroll
    for (int h = 0; h < DECODE_HEADS; h++) {
        top[h] = MINUS_INFINITY, total[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < LANE_VALUES; i++) {
            int c = lane + 32 * i;
            own[h][i] = h < heads && c < width ? read(q, (token * queries + head + h) * width + c, bf16) : 0.0f;
            sum[h][i] = 0.0f;
        }
        if (step == RESULTS && h < heads) {
            const float* stats = partial + ((token * queries + head + h) * gridDim.x + lane) * (2 + width);
            bool there = lane < static_cast<int>(gridDim.x);
            float most = there ? stats[0] : MINUS_INFINITY;
            top[h] = warp_max(most);
            total[h] = warp_sum(there ? stats[1] * weight_of(most, top[h]) : 0.0f);
        }
    }
    for (int p = from + warp; p < end; p += DECODE_WARPS) {
        float key[LANE_VALUES], value[LANE_VALUES];
#pragma unroll
        for (int i = 0; i < LANE_VALUES; i++) {
            int c = lane + 32 * i;
            u64 at = p * stride + kv * width + c;
            key[i] = c < width ? read(keys, at, bf16) : 0.0f;
            value[i] = c < width && step != SUMS ? read(values, at, bf16) : 0.0f;
        }
#pragma unroll
        for (int h = 0; h < DECODE_HEADS; h++) {
            if (h >= heads) break;
            float dot = 0.0f;
#pragma unroll
            for (int i = 0; i < LANE_VALUES; i++) dot = fmaf(own[h][i], key[i], dot);
            float s = score(warp_sum(dot), scale, bf16);
            if (step == RESULTS) {
                float now = to_bf16(weight_of(s, top[h]) / total[h]);
#pragma unroll
                for (int i = 0; i < LANE_VALUES; i++) sum[h][i] = fmaf(now, value[i], sum[h][i]);
                continue;
            }
            float most = fmaxf(top[h], s), before = weight_of(top[h], most), now = weight_of(s, most);
            total[h] = total[h] * before + now;
#pragma unroll
            for (int i = 0; i < LANE_VALUES; i++) sum[h][i] = fmaf(now, value[i], sum[h][i] * before);
            top[h] = most;
        }
    }
    for (int h = 0; h < heads; h++) {
        if (lane == 0) tops[warp][h] = top[h], totals[warp][h] = total[h];
    }
#pragma unroll
    for (int h = 0; h < DECODE_HEADS; h++) {
        if (h >= heads) break;
#pragma unroll
        for (int i = 0; i < LANE_VALUES; i++) results[warp][lane + 32 * i] = sum[h][i];
        __syncthreads();
        float most = MINUS_INFINITY, all = 0.0f, result = 0.0f;
        for (int w = 0; w < DECODE_WARPS; w++) most = fmaxf(most, tops[w][h]);
        for (int w = 0; w < DECODE_WARPS; w++) {
            float factor = weight_of(tops[w][h], most); // 1 in RESULTS, where all know the greatest
            all += totals[w][h] * factor;
            result = fmaf(results[w][threadIdx.x], factor, result);
        }
        float* to = partial + ((token * queries + head + h) * gridDim.x + blockIdx.x) * (2 + width);
        // the other blocks of the launch may still read the sums
        if (threadIdx.x == 0 && step != RESULTS) to[0] = most, to[1] = all;
        if (static_cast<int>(threadIdx.x) < width && step != SUMS) to[2 + threadIdx.x] = result;
        __syncthreads();
    }
}

// The parts of one query head of one token, put together. blockIdx.x: head, y: token; one thread per value.
KERNEL attention_combine(const float* partial, int parts, int width, int bf16, void* out) {
    u64 row = static_cast<u64>(blockIdx.y) * gridDim.x + blockIdx.x;
    const float* from = partial + row * parts * (2 + width);
    float most = MINUS_INFINITY, total = 0.0f, result = 0.0f;
    for (int i = 0; i < parts; i++) most = fmaxf(most, from[static_cast<u64>(i) * (2 + width)]);
    int c = threadIdx.x;
    if (c >= width) return;
    for (int i = 0; i < parts; i++) {
        const float* part = from + static_cast<u64>(i) * (2 + width);
        float factor = bf16 ? 1.0f : weight_of(part[0], most); // under bf16 they are parts of one sum
        total += part[1] * factor;
        result = fmaf(part[2 + c], factor, result);
    }
    write(out, row * width + c, bf16 ? result : result / total, bf16);
}

enum { PREFILL_TOKENS = 32, PREFILL_POSITIONS = 32, PREFILL_STRIDE = MOST_WIDTH + 1 };

// 32 tokens of one query head, in f32. blockIdx.x: tokens, y: head. 256 threads: each has two tokens times two positions, then
// two tokens times eight values. Shared memory for 64 rows of PREFILL_STRIDE and 32 of 33 values.
KERNEL __launch_bounds__(256) attention_tokens(const float* q, const float* keys, const float* values, int queries,
                                               int kv_heads, int width, float scale, const int* position, int tokens,
                                               float* out) {
    DYNAMIC_SHARED(float, shared);
    float* qs = shared;                                  // [tokens][PREFILL_STRIDE]
    float* kvs = qs + PREFILL_TOKENS * PREFILL_STRIDE;   // [positions][PREFILL_STRIDE], keys, then values
    float* ps = kvs + PREFILL_POSITIONS * PREFILL_STRIDE; // [tokens][33]
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16, kv = blockIdx.y / (queries / kv_heads);
    u64 stride = static_cast<u64>(kv_heads) * width;
    int first = (gridDim.x - 1 - blockIdx.x) * PREFILL_TOKENS; // the longest rows first
    int cached = *position;
    for (int i = threadIdx.x; i < PREFILL_TOKENS * MOST_WIDTH; i += 256) {
        int t = i / MOST_WIDTH, c = i % MOST_WIDTH;
        bool there = first + t < tokens && c < width;
        qs[t * PREFILL_STRIDE + c] = there ? q[(static_cast<u64>(first + t) * queries + blockIdx.y) * width + c] : 0.0f;
    }
    int last = first + PREFILL_TOKENS < tokens ? first + PREFILL_TOKENS : tokens;
    float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0.0f, 0.0f}, sums[2][8] = {};
    for (int from = 0; from < cached + last; from += PREFILL_POSITIONS) {
        auto load = [&](const float* all) {
            for (int i = threadIdx.x; i < PREFILL_POSITIONS * MOST_WIDTH; i += 256) {
                int p = i / MOST_WIDTH, c = i % MOST_WIDTH;
                bool there = from + p < cached + last && c < width;
                kvs[p * PREFILL_STRIDE + c] = there ? all[(from + p) * stride + kv * width + c] : 0.0f;
            }
        };
        __syncthreads();
        load(keys);
        __syncthreads();
        float s[2][2] = {};
        for (int c = 0; c < width; c++) {
            float a0 = qs[(ty * 2) * PREFILL_STRIDE + c], a1 = qs[(ty * 2 + 1) * PREFILL_STRIDE + c];
            float b0 = kvs[tx * PREFILL_STRIDE + c], b1 = kvs[(tx + 16) * PREFILL_STRIDE + c];
            s[0][0] = fmaf(a0, b0, s[0][0]), s[0][1] = fmaf(a0, b1, s[0][1]);
            s[1][0] = fmaf(a1, b0, s[1][0]), s[1][1] = fmaf(a1, b1, s[1][1]);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int seen = cached + first + ty * 2 + i + 1;
            float most = top[i];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                s[i][j] = from + tx + 16 * j < seen ? score(s[i][j], scale, 0) : MINUS_INFINITY;
                most = fmaxf(most, s[i][j]);
            }
            for (int m = 8; m > 0; m /= 2) most = fmaxf(most, __shfl_xor_sync(FULL, most, m));
            float before = weight_of(top[i], most), now = 0.0f;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float p = weight_of(s[i][j], most);
                now += p;
                ps[(ty * 2 + i) * 33 + tx + 16 * j] = p;
            }
            for (int m = 8; m > 0; m /= 2) now += __shfl_xor_sync(FULL, now, m);
            total[i] = total[i] * before + now;
            top[i] = most;
#pragma unroll
            for (int c = 0; c < 8; c++) sums[i][c] *= before;
        }
        __syncthreads();
        load(values);
        __syncthreads();
        for (int p = 0; p < PREFILL_POSITIONS; p++) {
            float a0 = ps[(ty * 2) * 33 + p], a1 = ps[(ty * 2 + 1) * 33 + p];
#pragma unroll
            for (int c = 0; c < 8; c++) {
                float v = kvs[p * PREFILL_STRIDE + tx + 16 * c];
                sums[0][c] = fmaf(a0, v, sums[0][c]);
                sums[1][c] = fmaf(a1, v, sums[1][c]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int t = first + ty * 2 + i;
        if (t >= tokens) continue;
#pragma unroll
        for (int c = 0; c < 8; c++) {
            int column = tx + 16 * c;
            if (column < width) {
                out[(static_cast<u64>(t) * queries + blockIdx.y) * width + column] = sums[i][c] / total[i];
            }
        }
    }
}

enum { TILE_TOKENS = 64, TILE_POSITIONS = 64, KEY_STRIDE = MOST_WIDTH + 8, VALUE_STRIDE = TILE_POSITIONS + 8 };

// As attention_tokens, for bf16 values, on tensor cores, and rounded as in the eager code: a first round finds the greatest
// score and the sum of a row, a second one has the probabilities. 128 threads: each warp has 16 tokens.
KERNEL __launch_bounds__(128) attention_mma(const u16* q, const u16* keys, const u16* values, int queries, int kv_heads,
                                            int width, float scale, const int* position, int tokens, u16* out) {
    __shared__ __align__(16) u16 ks[TILE_POSITIONS][KEY_STRIDE];  // [position][value of the head]
    __shared__ __align__(16) u16 vs[MOST_WIDTH][VALUE_STRIDE];    // [value of the head][position]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
    int kv = blockIdx.y / (queries / kv_heads), cached = *position;
    u64 stride = static_cast<u64>(kv_heads) * width;
    int first = (gridDim.x - 1 - blockIdx.x) * TILE_TOKENS; // the longest rows first
    int last = first + TILE_TOKENS < tokens ? first + TILE_TOKENS : tokens;
    int row = first + warp * 16 + group; // and row + 8
    u32 a[MOST_WIDTH / 16][4];
#pragma unroll
    for (int k = 0; k < MOST_WIDTH / 16; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int token = row + i % 2 * 8, c = k * 16 + i / 2 * 8 + pair;
            const u16* from = q + (static_cast<u64>(token) * queries + blockIdx.y) * width + c;
            u32 low = token < tokens && c < width ? from[0] : 0;
            u32 high = token < tokens && c + 1 < width ? from[1] : 0;
            a[k][i] = low | high << 16;
        }
    }
    auto load = [&](const u16* all, int from, bool is_value) {
        for (int i = threadIdx.x; i < TILE_POSITIONS * MOST_WIDTH; i += 128) {
            int p = i / MOST_WIDTH, c = i % MOST_WIDTH;
            bool there = from + p < cached + last && c < width;
            u64 at = (from + p) * stride + kv * width + c;
            u16 x = there ? all[at] : static_cast<u16>(0);
            (is_value ? vs[c][p] : ks[p][c]) = x;
        }
    };
    float s[TILE_POSITIONS / 8][4];
    // the scores of this warp's tokens and a tile's positions
    auto scores = [&](int from) {
#pragma unroll
        for (int j = 0; j < TILE_POSITIONS / 8; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < MOST_WIDTH / 16; k++) {
#pragma unroll
            for (int j = 0; j < TILE_POSITIONS / 8; j++) {
                const u16* line = ks[j * 8 + group] + k * 16 + pair;
                u32 b[2] = {*reinterpret_cast<const u32*>(line), *reinterpret_cast<const u32*>(line + 8)};
                mma(s[j], a[k], b);
            }
        }
#pragma unroll
        for (int j = 0; j < TILE_POSITIONS / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool seen = from + j * 8 + pair + i % 2 <= cached + row + i / 2 * 8;
                s[j][i] = seen ? score(s[j][i], scale, 1) : MINUS_INFINITY;
            }
        }
    };
    float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0.0f, 0.0f};
    for (int from = 0; from < cached + last; from += TILE_POSITIONS) {
        __syncthreads();
        load(keys, from, false);
        __syncthreads();
        scores(from);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = top[half], now = 0.0f;
#pragma unroll
            for (int j = 0; j < TILE_POSITIONS / 8; j++) most = fmaxf(most, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
            for (int m = 2; m > 0; m /= 2) most = fmaxf(most, __shfl_xor_sync(FULL, most, m));
#pragma unroll
            for (int j = 0; j < TILE_POSITIONS / 8; j++) {
                now += weight_of(s[j][half * 2], most) + weight_of(s[j][half * 2 + 1], most);
            }
            for (int m = 2; m > 0; m /= 2) now += __shfl_xor_sync(FULL, now, m);
            total[half] = total[half] * weight_of(top[half], most) + now;
            top[half] = most;
        }
    }
    float sums[MOST_WIDTH / 8][4] = {};
    for (int from = 0; from < cached + last; from += TILE_POSITIONS) {
        __syncthreads();
        load(keys, from, false);
        load(values, from, true);
        __syncthreads();
        scores(from);
#pragma unroll
        for (int k = 0; k < TILE_POSITIONS / 16; k++) {
            // the scores lie as the left operand wants them
            u32 p[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* of = s[2 * k + i / 2] + i % 2 * 2;
                p[i] = pack_bf16(to_bf16(weight_of(of[0], top[i % 2]) / total[i % 2]),
                                 to_bf16(weight_of(of[1], top[i % 2]) / total[i % 2]));
            }
#pragma unroll
            for (int j = 0; j < MOST_WIDTH / 8; j++) {
                const u16* line = vs[j * 8 + group] + k * 16 + pair;
                u32 b[2] = {*reinterpret_cast<const u32*>(line), *reinterpret_cast<const u32*>(line + 8)};
                mma(sums[j], p, b);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int token = row + half * 8;
        if (token >= tokens) continue;
        u64 to = (static_cast<u64>(token) * queries + blockIdx.y) * width;
#pragma unroll
        for (int j = 0; j < MOST_WIDTH / 8; j++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int column = j * 8 + pair + c;
                if (column < width) write(out, to + column, sums[j][half * 2 + c], 1);
            }
        }
    }
}
