/* Preloaded into the program under test: kills it at, or fails, one of its calls of the system.
 *
 * FAULT_AT=N      the Nth writing call is where it happens, counted from 1
 * FAULT_ERRNO=E   it fails with this error; without, the process is killed before it
 * FAULT_STICKY=1  and so do all writing calls after it
 * FAULT_COUNT=F   the number of writing calls goes to this file when the program ends
 * FAULT_NEVER=name:E[,name:E]...   these calls always fail (fsync_folder: fsync of a folder;
 *                 open_direct: an open past the page cache; open_dev: see FAULT_PATH)
 * FAULT_READ=N    the Nth pread fails, once, with FAULT_ERRNO (FAULT_STICKY: and all after it)
 * FAULT_FREE=B[,B]...   bytes that a disk has free, each time it is asked; the last one stays
 * FAULT_STATFS=T  every file system says that it is of this type (linux/magic.h)
 * FAULT_PATH=S    opens of paths that end in S fail with FAULT_ERRNO
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long written, read_calls;
static long at = -1, read_at = -1;
static int error_number, sticky;
static const char *never, *count_file, *bad_path;

static const char *text(const char *name) { return getenv(name); }

__attribute__((constructor)) static void begin(void) {
    if (text("FAULT_AT")) at = atol(text("FAULT_AT"));
    if (text("FAULT_READ")) read_at = atol(text("FAULT_READ"));
    if (text("FAULT_ERRNO")) error_number = atoi(text("FAULT_ERRNO"));
    sticky = text("FAULT_STICKY") != NULL;
    never = text("FAULT_NEVER");
    count_file = text("FAULT_COUNT");
    bad_path = text("FAULT_PATH");
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

__attribute__((destructor)) static void end(void) {
    if (!count_file) return;
    int fd = REAL(open64)(count_file, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) return;
    char line[32];
    int length = snprintf(line, sizeof line, "%ld\n", atomic_load(&written));
    ssize_t done = REAL(write)(fd, line, length);
    (void)done;
    close(fd);
}

/* Whether this call always fails. */
static int is_never(const char *name) {
    for (const char *p = never; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
        size_t length = strlen(name);
        if (!strncmp(p, name, length) && p[length] == ':') {
            errno = atoi(p + length + 1);
            return 1;
        }
    }
    return 0;
}

/* Counts a writing call; whether it fails. */
static int writes(const char *name) {
    if (is_never(name)) return 1;
    long n = atomic_fetch_add(&written, 1) + 1;
    if (at < 0 || !(n == at || (sticky && n > at))) return 0;
    if (!error_number) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = error_number;
    return 1;
}

static int reads(void) {
    long n = atomic_fetch_add(&read_calls, 1) + 1;
    if (read_at < 0 || !(n == read_at || (sticky && n > read_at))) return 0;
    errno = error_number;
    return 1;
}

static int is_bad(const char *path) {
    if (!bad_path) return 0;
    size_t length = strlen(path), end = strlen(bad_path);
    if (length < end || strcmp(path + length - end, bad_path)) return 0;
    errno = error_number;
    return 1;
}

