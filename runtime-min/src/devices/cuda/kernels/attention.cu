// Causal attention over the cache of keys and values, both [positions, kv_heads · width]; query head h reads key head
// h / (queries / kv_heads). The softmax is online (Milakov and Gimelshein, 2018; FlashAttention): the greatest score, the
// sum and the result are carried on. Under bf16 scores and probabilities are rounded as in the eager code, which takes the
// greatest score and the sum of a row before its first probability: a round of its own. Heads are at most 128 wide.
#include "heads.cuh"
#include "mma.cuh"

#define MINUS_INFINITY __uint_as_float(0xff800000u)

__device__ inline float score(float dot, float scale, int bf16) { return rounded(rounded(dot, bf16) * scale, bf16); }

// e^(x - most), 0 where nothing was seen yet.
__device__ inline float weight_of(float x, float most) { return x == MINUS_INFINITY ? 0.0f : expf(x - most); }

// ---- few tokens ----

// A block has 8 warps. Half a warp takes one position: each lane has eight values of its row.
enum { FEW_WARPS = 8, FEW_THREADS = FEW_WARPS * 32, HALVES = FEW_WARPS * 2, MOST_TOKENS = 4 };
// Query heads of a block of attention_parts, its parts, and positions of a block of attention_whole.
enum { GROUP = 8, LEAST_PART = 64, MOST_PARTS = 32, WHOLE_POSITIONS = 1024 };

// The projections of the tokens of a pass, not yet normed, and the cache, which the kernel adds them to. No block reads what
// another one adds in the same launch: it norms and turns the new keys that it needs itself, and takes new values from `v`.
struct Pass {
    const void *q, *k, *v; // [tokens, queries · width], [tokens, kv_heads · width] twice
    const void* q_norm;
    int q_type;
    const void* k_norm;
    int k_type;
    const float *cos, *sin; // [positions, width / 2]
    float eps;
    int queries, kv_heads, width;
    float scale;
    const int* position;
    void *keys, *values;
};

// Norms and turns what a block needs: query heads of its token to `own`, the keys of the pass from the `oldest` on to `fresh`,
// rows of MOST_WIDTH values. With `keeps` it puts the key and the value of its token into the cache.
__device__ inline void prepare(const Pass& a, int cached, int kv, int first, int heads, int oldest, bool keeps, int bf16,
                               float* own, float* fresh) {
    int token = blockIdx.y, width = a.width, half = width / 2;
    for (int i = threadIdx.x; i < (heads + MOST_TOKENS) * MOST_WIDTH; i += FEW_THREADS) {
        int row = i / MOST_WIDTH, c = i % MOST_WIDTH;
        if (c >= width) (row < heads ? own + row * MOST_WIDTH : fresh + (row - heads) * MOST_WIDTH)[c] = 0.0f;
    }
    for (int row = threadIdx.x / 32; row < heads + token + 1 - oldest; row += FEW_WARPS) {
        bool is_query = row < heads;
        int of = is_query ? token : oldest + row - heads;
        u64 at = cached + of;
        u64 from = is_query ? static_cast<u64>(of) * a.queries + first + row : static_cast<u64>(of) * a.kv_heads + kv;
        Turned t = norm_and_turn(place(is_query ? a.q : a.k, from * width, bf16), is_query ? a.q_norm : a.k_norm,
                                 is_query ? a.q_type : a.k_type, a.cos + at * half, a.sin + at * half, a.eps, width, bf16);
        put_turned(is_query ? own + row * MOST_WIDTH : fresh + of * MOST_WIDTH, 0, t, width, 0);
        if (keeps && !is_query && of == token) put_turned(a.keys, (at * a.kv_heads + kv) * width, t, width, bf16);
    }
    if (!keeps) return;
    u64 from = (static_cast<u64>(token) * a.kv_heads + kv) * width, to = from + static_cast<u64>(cached) * a.kv_heads * width;
    for (int i = threadIdx.x; i < width; i += FEW_THREADS) write(a.values, to + i, read(a.v, from + i, bf16), bf16);
}

// Reads the rows of one key head.
template <int T>
struct Rows {
    const Pass& pass;
    int cached, kv, column;
    bool vectors;

    __device__ inline Rows(const Pass& a, int cached, int kv)
        : pass(a), cached(cached), kv(kv), column(threadIdx.x % 16 * 8),
          vectors(rows_in_sixteens<T>(a.keys, a.width) && in_sixteens(a.values) && in_sixteens(a.v)) {}

    __device__ inline Eight row(const void* all, int i) const {
        u64 at = (static_cast<u64>(i) * pass.kv_heads + kv) * pass.width;
        return eight_of<T>(place(all, at, T == BF16), column, pass.width, vectors);
    }

