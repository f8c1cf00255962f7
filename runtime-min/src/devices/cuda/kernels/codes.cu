// Codes of sound that the device chooses, and what the next pass makes of them. The choice is that of generate/sampler.rs and
// of `exp` in generate/logits.rs: the same f64 operations in the same order, each rounded on its own, so that both give the
// same code. Latency bounds it: one block sorts, and one thread adds up in order, by default no more than 50 weights.
#include "device.cuh"

// How codes are chosen.
struct Sampling {
    double temperature;
    double top_p; // 0: keeps all
    int top_k;    // 0: keeps all
    int random;   // 0: the highest logit, whatever the others say
};

// What was chosen: a code and its logit. Where that is NaN or infinite, no code could be chosen; the code is a row of the
// embedding all the same.
struct Chosen {
    u32 code;
    float logit;
};

// The next power of two.
__device__ inline int power_of_two(int n) {
    int power = 1;
    while (power < n) power *= 2;
    return power;
}

// The order of logits in the higher half of a key, as a value.
__device__ inline double key_value(u64 key) {
    u32 bits = static_cast<u32>(key >> 32);
    return static_cast<double>(__uint_as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits));
}

// Brings the greatest of `n` keys, a power of two, to the front.
__device__ inline void greatest_first(u64* keys, int n) {
    for (int half = n / 2; half > 0; half /= 2) {
        for (int i = threadIdx.x; i < half; i += blockDim.x) {
            if (keys[i + half] > keys[i]) keys[i] = keys[i + half];
        }
        __syncthreads();
    }
}

// Sorts `n` keys, a power of two, the greatest first: a bitonic sort.
__device__ inline void sort_keys(u64* keys, int n) {
    for (int size = 2; size <= n; size *= 2) {
        for (int step = size / 2; step > 0; step /= 2) {
            for (int i = threadIdx.x; i < n / 2; i += blockDim.x) {
                int low = i / step * step * 2 + i % step, high = low + step;
                u64 a = keys[low], b = keys[high];
                bool falls = (low & size) == 0;
                if (falls ? a < b : a > b) keys[low] = b, keys[high] = a;
            }
            __syncthreads();
        }
    }
}

// e to a power that is not positive: `exp` of generate/logits.rs.
__device__ inline double exp_of(double power) {
    if (power < -745.0) return 0.0;
    double small = __ddiv_rn(power, 1024.0), value = 1.0;
    for (int term = 18; term > 0; term--) {
        value = __dadd_rn(1.0, __ddiv_rn(__dmul_rn(value, small), static_cast<double>(term)));
    }
    for (int i = 0; i < 10; i++) value = __dmul_rn(value, value);
    return value;
}

// Sums are added up in order, as the host does it.
__device__ inline double sum_of(const double* weights, int n) {
    double sum = 0.0;
    for (int i = 0; i < n; i++) sum = __dadd_rn(sum, weights[i]);
    return sum;
}

// The fewest weights that add up to a share of all.
__device__ inline int nucleus(const double* weights, int n, double share) {
    double wanted = __dmul_rn(share, sum_of(weights, n)), sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum = __dadd_rn(sum, weights[i]);
        if (sum >= wanted) return i + 1;
    }
    return n;
}

// Where a fraction of all weights ends. Rounding can leave a crumb: it belongs to the last one with any weight.
__device__ inline int drawn(const double* weights, int n, double fraction) {
    double left = __dmul_rn(fraction, sum_of(weights, n));
    for (int i = 0; i < n; i++) {
        left = __dadd_rn(left, -weights[i]);
        if (left < 0.0) return i;
    }
    for (int i = n - 1; i > 0; i--) {
        if (weights[i] > 0.0) return i;
    }
    return 0;
}

// Chooses one of `n` codes, and counts `tokens` more positions. `fraction` is the random number, at least 0 and below 1. One
// block of 256 threads with room for twice the power of two from `n` on of 8 bytes.
KERNEL __launch_bounds__(256) choose_code(const void* logits, int n, int bf16, const Sampling* how, const double* fraction,
                                          Chosen* chosen, int* position, int tokens) {
    DYNAMIC_SHARED(u64, keys);
    __shared__ int kept, at;
    int all = power_of_two(n);
    double* weights = reinterpret_cast<double*>(keys + all);
    // what fills up is less than any logit
    for (int i = threadIdx.x; i < all; i += blockDim.x) keys[i] = i < n ? logit_key(read(logits, i, bf16), i) : 0;
    if (threadIdx.x == 0) kept = n, at = 0;
    __syncthreads();
    if (how->random) {
        sort_keys(keys, all);
    } else {
        greatest_first(keys, all);
    }
    double highest = key_value(keys[0]), infinity = static_cast<double>(__uint_as_float(0x7f800000u));
    if (how->random && highest < infinity && highest > -infinity) {
        // the first ones, and all that equal the last of them
        int k = how->top_k;
        u32 cut = static_cast<u32>(keys[k > 0 && k < n ? k - 1 : n - 1] >> 32);
        for (int i = threadIdx.x + 1; i < n; i += blockDim.x) {
            if (static_cast<u32>(keys[i] >> 32) < cut && static_cast<u32>(keys[i - 1] >> 32) >= cut) kept = i;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < kept; i += blockDim.x) {
            weights[i] = exp_of(__ddiv_rn(__dadd_rn(key_value(keys[i]), -highest), how->temperature));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int left = how->top_p > 0.0 ? nucleus(weights, kept, how->top_p) : kept;
            at = drawn(weights, left, *fraction);
        }
    }
    if (threadIdx.x == 0) {
        chosen->code = key_id(keys[at]);
        chosen->logit = read(logits, chosen->code, bf16);
        *position += tokens;
    }
}

// The first pass of a frame takes in the talker's state and the row of the first code, `x`; the sum of embeddings begins
// with that row.
KERNEL first_code(const float* state, const void* table, int type, const u32* code, int hidden, int bf16, float* sum, void* x) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= hidden) return;
    float row = rounded(value_at(table, static_cast<u64>(*code) * hidden + i, type), bf16);
    write(x, i, state[i], bf16);
    write(x, hidden + i, row, bf16);
    sum[i] = row;
}

// Adds the row of a code to the sum of embeddings. `x`, what the next pass takes in, is that row; after the last code it is
// the sum with the row of text.
KERNEL next_code(const void* table, int type, const Chosen* chosen, int hidden, int bf16, float* sum, const float* text, void* x) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= hidden) return;
    float row = rounded(value_at(table, static_cast<u64>(chosen->code) * hidden + i, type), bf16);
    float added = sum[i] + row;
    sum[i] = added;
    write(x, i, text ? added + text[i] : row, bf16);
}
