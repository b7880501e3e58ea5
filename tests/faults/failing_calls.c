/* Makes the n-th file operation below a folder fail, in this process and those it starts: preloaded by fault_loop.py.

   FAULT_FOLDER: operations on files below it are counted.  FAULT_COUNTER: a file of 8 bytes, shared by all processes,
   with the number of operations so far.  FAULT_AT: the one that fails, from 1 on; 0: none.  FAULT_ERRNO: how.
   FAULT_LOG: gets a line with the operation that failed; where none is to fail, with each. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t length;
static long at;
static int number;
static volatile long *counter;

__attribute__((constructor)) static void start(void) {
  const char *name = getenv("FAULT_FOLDER"), *file = getenv("FAULT_COUNTER");
  if (!name || !file || !getenv("FAULT_AT") || !getenv("FAULT_ERRNO")) return;
  int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void *page = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (page == MAP_FAILED) return;
  snprintf(folder, sizeof folder, "%s", name);
  length = strlen(folder);
  at = atol(getenv("FAULT_AT"));
  number = atoi(getenv("FAULT_ERRNO"));
  counter = page;
}

static int below(const char *path) {
  return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int of_descriptor(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return 1;
}

static int fails(const char *operation, const char *path) {
  if (!counter || !path || !below(path)) return 0;
  long now = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
  if (at && now != at) return 0;
  const char *log = getenv("FAULT_LOG");
  int fd = log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
  if (fd >= 0) {
    char line[PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%s %s\n", operation, path + length);
    syscall(SYS_write, fd, line, size);
    syscall(SYS_close, fd);
  }
  errno = number;
  return at != 0;
}

static int fails_at(const char *operation, int directory, const char *path) {
  char whole[PATH_MAX];
  int saved = errno;
  if (!counter || !path) return 0;
  if (path[0] == '/') {
    snprintf(whole, sizeof whole, "%s", path);
  } else {
    char base[PATH_MAX];
    if (directory == AT_FDCWD) {
      if (syscall(SYS_getcwd, base, sizeof base) < 0) return errno = saved, 0;
    } else if (!of_descriptor(directory, base)) {
      return errno = saved, 0;
    }
    if (snprintf(whole, sizeof whole, "%s/%s", base, path) >= (int)sizeof whole) return errno = saved, 0;
  }
  if (fails(operation, whole)) return 1;
  return errno = saved, 0;
}

static int fails_on(const char *operation, int fd) {
  char path[PATH_MAX];
  int saved = errno;
  if (!counter) return 0;
  if (of_descriptor(fd, path) && fails(operation, path)) return 1;
  return errno = saved, 0;
}

#define NEXT(name) \
  static __typeof__(&name) next; \
  if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    NEXT(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    return fails_at("open", AT_FDCWD, path) ? -1 : next(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    NEXT(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    return fails_at("open", directory, path) ? -1 : next(directory, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    NEXT(name); \
    return fails_at("open", AT_FDCWD, path) ? NULL : next(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define ON(operation, type, name, parameters, arguments) \
  type name parameters { \
    NEXT(name); \
    return fails_on(operation, fd) ? -1 : next arguments; \
  }
ON("read", ssize_t, read, (int fd, void *data, size_t size), (fd, data, size))
ON("read", ssize_t, pread, (int fd, void *data, size_t size, off_t from), (fd, data, size, from))
ON("read", ssize_t, pread64, (int fd, void *data, size_t size, off64_t from), (fd, data, size, from))
ON("read", ssize_t, readv, (int fd, const struct iovec *data, int count), (fd, data, count))
ON("write", ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON("write", ssize_t, pwrite, (int fd, const void *data, size_t size, off_t to), (fd, data, size, to))
ON("write", ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t to), (fd, data, size, to))
ON("write", ssize_t, writev, (int fd, const struct iovec *data, int count), (fd, data, count))
ON("fsync", int, fsync, (int fd), (fd))
ON("fsync", int, fdatasync, (int fd), (fd))
ON("truncate", int, ftruncate, (int fd, off_t size), (fd, size))
ON("truncate", int, ftruncate64, (int fd, off64_t size), (fd, size))
ON("stat", int, fstat, (int fd, struct stat *found), (fd, found))
ON("stat", int, fstat64, (int fd, struct stat64 *found), (fd, found))

#define AT(operation, name, parameters, directory, path, arguments) \
  int name parameters { \
    NEXT(name); \
    return fails_at(operation, directory, path) ? -1 : next arguments; \
  }
AT("stat", stat, (const char *path, struct stat *found), AT_FDCWD, path, (path, found))
AT("stat", stat64, (const char *path, struct stat64 *found), AT_FDCWD, path, (path, found))
AT("stat", lstat, (const char *path, struct stat *found), AT_FDCWD, path, (path, found))
AT("stat", lstat64, (const char *path, struct stat64 *found), AT_FDCWD, path, (path, found))
AT("stat", fstatat, (int directory, const char *path, struct stat *found, int flags), directory, path,
   (directory, path, found, flags))
AT("stat", fstatat64, (int directory, const char *path, struct stat64 *found, int flags), directory, path,
   (directory, path, found, flags))
AT("stat", statx, (int directory, const char *path, int flags, unsigned mask, struct statx *found), directory, path,
   (directory, path, flags, mask, found))
AT("rename", rename, (const char *path, const char *to), AT_FDCWD, path, (path, to))
AT("rename", renameat, (int directory, const char *path, int other, const char *to), directory, path,
   (directory, path, other, to))
AT("mkdir", mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
AT("mkdir", mkdirat, (int directory, const char *path, mode_t mode), directory, path, (directory, path, mode))
AT("unlink", unlink, (const char *path), AT_FDCWD, path, (path))
AT("unlink", unlinkat, (int directory, const char *path, int flags), directory, path, (directory, path, flags))
AT("rmdir", rmdir, (const char *path), AT_FDCWD, path, (path))