    // Of a position that was cached before this pass, else 0.
    __device__ inline Eight key(int p) const { return p < cached ? row(pass.keys, p) : Eight{}; }

    // Of a position before `end`, else 0.
    __device__ inline Eight value(int p, int end) const {
        if (p >= end) return Eight{};
        return p < cached ? row(pass.values, p) : row(pass.v, p - cached);
    }

    // The values of a key; new ones are in `fresh`.
    __device__ inline void widen_key(const Eight& key, int p, int end, const float* fresh, float to[8]) const {
        widen_eight<T>(key, to);
        if (p < cached || p >= end) return;
#pragma unroll
        for (int c = 0; c < 8; c++) to[c] = fresh[(p - cached) * MOST_WIDTH + column + c];
    }
};

// Up to 1024 positions of one query head of one token. blockIdx.x: query head, y: token. Shared memory for 128 · (1 + 4 + 8) +
// 1024 + 2 · 8 values. Bound by latency: at 100 positions a block reads 50 KB (bf16), which one batch of loads covers, all
// issued before the norms; that the heads of a group read the same rows (from L2) costs less than a second kernel.
template <int T>
__device__ inline void attend_whole(const Pass& a, void* out) {
    constexpr int BATCH = T == BF16 ? 8 : 4, STEP = HALVES * BATCH, bf16 = T == BF16;
    DYNAMIC_SHARED(float, own);             // [MOST_WIDTH]
    float* fresh = own + MOST_WIDTH;        // [MOST_TOKENS][MOST_WIDTH]
    float* results = fresh + MOST_TOKENS * MOST_WIDTH; // [FEW_WARPS][MOST_WIDTH]
    float* scores = results + FEW_WARPS * MOST_WIDTH; // [WHOLE_POSITIONS]
    float* tops = scores + WHOLE_POSITIONS; // [FEW_WARPS]
    float* totals = tops + FEW_WARPS;       // [FEW_WARPS]
    int head = blockIdx.x, group = a.queries / a.kv_heads, kv = head / group, token = blockIdx.y;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = threadIdx.x / 16;
    int cached = *a.position, seen = cached + token + 1;
    Rows<T> rows(a, cached, kv);
    Eight key[BATCH], value[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) key[i] = rows.key(first + HALVES * i);
#pragma unroll
    for (int i = 0; i < BATCH; i++) value[i] = rows.value(first + HALVES * i, seen);
    prepare(a, cached, kv, head, 1, 0, head % group == 0, bf16, own, fresh);
    __syncthreads();
    float q[8];
#pragma unroll
    for (int c = 0; c < 8; c++) q[c] = own[rows.column + c];
    float top = MINUS_INFINITY;
    for (int from = 0; from < seen; from += STEP) {
        if (from > 0) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) key[i] = rows.key(from + first + HALVES * i);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int p = from + first + HALVES * i;
            float x[8], dot = 0.0f;
            rows.widen_key(key[i], p, seen, fresh, x);
#pragma unroll
            for (int c = 0; c < 8; c++) dot = fmaf(q[c], x[c], dot);
            for (int m = 8; m > 0; m /= 2) dot += __shfl_xor_sync(FULL, dot, m);
            if (p >= seen) continue;
            float s = score(dot, a.scale, bf16);
            top = fmaxf(top, s);
            if (lane % 16 == 0) scores[p] = s;
        }
    }
    top = warp_max(top);
    if (lane == 0) tops[warp] = top;
    __syncthreads();
    float most = MINUS_INFINITY, now = 0.0f, total = 0.0f;
#pragma unroll
    for (int w = 0; w < FEW_WARPS; w++) most = fmaxf(most, tops[w]);
    for (int p = threadIdx.x; p < seen; p += FEW_THREADS) {
        float e = weight_of(scores[p], most);
        scores[p] = e;
        now += e;
    }
    now = warp_sum(now);
    if (lane == 0) totals[warp] = now;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < FEW_WARPS; w++) total += totals[w];
    float sums[8] = {};
    for (int from = 0; from < seen; from += STEP) {
        if (from > 0) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) value[i] = rows.value(from + first + HALVES * i, seen);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int p = from + first + HALVES * i;
            float weight = p < seen ? rounded(scores[p] / total, bf16) : 0.0f, x[8];
            widen_eight<T>(value[i], x);
#pragma unroll
            for (int c = 0; c < 8; c++) sums[c] = fmaf(weight, x[c], sums[c]);
        }
    }
