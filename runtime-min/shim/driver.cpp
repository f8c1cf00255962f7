// A CUDA driver without a GPU, for tests: the functions of libcuda that segpack calls, and the kernels compiled for the
// host.
//
// Every lane is a fiber; barriers, shuffles and matrix instructions wait for all that take part, and a wait that can never
// end is reported. Work is queued and runs as late as it may, when somebody waits for it, so that a missing wait shows.
// Allocations are counted and bounded, copies are checked against them, and any call can be made to fail:
//
//   SEGPACK_SHIM_MEMORY=BYTES          memory of the device (default 4 GiB)
//   SEGPACK_SHIM_DEVICES=N             devices (default 1)
//   SEGPACK_SHIM_DRIVER=12080          version of CUDA
//   SEGPACK_SHIM_CAPABILITY=8          first digit of the compute capability
//   SEGPACK_SHIM_ORDER=reverse         blocks and lanes run from the last to the first, and copies to shared memory are made
//                                      as early as they may be instead of as late; so does segpack_shim_reverse(1)
//   segpack_shim_conflicts(KERNEL)     how often lanes of it shared banks of shared memory in ldmatrix or cp.async so far
//   SEGPACK_SHIM_EAGER=N               work of the N-th stream, counted from 1, runs at once
//   SEGPACK_SHIM_DROP=FUNCTION         calls of this function do nothing, as if the program had left them out
//   SEGPACK_SHIM_FAIL=FUNCTION:N       the N-th call of this function fails, counted from 1; after a wait that failed the
//                                      device is dead, as a real one: nothing that was queued runs, every call fails
//   SEGPACK_SHIM_COUNT=FUNCTION        standard error is told how often this function was called, when the driver is unloaded
//
// Built by the script beside it. What it declares itself of the driver's interface is all that is needed: no CUDA header.
#define SEGPACK_HOST_SHIM

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <csetjmp>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#include "../src/devices/cuda/kernels/all.cu"

#define EXPORT extern "C" __attribute__((visibility("default")))

[[noreturn]] static void broken(const std::string& what) {
    std::fprintf(stderr, "host shim: %s\n", what.c_str());
    std::abort();
}

// ---- lanes ----

