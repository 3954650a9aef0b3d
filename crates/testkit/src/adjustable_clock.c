/* Preloaded into a process of a test: its wall clock is ahead by the milliseconds in the file GALLEY_TEST_CLOCK names.
   The monotonic clocks stay as they are, as they do when somebody sets the clock of a machine. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *ahead_ms;

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("GALLEY_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) ahead_ms = mapped;
}

static void add(int64_t *seconds, int64_t *nanos) {
    if (!ahead_ms) return;
    int64_t all = *ahead_ms % 1000 * 1000000 + *nanos;
    *seconds += *ahead_ms / 1000 + (all < 0 ? -1 : all / 1000000000);
    *nanos = all < 0 ? all + 1000000000 : all % 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t seconds = time->tv_sec, nanos = time->tv_nsec;
        add(&seconds, &nanos);
        time->tv_sec = seconds, time->tv_nsec = nanos;
    }
    return (int)result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec, time->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