#pragma unroll
    for (int c = 0; c < 8; c++) {
        sums[c] += __shfl_xor_sync(FULL, sums[c], 16);
        if (lane < 16) results[warp * MOST_WIDTH + rows.column + c] = sums[c];
    }
    __syncthreads();
    int c = threadIdx.x;
    if (c >= a.width) return;
    float result = 0.0f;
#pragma unroll
    for (int w = 0; w < FEW_WARPS; w++) result += results[w * MOST_WIDTH + c];
    write(out, (static_cast<u64>(token) * a.queries + head) * a.width + c, result, bf16);
}

// What a launch is for: f32 in one, or under bf16 scores and their sums, then results.
enum { IN_ONE, SUMS, RESULTS };

// Sums of eight values over each half of a warp: a lane gets that of value lane / 2 % 8.
__device__ inline float sum_eight(float x[8]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 4; n > 0; n /= 2) {
        bool upper = lane & (2 * n);
#pragma unroll
        for (int i = 0; i < n; i++) {
            float kept = upper ? x[i + n] : x[i], given = upper ? x[i] : x[i + n];
            x[i] = kept + __shfl_xor_sync(FULL, given, 2 * n);
        }
    }
    return x[0] + __shfl_xor_sync(FULL, x[0], 1);
}

// The greatest score and the sum of one head over all its parts; the lane of a part gets its factor.
__device__ inline float whole_sum(const float* stats, int parts, float& most, float& total) {
    int lane = threadIdx.x % 32;
    float top = lane < parts ? __ldcg(stats + lane * 2) : MINUS_INFINITY;
    most = warp_max(top);
    float factor = weight_of(top, most);
    total = warp_sum(lane < parts ? __ldcg(stats + lane * 2 + 1) * factor : 0.0f);
    return factor;
}

// Some positions of up to eight query heads of one token. blockIdx.x: part of the positions, y: token, z: key head and eight of
// its query heads. The last block of a token and z to end puts the parts together, in their order, and leaves its counter 0.
// `partial`: counters [MOST_TOKENS · queries]; [tokens][queries][parts] of greatest score and sum, then of results [width];
// under bf16 the scores, [tokens][room · queries], bf16. Shared memory for 128 · (8 + 4 + 64) + 2 · 16 · 8 values. Bound by
// memory: keys and values are read once for eight heads, 16 KiB and more on their way in each block.
template <int T, int STEP>
__device__ inline void attend_part(const Pass& a, float* partial, int room, void* out) {
    constexpr int BATCH = STEP == IN_ONE ? 2 : 8, bf16 = T == BF16;
    DYNAMIC_SHARED(float, own);                         // [GROUP][MOST_WIDTH]
    float* fresh = own + GROUP * MOST_WIDTH;            // [MOST_TOKENS][MOST_WIDTH]
    float* results = fresh + MOST_TOKENS * MOST_WIDTH;  // [FEW_WARPS][GROUP][MOST_WIDTH]
    float* tops = results + FEW_WARPS * GROUP * MOST_WIDTH; // [HALVES][GROUP]
    float* totals = tops + HALVES * GROUP;              // [HALVES][GROUP]
    int group = a.queries / a.kv_heads, chunks = (group + GROUP - 1) / GROUP, width = a.width;
    int kv = blockIdx.z / chunks, head = kv * group + blockIdx.z % chunks * GROUP;
    int heads = (kv + 1) * group - head < GROUP ? (kv + 1) * group - head : GROUP;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = threadIdx.x / 16, mine = lane / 2 % 8;
    int cached = *a.position, seen = cached + blockIdx.y + 1;
    int part = (seen + gridDim.x - 1) / gridDim.x;
    part = part < LEAST_PART ? LEAST_PART : (part + HALVES - 1) / HALVES * HALVES;
    int from = part * blockIdx.x, end = from + part < seen ? from + part : seen, parts = (seen + part - 1) / part;
    if (from >= seen) return;
    u64 row = static_cast<u64>(blockIdx.y) * a.queries + head, rows_of_all = static_cast<u64>(gridDim.y) * a.queries;
    float* stats = partial + MOST_TOKENS * a.queries + row * gridDim.x * 2;
    float* parted = partial + MOST_TOKENS * a.queries + rows_of_all * gridDim.x * 2 + row * gridDim.x * width;
    u16* kept = reinterpret_cast<u16*>(partial + MOST_TOKENS * a.queries + rows_of_all * gridDim.x * (2 + width)) + row * room;
    Rows<T> rows(a, cached, kv);
    float q[GROUP][8], sums[GROUP][8] = {}, top = MINUS_INFINITY, total = 0.0f; // of this half's positions and head `mine`
    if (STEP == RESULTS) {
        float most, all;
        if (warp < heads) {
            whole_sum(stats + static_cast<u64>(warp) * gridDim.x * 2, parts, most, all);
            if (lane == 0) tops[warp] = most, totals[warp] = all;
        }
        __syncthreads();
        if (mine < heads) top = tops[mine], total = totals[mine];
    } else {
        int oldest = end <= cached ? blockIdx.y + 1 : from > cached ? from - cached : 0;
        bool keeps = end == seen && blockIdx.z % chunks == 0;
        prepare(a, cached, kv, head, heads, oldest, keeps, bf16, own, fresh);
        __syncthreads();
#pragma unroll
        for (int h = 0; h < GROUP; h++) {
#pragma unroll
            for (int c = 0; c < 8; c++) q[h][c] = h < heads ? own[h * MOST_WIDTH + rows.column + c] : 0.0f;
        }
    }
    for (int base = from + half; base - half < end; base += HALVES * BATCH) {
        Eight key[BATCH], value[BATCH];
        float s[BATCH], before = 1.0f;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int p = base + HALVES * i;
            if (STEP == RESULTS) {
                s[i] = p < end && mine < heads ? from_bf16(kept[static_cast<u64>(p) * heads + mine]) : MINUS_INFINITY;
            } else {
                key[i] = rows.key(p < end ? p : seen);
            }
            if (STEP != SUMS) value[i] = rows.value(p, end);
        }
        if (STEP != RESULTS) {
            float most = top, now = 0.0f;
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int p = base + HALVES * i;
                float x[8], dots[GROUP];
                rows.widen_key(key[i], p, end, fresh, x);
#pragma unroll
                for (int h = 0; h < GROUP; h++) {
                    dots[h] = 0.0f;
                    if (h >= heads) continue;
#pragma unroll
                    for (int c = 0; c < 8; c++) dots[h] = fmaf(q[h][c], x[c], dots[h]);
                }
                s[i] = score(sum_eight(dots), a.scale, bf16);
                if (p >= end || mine >= heads) s[i] = MINUS_INFINITY;
                else if (STEP == SUMS && lane % 2 == 0) write(kept, static_cast<u64>(p) * heads + mine, s[i], 1);
                most = fmaxf(most, s[i]);
            }
            before = weight_of(top, most);
#pragma unroll
            for (int i = 0; i < BATCH; i++) now += s[i] = weight_of(s[i], most);
            total = total * before + now;
            top = most;
        } else {
#pragma unroll
            for (int i = 0; i < BATCH; i++) s[i] = to_bf16(weight_of(s[i], top) / total);
        }
        if (STEP == SUMS) continue;
        // lane 2h of each half has the probabilities of head h
