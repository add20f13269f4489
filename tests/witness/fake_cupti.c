/* A libcupti and a libcuda for machines without a GPU: they subscribe, call back and fill buffers by CUPTI's protocol,
 * when a test says so. One subscriber at a time; callbacks only where they were enabled; buffers on a flush. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef void (*callback)(void *, uint32_t, uint32_t, const void *);
static callback subscriber;
static void *subscribers_data;
static char enabled[4][1024];
static char activities[64];
static void (*wanted)(uint8_t **, size_t *, size_t *);
static void (*full)(void *, uint32_t, uint8_t *, size_t, size_t);
static uint8_t *buffer;
static size_t room, used;
static int initialised;

struct call { int site; const char *function; const void *const *parameters; const int *result; };
struct resource { void *context, *handle; const void *descriptor; };
struct module { uint32_t id; size_t size; const void *image; };
struct jit {
    uint32_t kind, entry, operation, device; uint64_t start, end; uint32_t correlation, padding;
    uint64_t jit_correlation, cache_size; const char *path; uint32_t process, thread;
};

/* The real one has a thread of its own for its records, which a forked child does not: whoever asks for records there
 * waits for ever. */
static pid_t home;
static void needs_thread(void) {
    if (home == getpid()) return;
    fputs("CUPTI was asked for records in a forked child\n", stderr);
    abort();
}

int cuInit(unsigned flags) { (void)flags; initialised = 1; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return initialised ? 0 : 3; }

int cuptiSubscribe(void **handle, callback function, void *data) {
    if (!home) home = getpid();
    if (getenv("FAKE_CUPTI_FAILS")) return atoi(getenv("FAKE_CUPTI_FAILS"));
    if (subscriber) return 39;
    subscriber = function; subscribers_data = data; *handle = (void *)&subscriber;
    return 0;
}
int cuptiUnsubscribe(void *handle) {
    if (handle != (void *)&subscriber || !subscriber) return 1;
    subscriber = NULL; memset(enabled, 0, sizeof enabled);
    return 0;
}
int cuptiEnableCallback(uint32_t on, void *handle, uint32_t domain, uint32_t id) {
    if (handle != (void *)&subscriber || domain > 3 || id > 1023) return 1;
    enabled[domain][id] = (char)on;
    return 0;
}
int cuptiGetCallbackState(uint32_t *on, void *handle, uint32_t domain, uint32_t id) {
    if (handle != (void *)&subscriber || !subscriber) return 1;
    *on = (uint32_t)enabled[domain][id];
    return 0;
}
int cuptiGetResultString(int result, const char **words) {
    *words = result == 39 ? "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED" : "CUPTI_ERROR_OF_SOME_KIND";
    return 0;
}
/* Another clock than CLOCK_MONOTONIC, as CUPTI's is. */
int cuptiGetTimestamp(uint64_t *stamp) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    *stamp = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    return 0;
}
int cuptiActivityRegisterCallbacks(void (*w)(uint8_t **, size_t *, size_t *),
                                   void (*f)(void *, uint32_t, uint8_t *, size_t, size_t)) {
    wanted = w; full = f;
    return 0;
}
int cuptiActivityEnable(uint32_t kind) {
    needs_thread();
    if (kind == 52 && getenv("FAKE_CUPTI_WITHOUT_JIT")) return 21;
    activities[kind] = 1;
    return 0;
}
int cuptiActivityDisable(uint32_t kind) { activities[kind] = 0; return 0; }
int cuptiActivityGetNextRecord(uint8_t *bytes, size_t valid, void **record) {
    uint8_t *next = *record ? (uint8_t *)*record + sizeof(struct jit) : bytes;
    if (next >= bytes + valid) return 12;
    *record = next;
    return 0;
}
int cuptiActivityFlushAll(uint32_t flag) {
    (void)flag;
    needs_thread();
    if (buffer) full(NULL, 0, buffer, room, used);
    buffer = NULL; used = 0;
    return 0;
}

/* -- what tests call ------------------------------------------------------------------------------------------------ */

void fake_module(uint32_t id, const void *image, size_t size) {
    struct module module = {id, size, image};
    struct resource resource = {NULL, NULL, &module};
    if (subscriber && enabled[3][6]) subscriber(subscribers_data, 3, 6, &resource);
}
static void enter_or_leave(int site, uint32_t id, const void *image, int result) {
    void *module = NULL;
    const void *parameters[2] = {&module, image};
    struct call call = {site, "load", parameters, &result};
    if (subscriber && enabled[1][id]) subscriber(subscribers_data, 1, id, &call);
}
/* The two ends of a load call, for tests that look in between. */
void fake_enter(uint32_t id, const void *image) { enter_or_leave(0, id, image, 0); }
void fake_leave(uint32_t id, const void *image) { enter_or_leave(1, id, image, 0); }
int fake_is_subscribed(void) { return subscriber != NULL; }
/* A load call that takes `ns`, and in which a cubin becomes a module if there is one. */
void fake_load(uint32_t id, const void *image, int result, uint64_t ns, const void *cubin, size_t size) {
    void *module = NULL;
    const void *parameters[2] = {&module, image};
    struct timespec pause = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    struct call call = {0, "load", parameters, NULL};
    if (subscriber && enabled[1][id]) subscriber(subscribers_data, 1, id, &call);
    nanosleep(&pause, NULL);
    if (cubin) fake_module(7, cubin, size);
    call.site = 1; call.result = &result;
    if (subscriber && enabled[1][id]) subscriber(subscribers_data, 1, id, &call);
}
static void fake_record(struct jit record) {
    size_t most = 0;
    if (!activities[record.kind]) return;
    if (!buffer) wanted(&buffer, &room, &most);
    memcpy(buffer + used, &record, sizeof record);
    used += sizeof record;
}
void fake_jit(uint32_t entry, uint32_t operation, uint64_t started, uint64_t ended, uint32_t thread) {
    fake_record((struct jit){52, entry, operation, 0, started, ended, 0, 0, 0, 0, NULL, 0, thread});
}
void fake_overhead(uint32_t overhead, uint64_t started, uint64_t ended, uint32_t thread) {
    struct overhead { uint32_t kind, overhead, object, process, thread, stream; uint64_t start, end; };
    struct overhead told = {17, overhead, 2, 0, thread, 0, started, ended};
    struct jit record = {0};
    memcpy(&record, &told, sizeof told);
    fake_record(record);
}
void fake_finalize(void) { subscriber = NULL; memset(enabled, 0, sizeof enabled); }
