/* A file system, or a machine, that refuses some calls: loaded with LD_PRELOAD, told what by the environment.

   REFUSE_ROOT   only files below this folder
   REFUSE_WHILE  only as long as this file exists
   REFUSE_FLOCK, REFUSE_SYNC (of folders), REFUSE_CHMOD, REFUSE_OPEN   the errno with which they fail
   REFUSE_NAME   only opening files with this name fails
   REFUSE_USER   no user has an entry */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int refused(const char *variable)
{
    const char *error = getenv(variable), *while_there = getenv("REFUSE_WHILE");
    if (!error || (while_there && access(while_there, F_OK)))
        return 0;
    errno = atoi(error);
    return 1;
}

static int below(const char *path)
{
    const char *root = getenv("REFUSE_ROOT");
    return root && path && !strncmp(path, root, strlen(root));
}

static int open_below(int descriptor)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return below(path);
}

static int is_named(const char *path)
{
    const char *name = getenv("REFUSE_NAME"), *slash = strrchr(path, '/');
    return !name || !strcmp(slash ? slash + 1 : path, name);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int flock(int descriptor, int operation)
{
    REAL(flock);
    return open_below(descriptor) && refused("REFUSE_FLOCK") ? -1 : real(descriptor, operation);
}

int fsync(int descriptor)
{
    REAL(fsync);
    struct stat found;
    if (!fstat(descriptor, &found) && S_ISDIR(found.st_mode) && open_below(descriptor) && refused("REFUSE_SYNC"))
        return -1;
    return real(descriptor);
}

int chmod(const char *path, mode_t mode)
{
    REAL(chmod);
    return below(path) && refused("REFUSE_CHMOD") ? -1 : real(path, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags)
{
    REAL(fchmodat);
    return below(path) && refused("REFUSE_CHMOD") ? -1 : real(folder, path, mode, flags);
}

int fchmod(int descriptor, mode_t mode)
{
    REAL(fchmod);
    return open_below(descriptor) && refused("REFUSE_CHMOD") ? -1 : real(descriptor, mode);
}

#define OPEN(name)                                                                              \
    int name(const char *path, int flags, ...)                                                  \
    {                                                                                           \
        REAL(name);                                                                             \
        va_list more;                                                                           \
        va_start(more, flags);                                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                 \
        va_end(more);                                                                           \
        return below(path) && is_named(path) && refused("REFUSE_OPEN") ? -1 : real(path, flags, mode); \
    }

OPEN(open)
OPEN(open64)

int getpwuid_r(uid_t user, struct passwd *entry, char *buffer, size_t size, struct passwd **found)
{
    REAL(getpwuid_r);
    if (!refused("REFUSE_USER"))
        return real(user, entry, buffer, size, found);
    *found = NULL;
    return 0;
}

struct passwd *getpwuid(uid_t user)
{
    REAL(getpwuid);
    return refused("REFUSE_USER") ? NULL : real(user);
}