namespace shim {

thread_local const Lane* lane;
thread_local Dim3 block_index, block_size, grid_size;

namespace {

// dynamic shared memory: what every architecture from 8.0 on gives a block that asks for it (8.6, 8.9 and 12.x no more than
// 99 KiB), and without asking, where a kernel declares 1 KiB itself
enum { STACK_BYTES = 64 << 10, SHARED_BYTES = 98 << 10, SHARED_UNASKED = 47 << 10 };

// Where a fiber goes on. The compiler's own jumps save what a call does not; the library's also look for handlers on the
// stack, which takes longer than most of what a lane does between two waits.
#ifdef __x86_64__
using Place = void*[5];
#define SAVE(place) __builtin_setjmp(place)
#define JUMP(place) __builtin_longjmp(place, 1)
#else
using Place = jmp_buf;
#define SAVE(place) _setjmp(place)
#define JUMP(place) _longjmp(place, 1)
#endif

struct Fiber {
    Place place;
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    Lane lane;
    bool started = false, done = true;
    const unsigned* waits_for = nullptr; // runs again when this is no longer `seen`
    unsigned seen = 0;
};

struct WarpState {
    unsigned arrived = 0, generation = 0, bytes = 0;
    char values[2][32 * EXCHANGED];
};

struct Host {
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<WarpState> warps;
    unsigned arrived = 0, generation = 0, threads = 0;
    bool early = false;
    // of every eight lanes, the banks of their first copy, of their second ..
    std::vector<std::vector<unsigned char>> copied;
    uint64_t conflicts = 0;
    Place scheduler;
    const std::function<void()>* kernel = nullptr;
    Fiber* current = nullptr;
    alignas(16) unsigned char shared[SHARED_BYTES];
};

thread_local std::unique_ptr<Host> host;

__attribute__((noinline)) void leave() {
    Host& h = *host;
    if (SAVE(h.current->place) == 0) JUMP(h.scheduler);
}

void wait(const unsigned& generation) {
    Fiber& me = *host->current;
    me.waits_for = &generation;
    me.seen = generation;
    leave();
}

void live() {
    for (;;) {
        (*host->kernel)();
        host->current->done = true;
        leave();
    }
}

__attribute__((noinline)) void resume(Fiber& f) {
    Host& h = *host;
    h.current = &f;
    lane = &f.lane;
    if (SAVE(h.scheduler) != 0) return;
    if (f.started) JUMP(f.place);
    f.started = true;
    setcontext(&f.start);
}

void grow(Host& h, unsigned threads) {
    while (h.fibers.size() < threads) {
        auto f = std::make_unique<Fiber>();
        f->stack.reset(new char[STACK_BYTES]);
        getcontext(&f->start);
        f->start.uc_stack.ss_sp = f->stack.get();
        f->start.uc_stack.ss_size = STACK_BYTES;
        f->start.uc_link = nullptr;
        makecontext(&f->start, live, 0);
        h.fibers.push_back(std::move(f));
    }
}

bool reverse = false;

bool reversed() {
    if (reverse) return true;
    const char* order = std::getenv("SEGPACK_SHIM_ORDER");
    return order && std::strcmp(order, "reverse") == 0;
}

// Runs every lane of a warp that can run; 1 more than the lanes that came to their end, or 0 where none could run.
unsigned run_warp(Host& h, unsigned first, unsigned lanes, bool backwards, bool& moved) {
    unsigned result = 0;
    for (unsigned i = 0; i < lanes; i++) {
        Fiber& f = *h.fibers[first + (backwards ? lanes - 1 - i : i)];
        if (f.done || (f.waits_for && *f.waits_for == f.seen)) continue;
        f.waits_for = nullptr;
        resume(f);
        moved = true;
        result += (result == 0) + f.done;
    }
    return result;
}

void run_block(const std::function<void()>& kernel, const std::string& name) {
    Host& h = *host;
    unsigned n = h.threads, left = n;
    bool backwards = reversed();
    h.kernel = &kernel;
    h.early = backwards;
    h.arrived = 0;
    for (auto& warp : h.warps) warp.arrived = 0;
    std::memset(h.shared, 0xff, sizeof h.shared); // NaN
    h.copied.assign((n + 7) / 8, {});
    for (unsigned i = 0; i < n; i++) {
        Fiber& f = *h.fibers[i];
        f.done = false, f.waits_for = nullptr;
        f.lane.copies = {};
        f.lane.copied = 0;
        f.lane.thread = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
    }
    unsigned warps = (n + 31) / 32;
    while (left > 0) {
        bool moved = false;
        for (unsigned i = 0; i < warps; i++) {
            // a warp goes on as far as it can before the next one: a barrier that is missing then shows
            unsigned first = (backwards ? warps - 1 - i : i) * 32, lanes = n - first < 32 ? n - first : 32;
            while (unsigned done = run_warp(h, first, lanes, backwards, moved)) left -= done - 1;
        }
        if (!moved) broken("kernel " + name + ": threads wait for others that never come");
    }
}

} // namespace

void* dynamic_shared() { return host->shared; }

void block_barrier() {
    Host& h = *host;
    if (++h.arrived == h.threads) {
        h.arrived = 0;
        h.generation++;
        return;
    }
    wait(h.generation);
}

const void* exchange(const void* mine, unsigned bytes, unsigned stride) {
    Host& h = *host;
    unsigned thread = lane->thread.x;
    WarpState& warp = h.warps[thread / 32];
    if (warp.arrived > 0 && warp.bytes != bytes) broken("lanes of a warp meet at different operations");
    warp.bytes = bytes;
    char* values = warp.values[warp.generation % 2];
    std::memcpy(values + thread % 32 * stride, mine, bytes);
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        warp.generation++;
    } else {
        wait(warp.generation);
    }
    return values;
}

bool early_copies() { return host->early; }

// Sixteens of banks that are taken, and one more.
static unsigned char taking(unsigned char taken, const void* at) {
    unsigned char bit = 1u << (reinterpret_cast<uintptr_t>(at) / 16 % 8);
    host->conflicts += (taken & bit) != 0;
    return taken | bit;
}

void count_conflicts(const void* const eight[8]) {
    unsigned char taken = 0;
    for (int i = 0; i < 8; i++) taken = taking(taken, eight[i]);
}

void count_conflicts_of_copy(const void* to) {
    auto& copied = host->copied[lane->thread.x / 8];
    unsigned number = lane->copied++;
    if (copied.size() <= number) copied.resize(number + 1);
    copied[number] = taking(copied[number], to);
}