#pragma unroll
        for (int h = 0; h < GROUP && STEP == IN_ONE; h++) {
            float factor = __shfl_sync(FULL, before, (lane & 16) + 2 * h);
#pragma unroll
            for (int c = 0; c < 8; c++) sums[h][c] *= factor;
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            float x[8];
            widen_eight<T>(value[i], x);
#pragma unroll
            for (int h = 0; h < GROUP; h++) {
                if (h >= heads) continue;
                float weight = __shfl_sync(FULL, s[i], (lane & 16) + 2 * h);
#pragma unroll
                for (int c = 0; c < 8; c++) sums[h][c] = fmaf(weight, x[c], sums[h][c]);
            }
        }
    }
    if (STEP != RESULTS) {
        if (lane % 2 == 0) tops[half * GROUP + mine] = top, totals[half * GROUP + mine] = total;
        __syncthreads();
        int h = threadIdx.x;
        if (h < heads) {
            float most = MINUS_INFINITY, all = 0.0f;
#pragma unroll
            for (int i = 0; i < HALVES; i++) most = fmaxf(most, tops[i * GROUP + h]);
#pragma unroll
            for (int i = 0; i < HALVES; i++) all += totals[i * GROUP + h] * weight_of(tops[i * GROUP + h], most);
            float* to = stats + (static_cast<u64>(h) * gridDim.x + blockIdx.x) * 2;
            to[0] = most, to[1] = all;
        }
        if (STEP == SUMS) return;
    }
