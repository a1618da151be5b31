/* Makes writes below a folder fail from the n-th on; to be loaded before the C library.
   FAIL_IN: part of the paths. fail_from: sets n and the error; writes_seen: counts since then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long seen, first = -1;
static int code;

void fail_from(long n, int error) { seen = 0; first = n; code = error; }
long writes_seen(void) { return seen; }

static int fails(const char *path) {
  const char *part = getenv("FAIL_IN");
  if (!path || !part || !strstr(path, part)) return 0;
  long number = __sync_add_and_fetch(&seen, 1);
  if (first < 0 || number < first) return 0;
  errno = code;
  return 1;
}

static int fails_at(int file) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return fails(path);
}

#define REAL(result, name, ...) \
  static result (*real)(__VA_ARGS__); \
  if (!real) real = dlsym(RTLD_NEXT, name)
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, #name, const char *, int, ...); \
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    return (flags & O_CREAT) && fails(path) ? -1 : real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  return fails(path) ? -1 : real(path, mode);
}
int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  return fails(to) ? -1 : real(from, to);
}
int fsync(int file) {
  REAL(int, "fsync", int);
  return fails_at(file) ? -1 : real(file);
}
ssize_t write(int file, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  return fails_at(file) ? -1 : real(file, data, size);
}
ssize_t pwrite64(int file, const void *data, size_t size, off_t at) {
  REAL(ssize_t, "pwrite64", int, const void *, size_t, off_t);
  return fails_at(file) ? -1 : real(file, data, size, at);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  return fails_at(file) ? -1 : real(file, parts, count);
}
