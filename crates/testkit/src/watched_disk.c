/* Preloaded into a Redis of a test: notes how much of its append-only file is synced to the disk, and lets the disk be full.
   GALLEY_TEST_DISK names a file of two 64-bit numbers: whether the disk is full, and the length that was synced. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile int64_t *disk;

__attribute__((constructor)) static void open_disk(void) {
    const char *path = getenv("GALLEY_TEST_DISK");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(0, 2 * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) disk = mapped;
}

/* Whether a descriptor is that of the part of the append-only file that grows. */
static int is_log(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return length > 9 && strcmp(path + length - 9, ".incr.aof") == 0;
}

static int sync_and_note(int file, const char *name) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat before;
    /* What is written while it syncs may not be synced */
    int is_noted = disk && is_log(file) && fstat(file, &before) == 0;
    int result = real(file);
    if (result == 0 && is_noted && before.st_size > disk[1]) disk[1] = before.st_size;
    return result;
}

int fsync(int file) { return sync_and_note(file, "fsync"); }
int fdatasync(int file) { return sync_and_note(file, "fdatasync"); }

ssize_t write(int file, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (disk && disk[0] && is_log(file)) {
        errno = ENOSPC;
        return -1;
    }
    return real(file, bytes, count);
}