static std::map<std::string, uint64_t> conflicts_of;

void misused(const char* what) { broken(what); }

void require_full(unsigned mask) {
    if (mask != 0xffffffffu) broken("a warp operation with a mask that is not full");
}

static void run(const std::function<void()>& kernel, const std::string& name, Dim3 grid, Dim3 block, unsigned shared) {
    if (shared > SHARED_BYTES) broken("kernel " + name + ": too much shared memory");
    if (!host) host = std::make_unique<Host>();
    host->threads = block.x * block.y * block.z;
    grow(*host, host->threads);
    host->warps.resize((host->threads + 31) / 32);
    grid_size = grid, block_size = block;
    bool backwards = reversed();
    uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t block = backwards ? blocks - 1 - i : i;
        block_index = {static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                       static_cast<unsigned>(block / grid.x / grid.y)};
        run_block(kernel, name);
    }
    conflicts_of[name] += std::exchange(host->conflicts, 0);
}

} // namespace shim

// ---- kernels ----

using Bound = std::function<void()>;

struct Function {
    const char* name;
    Bound (*bind)(void** arguments);
};

template <class... P, size_t... I>
static Bound bind_arguments(void (*kernel)(P...), void** from, std::index_sequence<I...>) {
    // copied at the launch, as the driver does it
    auto values = std::make_tuple(*static_cast<std::remove_const_t<P>*>(from[I])...);
    return [kernel, values] { std::apply(kernel, values); };
}

template <class... P>
static Bound bind_all(void (*kernel)(P...), void** from) {
    return bind_arguments(kernel, from, std::index_sequence_for<P...>{});
}

#define F(name) {#name, [](void** a) { return bind_all(name, a); }}
#define TYPES(name) F(name##_bf16), F(name##_f16), F(name##_f32)

static const Function FUNCTIONS[] = {
    F(embed), F(rms_norm), F(add), F(add_gated), F(silu_mul), F(heads), F(argmax_parts), F(argmax_next),
    TYPES(gemv), TYPES(expert_gate_up), TYPES(expert_down), TYPES(expert_down_all), TYPES(router),
    TYPES(gemm_fma), TYPES(expert_gated_fma), TYPES(expert_fma),
    F(gemm_mma_64), F(gemm_mma_128), F(expert_gated_mma_64), F(expert_gated_mma_128), F(expert_mma_64), F(expert_mma_128),
    F(route), F(expert_count), F(expert_sort), F(expert_combine),
    F(attention_whole), F(attention_parts), F(attention_sums), F(attention_results),
    F(attention_tokens), F(attention_mma), F(attention_mma_narrow),
    F(choose_code), F(first_code), F(next_code),
};

// ---- the driver ----

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
};

