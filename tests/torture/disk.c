/* A layer between a program and the system calls for its disk, loaded with LD_PRELOAD.

   It watches the files below one folder (the root) and does two things on request: record every call that changes
   the disk, in the order of their effects, and make the n-th call fail. `disk.py` controls it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST 4096
static char root[PATH_MAX];
static size_t root_length;
static char *paths[MOST];
static int record = -1;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static long calls, fail_at, fail_error, fail_for_good, short_write;

/* Called through ctypes. */

void disk_watch(const char *folder)
{
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
}

void disk_record(const char *path)
{
    record = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
}

/* The `at`-th call from now on fails with `error` (0: its write is short); all after it too, when `for_good`. */
void disk_fail(long at, long error, long for_good)
{
    calls = 0;
    fail_at = at;
    fail_error = error;
    fail_for_good = for_good;
    short_write = error == 0;
}

long disk_calls(void)
{
    return calls;
}

/* Records: one header, the path, the data. */

struct header {
    char what;
    uint32_t path_length;
    uint64_t offset;
    uint64_t length;
} __attribute__((packed));

static void put(const void *data, size_t length)
{
    const char *left = data;
    while (length) {
        ssize_t count = syscall(SYS_write, record, left, length);
        if (count <= 0)
            abort();
        left += count;
        length -= (size_t)count;
    }
}

static void note(char what, const char *path, uint64_t offset, const void *data, uint64_t length)
{
    if (record < 0)
        return;
    struct header header = {what, (uint32_t)strlen(path), offset, length};
    put(&header, sizeof header);
    put(path, header.path_length);
    if (data)
        put(data, length);
}

static int beneath(const char *path)
{
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

/* The absolute form of a path; paths are made by Python and SQLite, which leave no "..". */
static const char *whole(int folder, const char *path, char *room)
{
    if (path[0] == '/')
        return path;
    char base[PATH_MAX] = "";
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base))
            return path;
    } else if (folder >= 0 && folder < MOST && paths[folder]) {
        snprintf(base, sizeof base, "%s", paths[folder]);
    }
    snprintf(room, PATH_MAX, "%.2000s/%.2000s", base, path);
    return room;
}

static const char *path_of(int file)
{
    return file >= 0 && file < MOST ? paths[file] : NULL;
}

/* Whether this call must fail, with errno set. A short write is the caller's business. */
static int fails(void)
{
    calls++;
    if (!fail_at || short_write || (fail_for_good ? calls < fail_at : calls != fail_at))
        return 0;
    errno = (int)fail_error;
    return 1;
}

static int is_short(void)
{
    return fail_at && short_write && calls == fail_at;
}

/* Opening and closing. */

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    char room[PATH_MAX];
    const char *full = whole(folder, path, room);
    if (!beneath(full))
        return (int)syscall(SYS_openat, folder, path, flags, mode);
    pthread_mutex_lock(&guard);
    int file = -1;
    if (!fails()) {
        struct stat before;
        int there = syscall(SYS_newfstatat, folder, path, &before, 0) == 0;
        file = (int)syscall(SYS_openat, folder, path, flags, mode);
        if (file >= 0 && file < MOST) {
            free(paths[file]);
            paths[file] = strdup(full);
            if (!there && flags & O_CREAT)
                note('c', full, 0, NULL, 0);
            else if (flags & O_TRUNC)
                note('t', full, 0, NULL, 0);
        }
    }
    int error = errno;
    pthread_mutex_unlock(&guard);
    errno = error;
    return file;
}

#define MODE(last)                                                                                                      \
    va_list rest;                                                                                                       \
    va_start(rest, last);                                                                                               \
    mode_t mode = va_arg(rest, unsigned);                                                                               \
    va_end(rest)

int open(const char *path, int flags, ...) { MODE(flags); return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags); return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags); return opened(folder, path, flags, mode); }

int close(int file)
{
    if (file >= 0 && file < MOST && paths[file]) {
        pthread_mutex_lock(&guard);
        free(paths[file]);
        paths[file] = NULL;
        pthread_mutex_unlock(&guard);
    }
    return (int)syscall(SYS_close, file);
}

/* Writing. */

static ssize_t written(int file, const void *data, size_t length, off_t offset, int at)
{
    const char *path = path_of(file);
    if (!path)
        return at ? syscall(SYS_pwrite64, file, data, length, offset) : syscall(SYS_write, file, data, length);
    pthread_mutex_lock(&guard);
    ssize_t count = -1;
    if (!fails()) {
        if (is_short() && length > 1)
            length /= 2;
        if (!at) {
            int flags = (int)syscall(SYS_fcntl, file, F_GETFL);
            offset = syscall(SYS_lseek, file, 0, flags & O_APPEND ? SEEK_END : SEEK_CUR);
        }
        count = at ? syscall(SYS_pwrite64, file, data, length, offset) : syscall(SYS_write, file, data, length);
        if (count > 0)
            note('w', path, (uint64_t)offset, data, (uint64_t)count);
    }
    int error = errno;
    pthread_mutex_unlock(&guard);
    errno = error;
    return count;
}