#pragma unroll
    for (int h = 0; h < GROUP; h++) {
        if (h >= heads) continue;
        float factor = 1.0f;
        if (STEP == IN_ONE) {
            float most = MINUS_INFINITY;
#pragma unroll
            for (int i = 0; i < HALVES; i++) most = fmaxf(most, tops[i * GROUP + h]);
            factor = weight_of(tops[half * GROUP + h], most);
        }
#pragma unroll
        for (int c = 0; c < 8; c++) {
            float x = sums[h][c] * factor;
            x += __shfl_xor_sync(FULL, x, 16);
            if (lane < 16) results[(warp * GROUP + h) * MOST_WIDTH + rows.column + c] = x;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * MOST_WIDTH; i += FEW_THREADS) {
        int h = i / MOST_WIDTH, c = i % MOST_WIDTH;
        if (c >= width) continue;
        float x = 0.0f;
#pragma unroll
        for (int w = 0; w < FEW_WARPS; w++) x += results[w * GROUP * MOST_WIDTH + i];
        parted[(static_cast<u64>(h) * gridDim.x + blockIdx.x) * width + c] = x;
    }
    if (!is_last_block(reinterpret_cast<u32*>(partial) + blockIdx.y * a.queries + blockIdx.z, parts)) return;
    if (warp >= heads) return;
    float most, all, factor = 1.0f, x[MOST_WIDTH / 32] = {};
    if (STEP == IN_ONE) factor = whole_sum(stats + static_cast<u64>(warp) * gridDim.x * 2, parts, most, all);
#pragma unroll 8
    for (int i = 0; i < parts; i++) {
        float of = STEP == IN_ONE ? __shfl_sync(FULL, factor, i) : 1.0f;
        const float* of_part = parted + (static_cast<u64>(warp) * gridDim.x + i) * width;
#pragma unroll
        for (int j = 0; j < MOST_WIDTH / 32; j++) {
            int c = lane + 32 * j;
            x[j] = fmaf(c < width ? __ldcg(of_part + c) : 0.0f, of, x[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < MOST_WIDTH / 32; j++) {
        int c = lane + 32 * j;
        if (c < width) write(out, (row + warp) * width + c, STEP == IN_ONE ? x[j] / all : x[j], bf16);
    }
}

#define FEW_KERNEL(name, body)                                                                                           \
    KERNEL __launch_bounds__(FEW_THREADS, 1)                                                                             \
        name(const void* q, const void* k, const void* v, const void* q_norm, int q_type, const void* k_norm, int k_type, \
             const float* cos, const float* sin, float eps, int queries, int kv_heads, int width, float scale,           \
             const int* position, void* keys, void* values, int bf16, float* partial, int room, void* out) {             \
        Pass pass = {q,       k,        v,     q_norm, q_type,   k_norm, k_type, cos, sin, eps,                          \
                     queries, kv_heads, width, scale,  position, keys,   values};                                        \
        body;                                                                                                            \
    }

FEW_KERNEL(attention_whole, if (bf16) attend_whole<BF16>(pass, out); else attend_whole<F32>(pass, out))
FEW_KERNEL(attention_parts, (attend_part<F32, IN_ONE>(pass, partial, room, out)))
FEW_KERNEL(attention_sums, (attend_part<BF16, SUMS>(pass, partial, room, out)))
FEW_KERNEL(attention_results, (attend_part<BF16, RESULTS>(pass, partial, room, out)))

// ---- many tokens, f32 ----

enum { PREFILL_TOKENS = 64, PREFILL_POSITIONS = 32, PREFILL_STRIDE = MOST_WIDTH + 4, PREFILL_SCORES = PREFILL_POSITIONS + 4 };

__device__ inline float4 four_at(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ inline float dot_four(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// `rows` rows of MOST_WIDTH values to shared memory, 0 from `end` and `width` on; rows lie `stride` values apart.
__device__ inline void copy_rows_f32(float* to, const float* from, u64 stride, int rows, int end, int width, bool vectors) {
    for (int i = threadIdx.x; i < rows * (MOST_WIDTH / 4); i += 256) {
        int row = i / (MOST_WIDTH / 4), c = i % (MOST_WIDTH / 4) * 4;
        float* at = to + row * PREFILL_STRIDE + c;
        const float* source = from + row * stride + c;
        if (vectors) {
            bool there = row < end && c < width;
            copy_async(at, there ? source : from, there ? 16 : 0);
        } else {
            for (int j = 0; j < 4; j++) at[j] = row < end && c + j < width ? source[j] : 0.0f;
        }
    }
}

// 64 tokens of one query head, in f32. blockIdx.x: head, y: tokens, the longest rows first. 256 threads: each has four tokens
// times two positions, then four tokens times eight values. Shared memory for 128 rows of PREFILL_STRIDE and 64 of
// PREFILL_SCORES values. Bound by the f32 units: 2 · 4 + 4 wide loads from shared memory feed 128 multiplications.
KERNEL __launch_bounds__(256) attention_tokens(const float* q, const float* keys, const float* values, int queries,
                                               int kv_heads, int width, float scale, const int* position, int tokens,
                                               float* out) {
    DYNAMIC_SHARED(float, qs);                            // [tokens][PREFILL_STRIDE]
    float* ks = qs + PREFILL_TOKENS * PREFILL_STRIDE;     // [positions][PREFILL_STRIDE]
    float* vs = ks + PREFILL_POSITIONS * PREFILL_STRIDE;  // [positions][PREFILL_STRIDE]
    float* ps = vs + PREFILL_POSITIONS * PREFILL_STRIDE;  // [tokens][PREFILL_SCORES]
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16, head = blockIdx.x, kv = head / (queries / kv_heads);
    u64 stride = static_cast<u64>(kv_heads) * width;
    int first = (gridDim.y - 1 - blockIdx.y) * PREFILL_TOKENS, cached = *position;
    int last = first + PREFILL_TOKENS < tokens ? first + PREFILL_TOKENS : tokens, end = cached + last;
    bool vectors = width % 4 == 0 && in_sixteens(q) && in_sixteens(keys) && in_sixteens(values);
    auto load = [&](float* to, const float* all, int from) {
        const float* rows = all + from * stride + kv * width;
        copy_rows_f32(to, rows, stride, PREFILL_POSITIONS, end - from, width, vectors);
        commit_copies();
    };
    copy_rows_f32(qs, q + (static_cast<u64>(first) * queries + head) * width, static_cast<u64>(queries) * width,
                  PREFILL_TOKENS, last - first, width, vectors);
    load(ks, keys, 0);
    float top[4], total[4], sums[4][8] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) top[i] = MINUS_INFINITY, total[i] = 0.0f;
    for (int from = 0; from < end; from += PREFILL_POSITIONS) {
        load(vs, values, from);
        wait_copies<1>(); // the keys
        __syncthreads();
        float s[4][2] = {};
        for (int c = 0; c < width; c += 4) {
            float4 b[2] = {four_at(ks + tx * PREFILL_STRIDE + c), four_at(ks + (tx + 16) * PREFILL_STRIDE + c)};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 a = four_at(qs + (ty * 4 + i) * PREFILL_STRIDE + c);
                s[i][0] = dot_four(a, b[0], s[i][0]);
                s[i][1] = dot_four(a, b[1], s[i][1]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int seen = cached + first + ty * 4 + i + 1;
            float most = top[i];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                s[i][j] = from + tx + 16 * j < seen ? score(s[i][j], scale, 0) : MINUS_INFINITY;
                most = fmaxf(most, s[i][j]);
            }
            for (int m = 8; m > 0; m /= 2) most = fmaxf(most, __shfl_xor_sync(FULL, most, m));
            float before = weight_of(top[i], most);
            total[i] *= before; // of this thread's positions
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float p = weight_of(s[i][j], most);
                total[i] += p;
                ps[(ty * 4 + i) * PREFILL_SCORES + tx + 16 * j] = p;
            }
            top[i] = most;
#pragma unroll
            for (int c = 0; c < 8; c++) sums[i][c] *= before;
        }
        wait_copies<0>(); // the values
        __syncthreads();
        if (from + PREFILL_POSITIONS < end) load(ks, keys, from + PREFILL_POSITIONS);
        for (int p = 0; p < PREFILL_POSITIONS; p += 4) {
            float4 a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = four_at(ps + (ty * 4 + i) * PREFILL_SCORES + p);
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    float4 v = four_at(vs + (p + j) * PREFILL_STRIDE + side * 64 + tx * 4);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float weight = j == 0 ? a[i].x : j == 1 ? a[i].y : j == 2 ? a[i].z : a[i].w;
                        float* to = sums[i] + side * 4;
                        to[0] = fmaf(weight, v.x, to[0]), to[1] = fmaf(weight, v.y, to[1]);
                        to[2] = fmaf(weight, v.z, to[2]), to[3] = fmaf(weight, v.w, to[3]);
                    }
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int t = first + ty * 4 + i;
        for (int m = 8; m > 0; m /= 2) total[i] += __shfl_xor_sync(FULL, total[i], m);
        if (t >= tokens) continue;
#pragma unroll
        for (int c = 0; c < 8; c++) {
            int column = c / 4 * 64 + tx * 4 + c % 4;
            if (column < width) out[(static_cast<u64>(t) * queries + head) * width + column] = sums[i][c] / total[i];
        }
    }
}

// ---- many tokens, bf16 ----

enum { RING_ROWS = 64, RING_TILES = 3 };
#define LOG2_E 1.4426950408889634f

// 2^x.
__device__ inline float power_of_two(float x) {
#ifdef SEGPACK_HOST_SHIM
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Up to 64 rows to a tile of [64][WIDTH] in shared memory, 0 from `end` and `width` on; rows lie `stride` values apart. The
// eights of row r are exchanged by r % 8, so that neither the copies nor load_matrices meet in a bank.
template <int WIDTH>
__device__ inline void copy_rows(u16* to, const u16* from, u64 stride, int end, int width, bool vectors) {
    constexpr int EIGHTS = WIDTH / 8, ROWS = 128 / EIGHTS;
    int row = threadIdx.x / EIGHTS, eight = threadIdx.x % EIGHTS;
    const u16* source = from + row * stride;
    if (!vectors) {
        for (; row < RING_ROWS; row += ROWS, source += ROWS * stride) {
            uint4* at = reinterpret_cast<uint4*>(to + row * WIDTH + (eight ^ (row % 8)) * 8);
            *at = eight_of<BF16>(source, eight * 8, row < end ? width : 0, false).low;
        }
        return;
    }
    if (eight * 8 >= width) end = 0;
    to += row * WIDTH + (eight ^ (row % 8)) * 8; // ROWS is a multiple of 8
    source += eight * 8;
#pragma unroll
    for (int i = 0; i < RING_ROWS / ROWS; i++) {
        bool there = row + i * ROWS < end;
        copy_async(to + i * ROWS * WIDTH, there ? source : from, there ? 16 : 0);
        source += ROWS * stride;
    }
}

// 64 tokens of one query head. Keys, and after a first round keys and values, come as one row of tiles through three stages of
// shared memory: two are on their way while one is worked on.
template <int WIDTH>
__device__ inline void attend_tiles(const u16* q, const u16* keys, const u16* values, int queries, int kv_heads, int width,
                                    float scale, const int* position, int tokens, u16* out) {
    constexpr int TILE = RING_ROWS * WIDTH, STEPS = WIDTH / 16, SCORES = RING_ROWS / 8;
    DYNAMIC_SHARED(u16, stages); // [RING_TILES][TILE]
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pair = lane % 4 * 2;
    int head = blockIdx.x, kv = head / (queries / kv_heads), cached = *position;
    int first = (gridDim.y - 1 - blockIdx.y) * RING_ROWS, row = first + warp * 16 + lane / 4; // and row + 8
    int last = first + RING_ROWS < tokens ? first + RING_ROWS : tokens, end = cached + last;
    int tiles = (end + RING_ROWS - 1) / RING_ROWS;
    u64 stride = static_cast<u64>(kv_heads) * width;
    bool vectors = width % 8 == 0 && in_sixteens(q) && in_sixteens(keys) && in_sixteens(values);
    keys += kv * width, values += kv * width;
    int loaded = 0, now = 0; // tiles, the stage of the next one to work on
    auto load = [&](int stage) {
        int second = loaded - tiles, tile = second < 0 ? loaded : second / 2;
        if (second < 2 * tiles) {
            const u16* all = second < 0 || second % 2 == 0 ? keys : values;
            const u16* rows = all + static_cast<u64>(tile) * RING_ROWS * stride;
            copy_rows<WIDTH>(stages + stage * TILE, rows, stride, end - tile * RING_ROWS, width, vectors);
        }
        commit_copies();
        loaded++;
    };
    // the next tile is here, and nobody needs the one before it any more
    auto next = [&] {
        wait_copies<RING_TILES - 2>();
        __syncthreads();
        load(now == 0 ? RING_TILES - 1 : now - 1);
        const u16* tile = stages + now * TILE;
        now = now == RING_TILES - 1 ? 0 : now + 1;
        return tile;
    };
    // the last stage is free until the first tile is here
    u16* qs = stages + (RING_TILES - 1) * TILE;
    copy_rows<WIDTH>(qs, q + (static_cast<u64>(first) * queries + head) * width, static_cast<u64>(queries) * width,
                     last - first, width, vectors);
    commit_copies();
    for (int i = 0; i < RING_TILES - 1; i++) load(i);
    wait_copies<RING_TILES - 1>();
    __syncthreads();
    u32 a[STEPS][4];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        int eight = (2 * k + lane / 16) ^ (lane % 8);
        load_matrices<false>(a[k], qs + (warp * 16 + lane % 16) * WIDTH + eight * 8);
    }
    // where a lane reads of a tile: keys as the columns of a right operand, values as its rows
    int key_at = (lane % 8 + lane / 16 * 8) * WIDTH + ((lane / 8 % 2) ^ (lane % 8)) * 8;
    int value_at = lane % 16 * WIDTH + ((lane / 16) ^ (lane % 8)) * 8;
    float s[SCORES][4];
    // the scores of this warp's tokens and a tile's positions
    auto scores = [&](const u16* tile, int from) {
#pragma unroll
        for (int j = 0; j < SCORES; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
#pragma unroll
            for (int j = 0; j < SCORES; j += 2) {
                u32 b[4];
                load_matrices<false>(b, tile + j * 8 * WIDTH + (key_at ^ (k * 16)));
                mma(s[j], a[k], b);
                mma(s[j + 1], a[k], b + 2);
            }
        }
        bool masked = from + RING_ROWS - 1 > cached + first + warp * 16;
#pragma unroll
        for (int j = 0; j < SCORES; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float* of = s[j] + half * 2;
                widen_pair<BF16>(round_pair(of[0], of[1]), of);
                widen_pair<BF16>(round_pair(of[0] * scale, of[1] * scale), of);
                int seen = cached + row + half * 8 - from - j * 8 - pair;
                if (masked && seen < 0) of[0] = MINUS_INFINITY;
                if (masked && seen < 1) of[1] = MINUS_INFINITY;
            }
        }
    };
    // position 0 is seen by every row: from the first tile on the greatest score is one
    float top[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0.0f, 0.0f}; // the sum of this lane's positions
    for (int t = 0; t < tiles; t++) {
        scores(next(), t * RING_ROWS);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = top[half];
#pragma unroll
            for (int j = 0; j < SCORES; j++) most = fmaxf(most, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
            for (int m = 2; m > 0; m /= 2) most = fmaxf(most, __shfl_xor_sync(FULL, most, m));
            float shift = -most * LOG2_E;
            total[half] *= power_of_two(fmaf(top[half], LOG2_E, shift));
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                total[half] += power_of_two(fmaf(s[j][half * 2], LOG2_E, shift)) +
                               power_of_two(fmaf(s[j][half * 2 + 1], LOG2_E, shift));
            }
            top[half] = most;
        }
    }
    float shift[2]; // e^(score - top) / total = 2^(score · log2 e + shift)
#pragma unroll
    for (int half = 0; half < 2; half++) {
        for (int m = 2; m > 0; m /= 2) total[half] += __shfl_xor_sync(FULL, total[half], m);
        shift[half] = -fmaf(top[half], LOG2_E, log2f(total[half]));
    }
    float sums[WIDTH / 8][4] = {};
    for (int t = 0; t < tiles; t++) {
        scores(next(), t * RING_ROWS);
        // the scores lie as the left operand wants them
        u32 p[RING_ROWS / 16][4];
#pragma unroll
        for (int k = 0; k < RING_ROWS / 16; k++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float* of = s[2 * k + i / 2] + i % 2 * 2;
                p[k][i] = round_pair(power_of_two(fmaf(of[0], LOG2_E, shift[i % 2])),
                                     power_of_two(fmaf(of[1], LOG2_E, shift[i % 2])));
            }
        }
        const u16* tile = next();
#pragma unroll
        for (int k = 0; k < RING_ROWS / 16; k++) {
#pragma unroll
            for (int j = 0; j < WIDTH / 8; j += 2) {
                u32 b[4];
                load_matrices<true>(b, tile + k * 16 * WIDTH + (value_at ^ (j * 8)));
                mma(sums[j], p[k], b);
                mma(sums[j + 1], p[k], b + 2);
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int token = row + half * 8;
        if (token >= tokens) continue;
        u64 to = (static_cast<u64>(token) * queries + head) * width;
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j++) {
            int column = j * 8 + pair;
            const float* of = sums[j] + half * 2;
            if (width % 2 == 0) {
                if (column < width) *reinterpret_cast<u32*>(out + to + column) = round_pair(of[0], of[1]);
            } else {
                if (column < width) write(out, to + column, of[0], 1);
                if (column + 1 < width) write(out, to + column + 1, of[1], 1);
            }
        }
    }
}

// As attention_tokens, for bf16 values, on tensor cores, and rounded as in the eager code: a first round finds the greatest
// score and the sum of a row, a second one has the probabilities. 128 threads: each warp has 16 tokens. Shared memory for
// three tiles of 64 rows. Bound by shared memory and tensor cores alike: a warp reads two 8x8 matrices for every product.
#define TILES_KERNEL(name, WIDTH, blocks)                                                                              \
    KERNEL __launch_bounds__(128, blocks)                                                                              \
        name(const u16* q, const u16* keys, const u16* values, int queries, int kv_heads, int width, float scale,      \
             const int* position, int tokens, u16* out) {                                                              \
        attend_tiles<WIDTH>(q, keys, values, queries, kv_heads, width, scale, position, tokens, out);                  \
    }

TILES_KERNEL(attention_mma, 128, 3)
TILES_KERNEL(attention_mma_narrow, 64, 4) // heads at most 64 wide