static const std::map<int, std::pair<const char*, const char*>> ERRORS = {
    {INVALID_VALUE, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {NOT_INITIALIZED, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {NO_DEVICE, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {INVALID_DEVICE, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {INVALID_IMAGE, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {INVALID_CONTEXT, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {INVALID_HANDLE, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {NOT_FOUND, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {LAUNCH_FAILED, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
};

struct Stream;

struct Event {
    Stream* stream = nullptr; // the last record
    uint64_t place = 0;
};

struct Op {
    Bound run;                 // or
    Stream* wait_on = nullptr; // work of another stream, up to a place
    uint64_t place = 0;
};

using Graph = std::vector<Op>;

struct Stream {
    std::deque<Op> queue;
    uint64_t queued = 0, done = 0;
    std::unique_ptr<Graph> capture;
};

static std::recursive_mutex mutex;
static std::map<uintptr_t, size_t> allocations;
static size_t used = 0;
static bool initialised = false;
static thread_local bool has_context = false;
static std::map<std::string, int> calls;
static std::vector<std::unique_ptr<Stream>> streams;
static bool dead = false;

static void die() {
    dead = true;
    for (auto& s : streams) s->queue.clear(), s->done = s->queued;
}

static size_t number(const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

static size_t memory() { return number("SEGPACK_SHIM_MEMORY", size_t{4} << 30); }
static int devices() { return static_cast<int>(number("SEGPACK_SHIM_DEVICES", 1)); }

// Whether this call is the one that is to fail.
static bool fails(const char* function) {
    int number = ++calls[function];
    const char* wanted = std::getenv("SEGPACK_SHIM_FAIL");
    if (!wanted) return false;
    const char* colon = std::strchr(wanted, ':');
    if (!colon || std::string(wanted, colon) != function) return false;
    return number == std::atoi(colon + 1);
}

static struct Count {
    ~Count() {
        const char* function = std::getenv("SEGPACK_SHIM_COUNT");
        if (function) std::fprintf(stderr, "host shim: %d calls of %s\n", calls[function], function);
    }
} count;

// Whether calls of this function are to do nothing.
static bool dropped(const char* function) {
    const char* wanted = std::getenv("SEGPACK_SHIM_DROP");
    return wanted && std::strcmp(wanted, function) == 0;
}

#define ENTER(failure)                                \
    std::lock_guard<std::recursive_mutex> own(mutex); \
    if (dead) return LAUNCH_FAILED;                   \
    if (fails(__func__)) return failure;              \
    if (!initialised) return NOT_INITIALIZED

#define WAITS                                             \
    std::lock_guard<std::recursive_mutex> waiting(mutex); \
    if (!dead && fails(__func__)) die();                  \
    if (dead) return LAUNCH_FAILED;                       \
    if (dropped(__func__)) return SUCCESS;                \
    if (!has_context) return INVALID_CONTEXT

#define IN_CONTEXT(failure) \
    ENTER(failure);         \
    if (!has_context) return INVALID_CONTEXT

static bool within(uintptr_t at, size_t bytes) {
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return bytes == 0;
    auto [start, length] = *--next;
    return at - start <= length && bytes <= length - (at - start);
}

static void run_until(Stream& s, uint64_t place) {
    while (s.done < place) {
        Op op = std::move(s.queue.front());
        s.queue.pop_front();
        s.done++; // before it runs: nothing waits for itself
        if (op.wait_on) run_until(*op.wait_on, op.place);
        if (op.run) op.run();
    }
}

static void run_everything() {
    for (auto& s : streams) run_until(*s, s->queued);
}

static void enqueue(Stream* s, Op op) {
    if (s->capture) {
        s->capture->push_back(std::move(op));
        return;
    }
    s->queue.push_back(std::move(op));
    s->queued++;
    size_t eager = number("SEGPACK_SHIM_EAGER", 0);
    if (eager > 0 && eager <= streams.size() && streams[eager - 1].get() == s) run_until(*s, s->queued);
}

static bool known(Stream* stream) {
    for (auto& s : streams)
        if (s.get() == stream) return true;
    return false;
}

EXPORT void segpack_shim_reverse(int reverse) {
    std::lock_guard<std::recursive_mutex> own(mutex);
    shim::reverse = reverse != 0;
}

EXPORT uint64_t segpack_shim_conflicts(const char* kernel) {
    std::lock_guard<std::recursive_mutex> own(mutex);
    run_everything();
    return shim::conflicts_of[kernel];
}

EXPORT int cuInit(unsigned) {
    std::lock_guard<std::recursive_mutex> own(mutex);
    if (fails(__func__) || devices() == 0) return NO_DEVICE;
    initialised = true;
    return SUCCESS;
}

EXPORT int cuDriverGetVersion(int* version) {
    std::lock_guard<std::recursive_mutex> own(mutex);
    if (fails(__func__)) return INVALID_VALUE;
    *version = static_cast<int>(number("SEGPACK_SHIM_DRIVER", 12080));
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int* count) {
    ENTER(INVALID_VALUE);
    *count = devices();
    return SUCCESS;
}

EXPORT int cuDeviceGet(int* device, int ordinal) {
    ENTER(INVALID_DEVICE);
    if (ordinal < 0 || ordinal >= devices()) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char* name, int length, int) {
    ENTER(INVALID_DEVICE);
    std::snprintf(name, length, "segpack host shim");
    return SUCCESS;
}

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    ENTER(INVALID_VALUE);
    switch (attribute) {
    case 16: *value = 4; return SUCCESS;  // multiprocessors
    case 75: *value = static_cast<int>(number("SEGPACK_SHIM_CAPABILITY", 8)); return SUCCESS; // compute capability, major
    case 76: *value = 0; return SUCCESS;  // minor
    default: return INVALID_VALUE;
    }
}

EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
    ENTER(INVALID_DEVICE);
    *bytes = memory();
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRetain(void** context, int) {
    ENTER(OUT_OF_MEMORY);
    static int one;
    *context = &one;
    return SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
    ENTER(INVALID_CONTEXT);
    return SUCCESS;
}

EXPORT int cuCtxSetCurrent(void* context) {
    ENTER(INVALID_CONTEXT);
    has_context = context != nullptr;
    return SUCCESS;
}

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT(INVALID_CONTEXT);
    *total = memory();
    *free = used > memory() ? 0 : memory() - used;
    return SUCCESS;
}

// What an allocation takes: pages of 2 MiB of its own, the worst that the driver does.
static size_t pages(size_t bytes) { return (bytes + (2 << 20) - 1) >> 21 << 21; }

EXPORT int cuMemAlloc_v2(uintptr_t* pointer, size_t bytes) {
    IN_CONTEXT(OUT_OF_MEMORY);
    if (bytes == 0) return INVALID_VALUE;
    if (used > memory() || pages(bytes) > memory() - used) return OUT_OF_MEMORY;
    void* memory = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!memory) return OUT_OF_MEMORY;
    std::memset(memory, 0xff, bytes); // NaN
    *pointer = reinterpret_cast<uintptr_t>(memory);
    allocations[*pointer] = bytes;
    used += pages(bytes);
    return SUCCESS;
}

EXPORT int cuMemFree_v2(uintptr_t pointer) {
    IN_CONTEXT(INVALID_VALUE);
    run_everything();
    auto found = allocations.find(pointer);
    if (found == allocations.end()) return INVALID_VALUE;
    used -= pages(found->second);
    allocations.erase(found);
    std::free(reinterpret_cast<void*>(pointer));
    return SUCCESS;
}

EXPORT int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    IN_CONTEXT(OUT_OF_MEMORY);
    *pointer = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT int cuMemFreeHost(void* pointer) {
    IN_CONTEXT(INVALID_VALUE);
    run_everything();
    std::free(pointer);
    return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, Stream* stream) {
    IN_CONTEXT(INVALID_VALUE);
    if (!known(stream)) return INVALID_HANDLE;
    if (!within(to, bytes)) return INVALID_VALUE;
    enqueue(stream, {[=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); }, nullptr, 0});
    return SUCCESS;
}

EXPORT int cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, Stream* stream) {
    IN_CONTEXT(INVALID_VALUE);
    if (!known(stream)) return INVALID_HANDLE;
    if (!within(from, bytes)) return INVALID_VALUE;
    enqueue(stream, {[=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); }, nullptr, 0});
    return SUCCESS;
}

EXPORT int cuModuleLoadDataEx(void** module, const void* image, unsigned count, const int* options, void** values) {
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == 5) std::strcpy(static_cast<char*>(values[i]), "ptxas fatal: the shim's log"); // ERROR_LOG_BUFFER
    }
    IN_CONTEXT(INVALID_IMAGE);
    const char* ptx = static_cast<const char*>(image);
    if (!std::strstr(ptx, ".target sm_80")) return INVALID_IMAGE;
    *module = new std::string(ptx);
    return SUCCESS;
}

EXPORT int cuModuleUnload(void* module) {
    IN_CONTEXT(INVALID_HANDLE);
    delete static_cast<std::string*>(module);
    return SUCCESS;
}

EXPORT int cuModuleGetFunction(const Function** function, void* module, const char* name) {
    IN_CONTEXT(NOT_FOUND);
    std::string entry = std::string(".entry ") + name + "(";
    if (static_cast<std::string*>(module)->find(entry) == std::string::npos) return NOT_FOUND;
    for (const Function& f : FUNCTIONS) {
        if (std::strcmp(f.name, name) == 0) {
            *function = &f;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

// Most dynamic shared memory of a launch, which a call of cuFuncSetAttribute raises.
static unsigned& asked_shared(const Function* f) {
    static std::map<const Function*, unsigned> asked;
    return asked.try_emplace(f, shim::SHARED_UNASKED).first->second;
}

EXPORT int cuFuncSetAttribute(const Function* f, int attribute, int value) {
    IN_CONTEXT(INVALID_HANDLE);
    if (attribute != 8 || value < 0 || value > shim::SHARED_BYTES) return INVALID_VALUE; // MAX_DYNAMIC_SHARED_SIZE_BYTES
    asked_shared(f) = value;
    return SUCCESS;
}

EXPORT int cuLaunchKernel(const Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, Stream* stream, void** arguments, void** extra) {
    IN_CONTEXT(LAUNCH_FAILED);
    if (!known(stream)) return INVALID_HANDLE;
    if (!gx || !gy || !gz || !bx || by != 1 || bz != 1 || bx > 1024 || gy > 65535 || gz > 65535 || extra)
        return INVALID_VALUE;
    if (shared > asked_shared(f)) return INVALID_VALUE;
    Bound kernel = f->bind(arguments);
    std::string name = f->name;
    shim::Dim3 grid = {gx, gy, gz}, block = {bx, by, bz};
    enqueue(stream, {[=] { shim::run(kernel, name, grid, block, shared); }, nullptr, 0});
    return SUCCESS;
}

EXPORT int cuStreamCreate(Stream** stream, unsigned) {
    IN_CONTEXT(OUT_OF_MEMORY);
    streams.push_back(std::make_unique<Stream>());
    *stream = streams.back().get();
    return SUCCESS;
}

EXPORT int cuStreamDestroy_v2(Stream* stream) {
    IN_CONTEXT(INVALID_HANDLE);
    if (!known(stream)) return INVALID_HANDLE;
    run_until(*stream, stream->queued); // it stays: events may name it
    return SUCCESS;
}

EXPORT int cuStreamSynchronize(Stream* stream) {
    WAITS;
    if (!known(stream)) return INVALID_HANDLE;
    if (stream->capture) return INVALID_VALUE;
    run_until(*stream, stream->queued);
    return SUCCESS;
}

EXPORT int cuEventCreate(Event** event, unsigned) {
    IN_CONTEXT(OUT_OF_MEMORY);
    *event = new Event;
    return SUCCESS;
}

EXPORT int cuEventDestroy_v2(Event* event) {
    IN_CONTEXT(INVALID_HANDLE);
    delete event;
    return SUCCESS;
}

EXPORT int cuEventRecord(Event* event, Stream* stream) {
    IN_CONTEXT(INVALID_HANDLE);
    if (!known(stream)) return INVALID_HANDLE;
    event->stream = stream;
    event->place = stream->queued;
    return SUCCESS;
}

EXPORT int cuEventSynchronize(Event* event) {
    WAITS;
    if (event->stream) run_until(*event->stream, event->place);
    return SUCCESS;
}

EXPORT int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    IN_CONTEXT(INVALID_HANDLE);
    if (!known(stream)) return INVALID_HANDLE;
    if (dropped(__func__)) return SUCCESS;
    if (event->stream && event->stream != stream) enqueue(stream, {nullptr, event->stream, event->place});
    return SUCCESS;
}

EXPORT int cuStreamBeginCapture_v2(Stream* stream, int) {
    IN_CONTEXT(INVALID_VALUE);
    if (!known(stream)) return INVALID_HANDLE;
    stream->capture = std::make_unique<Graph>();
    return SUCCESS;
}

EXPORT int cuStreamEndCapture(Stream* stream, Graph** graph) {
    IN_CONTEXT(INVALID_VALUE);
    if (!known(stream) || !stream->capture) return INVALID_HANDLE;
    *graph = stream->capture.release();
    return SUCCESS;
}

EXPORT int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    IN_CONTEXT(OUT_OF_MEMORY);
    *executable = new Graph(*graph);
    return SUCCESS;
}

EXPORT int cuGraphLaunch(Graph* graph, Stream* stream) {
    IN_CONTEXT(LAUNCH_FAILED);
    if (!known(stream)) return INVALID_HANDLE;
    for (const Op& op : *graph) enqueue(stream, op);
    return SUCCESS;
}

EXPORT int cuGraphExecDestroy(Graph* graph) {
    IN_CONTEXT(INVALID_HANDLE);
    run_everything();
    delete graph;
    return SUCCESS;
}

EXPORT int cuGraphDestroy(Graph* graph) {
    IN_CONTEXT(INVALID_HANDLE);
    delete graph;
    return SUCCESS;
}

EXPORT int cuGetErrorName(int error, const char** text) {
    auto found = ERRORS.find(error);
    *text = found == ERRORS.end() ? nullptr : found->second.first;
    return *text ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuGetErrorString(int error, const char** text) {
    auto found = ERRORS.find(error);
    *text = found == ERRORS.end() ? nullptr : found->second.second;
    return *text ? SUCCESS : INVALID_VALUE;
}