ssize_t write(int file, const void *data, size_t length) { return written(file, data, length, 0, 0); }
ssize_t pwrite(int file, const void *data, size_t length, off_t offset) { return written(file, data, length, offset, 1); }
ssize_t pwrite64(int file, const void *data, size_t length, off64_t offset) { return written(file, data, length, offset, 1); }

/* Reading, which can only fail. */

#define READ(type, act)                                                                                                 \
    if (path_of(file) && fails())                                                                                       \
        return -1;                                                                                                      \
    return (type)(act)

ssize_t read(int file, void *data, size_t length) { READ(ssize_t, syscall(SYS_read, file, data, length)); }
ssize_t pread(int file, void *data, size_t length, off_t offset) { READ(ssize_t, syscall(SYS_pread64, file, data, length, offset)); }
ssize_t pread64(int file, void *data, size_t length, off64_t offset) { READ(ssize_t, syscall(SYS_pread64, file, data, length, offset)); }

/* Everything else that changes the disk: decide, do, note. */

#define CALL(there, act, what, path, offset, data, length)                                                              \
    if (!(there))                                                                                                       \
        return (int)(act);                                                                                              \
    pthread_mutex_lock(&guard);                                                                                         \
    int done = -1;                                                                                                      \
    if (!fails()) {                                                                                                     \
        done = (int)(act);                                                                                              \
        if (!done)                                                                                                      \
            note(what, path, offset, data, length);                                                                     \
    }                                                                                                                   \
    int error = errno;                                                                                                  \
    pthread_mutex_unlock(&guard);                                                                                       \
    errno = error;                                                                                                      \
    return done

int fsync(int file) { CALL(path_of(file), syscall(SYS_fsync, file), 's', paths[file], 0, NULL, 0); }
int fdatasync(int file) { CALL(path_of(file), syscall(SYS_fdatasync, file), 's', paths[file], 0, NULL, 0); }
int ftruncate(int file, off_t size) { CALL(path_of(file), syscall(SYS_ftruncate, file, size), 't', paths[file], (uint64_t)size, NULL, 0); }
int ftruncate64(int file, off64_t size) { CALL(path_of(file), syscall(SYS_ftruncate, file, size), 't', paths[file], (uint64_t)size, NULL, 0); }
int mkdir(const char *path, mode_t mode)
{
    char room[PATH_MAX];
    const char *full = whole(AT_FDCWD, path, room);
    CALL(beneath(full), syscall(SYS_mkdirat, AT_FDCWD, path, mode), 'm', full, 0, NULL, 0);
}
int unlink(const char *path)
{
    char room[PATH_MAX];
    const char *full = whole(AT_FDCWD, path, room);
    CALL(beneath(full), syscall(SYS_unlinkat, AT_FDCWD, path, 0), 'u', full, 0, NULL, 0);
}
int unlinkat(int folder, const char *path, int flags)
{
    char room[PATH_MAX];
    const char *full = whole(folder, path, room);
    CALL(beneath(full), syscall(SYS_unlinkat, folder, path, flags), 'u', full, 0, NULL, 0);
}
int rename(const char *from, const char *to)
{
    char room[PATH_MAX], other[PATH_MAX];
    const char *full = whole(AT_FDCWD, from, room), *target = whole(AT_FDCWD, to, other);
    CALL(beneath(full), syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to), 'r', full, 0, target, strlen(target));
}
int renameat(int folder, const char *from, int into, const char *to)
{
    char room[PATH_MAX], other[PATH_MAX];
    const char *full = whole(folder, from, room), *target = whole(into, to, other);
    CALL(beneath(full), syscall(SYS_renameat, folder, from, into, to), 'r', full, 0, target, strlen(target));
}

/* Operations that cannot be recorded are reported as unsupported: cloning and preallocating blocks. */

int ioctl(int file, unsigned long request, ...)
{
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (request == 0x40049409UL && path_of(file)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return (int)syscall(SYS_ioctl, file, request, argument);
}

int posix_fallocate(int file, off_t offset, off_t length)
{
    (void)offset, (void)length;
    return path_of(file) ? EOPNOTSUPP : (int)syscall(SYS_fallocate, file, 0, offset, length);
}