#define WRITES(name, call, type, ...)                                                              \
    type name(__VA_ARGS__) {                                                                       \
        if (writes(#name)) return -1;                                                              \
        return REAL(name) call;                                                                    \
    }

/* what goes to the terminal, a pipe or an event is no writing of files */
static int is_file(int fd) {
    struct stat about;
    return fd > 2 && !fstat(fd, &about) && S_ISREG(about.st_mode);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (is_file(fd) && writes("write")) return -1;
    return REAL(write)(fd, bytes, count);
}
WRITES(pwrite64, (fd, bytes, count, to), ssize_t, int fd, const void *bytes, size_t count, off64_t to)
WRITES(fdatasync, (fd), int, int fd)
WRITES(ftruncate64, (fd, length), int, int fd, off64_t length)
WRITES(rename, (from, to), int, const char *from, const char *to)
WRITES(renameat, (a, from, b, to), int, int a, const char *from, int b, const char *to)
WRITES(renameat2, (a, from, b, to, flags), int, int a, const char *from, int b, const char *to,
       unsigned int flags)
WRITES(linkat, (a, from, b, to, flags), int, int a, const char *from, int b, const char *to, int flags)
WRITES(mkdir, (path, mode), int, const char *path, mode_t mode)
WRITES(mkdirat, (at_, path, mode), int, int at_, const char *path, mode_t mode)
WRITES(rmdir, (path), int, const char *path)
WRITES(unlink, (path), int, const char *path)
WRITES(unlinkat, (at_, path, flags), int, int at_, const char *path, int flags)
WRITES(flock, (fd, operation), int, int fd, int operation)

int fsync(int fd) {
    struct stat about;
    if (!fstat(fd, &about) && S_ISDIR(about.st_mode) && is_never("fsync_folder")) return -1;
    if (writes("fsync")) return -1;
    return REAL(fsync)(fd);
}

static int pretend(int failed, __typeof__(((struct statfs *)0)->f_type) *type) {
    if (!failed && text("FAULT_STATFS")) *type = strtol(text("FAULT_STATFS"), NULL, 0);
    return failed;
}
int statfs(const char *path, struct statfs *about) {
    return pretend(REAL(statfs)(path, about), &about->f_type);
}
int statfs64(const char *path, struct statfs64 *about) {
    return pretend(REAL(statfs64)(path, about), &about->f_type);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t from) {
    if (is_file(fd) && reads()) return -1;
    return REAL(pread64)(fd, bytes, count, from);
}

/* The next number of a list; the last one again and again. */
static int free_space(struct statvfs64 *about) {
    static const char *next;
    static atomic_flag busy = ATOMIC_FLAG_INIT;
    if (!text("FAULT_FREE")) return 0;
    while (atomic_flag_test_and_set(&busy)) {}
    if (!next) next = text("FAULT_FREE");
    char *end;
    unsigned long long bytes = strtoull(next, &end, 10);
    if (*end == ',') next = end + 1;
    atomic_flag_clear(&busy);
    about->f_frsize = about->f_bsize = 1;
    about->f_bavail = about->f_bfree = bytes;
    return 0;
}

int statvfs64(const char *path, struct statvfs64 *about) {
    int result = REAL(statvfs64)(path, about);
    return result ? result : free_space(about);
}

int statvfs(const char *path, struct statvfs *about) {
    return statvfs64(path, (struct statvfs64 *)about); /* the same on 64-bit systems */
}

static int refuses_open(const char *path, int flags) {
    if (is_bad(path)) return 1;
    if ((flags & O_DIRECT) == O_DIRECT && is_never("open_direct")) return 1;
    return flags & (O_CREAT | O_TRUNC) ? writes("open") : 0;
}

int fcntl64(int fd, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (command == F_SETFL && ((long)argument & O_DIRECT) && is_never("open_direct")) return -1;
    return REAL(fcntl64)(fd, command, argument);
}

#define MODE(flags)                                                                                \
    mode_t mode = 0;                                                                               \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                                         \
        va_list list;                                                                              \
        va_start(list, flags);                                                                     \
        mode = va_arg(list, mode_t);                                                               \
        va_end(list);                                                                              \
    }

int open64(const char *path, int flags, ...) {
    MODE(flags)
    if (refuses_open(path, flags)) return -1;
    return REAL(open64)(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    MODE(flags)
    if (refuses_open(path, flags)) return -1;
    return REAL(open)(path, flags, mode);
}
int openat64(int at_, const char *path, int flags, ...) {
    MODE(flags)
    if (refuses_open(path, flags)) return -1;
    return REAL(openat64)(at_, path, flags, mode);
}
int openat(int at_, const char *path, int flags, ...) {
    MODE(flags)
    if (refuses_open(path, flags)) return -1;
    return REAL(openat)(at_, path, flags, mode);
}
