/* Notes what CUPTI tells of modules that are loaded and of the driver's own compiler, until Python asks for it.
 *
 * In C because CUPTI calls back inside the driver: a Python callback would take the GIL there, and deadlock with a
 * thread that holds the GIL and waits for a lock of the driver's. Nothing here waits: records are pushed onto a list by
 * compare-and-swap, and taken off all at once.
 *
 * No header of CUPTI is needed. What is declared below is the part of its binary interface that has been the same from
 * CUDA 11.7 to 13.5.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { DRIVER_API = 1, RESOURCE = 3 };            /* domains */
enum { MODULE_LOADED = 6 };                       /* of the domain RESOURCE */
enum { ENTER = 0, EXIT = 1 };                     /* sites of a driver call */
enum { OVERHEAD = 17, JIT = 52 };                 /* kinds of activities */
enum { DRIVER_COMPILER = 1, OF_A_THREAD = 2 };    /* of an overhead */
enum { COMPILED = 3 };                            /* operation of the compiler */
enum { ALREADY_SUBSCRIBED = 39 };
enum { FLUSH_ALL = 1, THREAD_ID_OF_THE_SYSTEM = 1 };

/* cuModuleLoad, LoadData, LoadDataEx, LoadFatBinary, cuLibraryLoadData, LoadFromFile */
enum { MODULE_LOAD = 18, LIBRARY_LOAD_FROM_FILE = 679 };
static const uint32_t LOADS[] = {MODULE_LOAD, 19, 20, 21, 678, LIBRARY_LOAD_FROM_FILE};

struct driver_call { int site; const char *function; const void *const *parameters; const int *result; };
struct resource { void *context; void *handle; const void *descriptor; };
struct module { uint32_t id; size_t size; const unsigned char *image; };
struct jit { uint32_t kind, entry, operation, device; uint64_t start, end; };
struct overhead { uint32_t kind, overhead, object, ids[3]; uint64_t start, end; };
enum { JIT_THREAD = 68, JIT_SIZE_WITH_THREAD = 72 }; /* CUDA 12 and later */

/* What Python reads; pytest_jitguard/witness/_library.py has the same structure. */
enum { CALL = 1, MODULE = 2, COMPILER = 3, OTHER = 4, BEGAN = 5 };
struct record {
    struct record *next;
    uint64_t started, ended; /* ns, CLOCK_MONOTONIC */
    uint64_t size;           /* of the image, 0 if unknown */
    uint64_t call;           /* number of the driver call; of a module, the call in which it was loaded or 0 */
    uint64_t copied;         /* bytes at `copy`: the image or its beginning, or the path of its file */
    unsigned char *copy;
    uint32_t what;
    uint32_t id; /* the call's id, the module's, the compiler's entry << 8 | operation, the kind of overhead */
    uint32_t pid, thread;
    int32_t result; /* of the driver call */
};

enum { LARGEST_COPY = 1024 * 1024, MOST_COPIED = 256 * 1024 * 1024, MOST_RECORDS = 1 << 16, HEAD = 64 };

static _Atomic(struct record *) newest;
static atomic_uint_fast64_t pending, held, lost, calls;
static atomic_int_fast64_t clock_offset; /* from CUPTI's clock to CLOCK_MONOTONIC, ns */
static __thread uint64_t open_call, open_since;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* -- records ------------------------------------------------------------------------------------------------------ */

static struct record *new_record(uint32_t what, uint32_t id) {
    if (atomic_fetch_add(&pending, 1) >= MOST_RECORDS) {
        atomic_fetch_sub(&pending, 1);
        atomic_fetch_add(&lost, 1);
        return NULL;
    }
    struct record *record = calloc(1, sizeof *record);
    if (record == NULL) {
        atomic_fetch_sub(&pending, 1);
        atomic_fetch_add(&lost, 1);
        return NULL;
    }
    record->what = what;
    record->id = id;
    record->pid = (uint32_t)getpid();
    record->thread = (uint32_t)syscall(SYS_gettid);
    return record;
}

static void push(struct record *record) {
    struct record *before = atomic_load(&newest);
    do {
        record->next = before;
    } while (!atomic_compare_exchange_weak(&newest, &before, record));
}

static void keep(struct record *record, const void *bytes, size_t length) {
    if (bytes == NULL || length == 0 || atomic_load(&held) + length > MOST_COPIED)
        return;
    record->copy = malloc(length);
    if (record->copy == NULL)
        return;
    memcpy(record->copy, bytes, length);
    record->copied = length;
    atomic_fetch_add(&held, length);
}

static int is_elf(const unsigned char *image) { return memcmp(image, "\177ELF", 4) == 0; }

static int is_fatbin(const unsigned char *image) {
    return memcmp(image, "\xB1\x43\x62\x46", 4) == 0 || memcmp(image, "\x50\xED\x55\xBA", 4) == 0;
}

/* The driver is told no size: an ELF file ends with its tables, a text with a zero. */
static uint64_t size_of_elf(const unsigned char *image) {
    uint64_t programs, sections;
    uint16_t sizes_and_counts[4];
    memcpy(&programs, image + 32, 8);
    memcpy(&sections, image + 40, 8);
    memcpy(sizes_and_counts, image + 54, 8);
    programs += (uint64_t)sizes_and_counts[0] * sizes_and_counts[1];
    sections += (uint64_t)sizes_and_counts[2] * sizes_and_counts[3];
    return programs > sections ? programs : sections;
}

/* The image of a call that succeeded: the driver has read it, so it can be read. */
static void describe_image(struct record *record, const unsigned char *image) {
    if (image == NULL)
        return;
    if (is_elf(image)) {
        record->size = size_of_elf(image);
        keep(record, image, record->size <= LARGEST_COPY ? record->size : HEAD);
    } else if (is_fatbin(image)) {
        if (image[0] == 0x50)
            memcpy(&record->size, image + 8, 8);
        keep(record, image, 16);
    } else {
        record->size = strlen((const char *)image);
        keep(record, image, record->size < LARGEST_COPY ? record->size : LARGEST_COPY);
    }
}

/* -- callbacks: on whatever thread, inside the driver --------------------------------------------------------------- */

static void on_module(const struct resource *resource) {
    const struct module *module = resource->descriptor;
    struct record *record = module == NULL ? NULL : new_record(MODULE, module->id);
    if (record == NULL)
        return;
    record->started = record->ended = now();
    record->call = open_call;
    record->size = module->size;
    keep(record, module->image, module->size <= LARGEST_COPY ? module->size : HEAD);
    push(record);
}

static void on_load(uint32_t id, const struct driver_call *call) {
    if (call->site == ENTER) {
        struct record *began = new_record(BEGAN, id);
        open_call = atomic_fetch_add(&calls, 1) + 1;
        open_since = now();
        if (began != NULL) {
            began->started = began->ended = open_since;
            began->call = open_call;
            push(began); /* so that who drains knows of the call before its end */
        }
        return;
    }
    struct record *record = open_call == 0 ? NULL : new_record(CALL, id);
    if (record != NULL) {
        const char *given = call->parameters == NULL ? NULL : call->parameters[1];
        record->started = open_since;
        record->ended = now();
        record->call = open_call;
        record->result = call->result == NULL ? -1 : *call->result;
        if (given != NULL && (id == MODULE_LOAD || id == LIBRARY_LOAD_FROM_FILE))
            keep(record, given, strnlen(given, 4096));
        else if (record->result == 0)
            describe_image(record, (const unsigned char *)given);
        else if (given != NULL)
            keep(record, given, strnlen(given, 4));
        push(record);
    }
    open_call = 0;
}

void jitguard_on_callback(void *user, uint32_t domain, uint32_t id, const void *data) {
    (void)user;
    if (data == NULL)
        return;
    if (domain == RESOURCE && id == MODULE_LOADED)
        on_module(data);
    else if (domain == DRIVER_API)
        on_load(id, data);
}

/* -- CUPTI ---------------------------------------------------------------------------------------------------------- */

static struct {
    int (*subscribe)(void **, void (*)(void *, uint32_t, uint32_t, const void *), void *);
    int (*unsubscribe)(void *);
    int (*enable_callback)(uint32_t, void *, uint32_t, uint32_t);
    int (*callback_state)(uint32_t *, void *, uint32_t, uint32_t);
    int (*result_string)(int, const char **);
    int (*timestamp)(uint64_t *);
    int (*register_buffers)(void (*)(uint8_t **, size_t *, size_t *),
                            void (*)(void *, uint32_t, uint8_t *, size_t, size_t));
    int (*next_record)(uint8_t *, size_t, void **);
    int (*enable_activity)(uint32_t);
    int (*disable_activity)(uint32_t);
    int (*flush)(uint32_t);
    int (*thread_id_type)(uint32_t); /* may be missing */
} cupti;

static void *subscriber;
static uint32_t activities;
static char problem[512];

static uint64_t at(uint64_t stamp) { return (uint64_t)((int64_t)stamp + atomic_load(&clock_offset)); }

static void note_compiler(const uint8_t *bytes, size_t left) {
    struct jit told;
    struct record *record;
    if (left < sizeof told)
        return;
    memcpy(&told, bytes, sizeof told);
    if ((record = new_record(COMPILER, told.entry << 8 | told.operation)) == NULL)
        return;
    record->started = at(told.start);
    record->ended = at(told.end);
    record->thread = 0;
    if (left >= JIT_SIZE_WITH_THREAD)
        memcpy(&record->thread, bytes + JIT_THREAD, 4);
    push(record);
}

static void note_overhead(const uint8_t *bytes, size_t left) {
    struct overhead told;
    struct record *record;
    if (left < sizeof told)
        return;
    memcpy(&told, bytes, sizeof told);
    /* Without records of the compiler itself, its overhead is one compile of an unknown stage. */
    int compiled = told.overhead == DRIVER_COMPILER && !(activities & 1);
    if ((record = new_record(compiled ? COMPILER : OTHER, compiled ? COMPILED : told.overhead)) == NULL)
        return;
    record->started = at(told.start);
    record->ended = at(told.end);
    record->thread = told.object == OF_A_THREAD ? told.ids[1] : 0;
    push(record);
}

/* A forced flush hands over buffers in which another thread's compile is still under way, and CUPTI writes its end into
 * it later (seen with 13.0: a corrupted heap). So a buffer is freed only when this many have come after it. */
#define QUARANTINE 128
static _Atomic(uint8_t *) quarantine[QUARANTINE];
static _Atomic(uint64_t) handed_over;

static void free_later(uint8_t *buffer) {
    uint64_t place = atomic_fetch_add(&handed_over, 1) % QUARANTINE;
    free(atomic_exchange(&quarantine[place], buffer));
}

void jitguard_on_buffer_full(void *context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    (void)context, (void)stream, (void)size;
    void *record = NULL;
    while (buffer != NULL && valid > 0 && cupti.next_record(buffer, valid, &record) == 0) {
        size_t left = (size_t)(buffer + valid - (uint8_t *)record);
        uint32_t kind = 0;
        if (left >= sizeof kind)
            memcpy(&kind, record, sizeof kind);
        if (kind == JIT)
            note_compiler(record, left);
        else if (kind == OVERHEAD)
            note_overhead(record, left);
    }
    free_later(buffer);
}

void jitguard_on_buffer_wanted(uint8_t **buffer, size_t *size, size_t *records) {
    *size = 16 * 1024;
    *records = 0;
    *buffer = aligned_alloc(8, *size);
    if (*buffer == NULL)
        *size = 0;
}

/* The narrowest of a few readings: calls can be a tenth of a millisecond apart. */
static void set_clocks(void) {
    uint64_t narrowest = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t before = now(), stamp = 0;
        if (cupti.timestamp(&stamp) != 0)
            return;
        uint64_t width = now() - before;
        if (width < narrowest) {
            narrowest = width;
            atomic_store(&clock_offset, (int64_t)(before + width / 2) - (int64_t)stamp);
        }
    }
}

static int failed(const char *step, int result) {
    const char *words = NULL;
    if (cupti.result_string(result, &words) != 0 || words == NULL)
        words = "an unknown error";
    snprintf(problem, sizeof problem, "%s: %s", step, words);
    return result;
}

static int find(void *library, const char *name, void *place) {
    void *found = dlsym(library, name);
    memcpy(place, &found, sizeof found);
    if (found == NULL)
        snprintf(problem, sizeof problem, "it has no %s", name);
    return found != NULL;
}

static int open_library(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(problem, sizeof problem, "%s", dlerror());
        return 0;
    }
    cupti.thread_id_type = NULL;
    (void)find(library, "cuptiSetThreadIdType", &cupti.thread_id_type);
    return find(library, "cuptiSubscribe", &cupti.subscribe) &&
           find(library, "cuptiUnsubscribe", &cupti.unsubscribe) &&
           find(library, "cuptiEnableCallback", &cupti.enable_callback) &&
           find(library, "cuptiGetCallbackState", &cupti.callback_state) &&
           find(library, "cuptiGetResultString", &cupti.result_string) &&
           find(library, "cuptiGetTimestamp", &cupti.timestamp) &&
           find(library, "cuptiActivityRegisterCallbacks", &cupti.register_buffers) &&
           find(library, "cuptiActivityGetNextRecord", &cupti.next_record) &&
           find(library, "cuptiActivityEnable", &cupti.enable_activity) &&
           find(library, "cuptiActivityDisable", &cupti.disable_activity) &&
           find(library, "cuptiActivityFlushAll", &cupti.flush);
}

static int enable_callbacks(void) {
    int result = cupti.enable_callback(1, subscriber, RESOURCE, MODULE_LOADED);
    for (size_t i = 0; result == 0 && i < sizeof LOADS / sizeof *LOADS; i++)
        result = cupti.enable_callback(1, subscriber, DRIVER_API, LOADS[i]);
    return result;
}

static void enable_activities(uint32_t wanted) {
    activities = 0;
    if (wanted == 0 || cupti.register_buffers(jitguard_on_buffer_wanted, jitguard_on_buffer_full) != 0)
        return;
    if (cupti.thread_id_type != NULL)
        (void)cupti.thread_id_type(THREAD_ID_OF_THE_SYSTEM);
    if (wanted & 1 && cupti.enable_activity(JIT) == 0)
        activities |= 1;
    if (wanted & 2 && cupti.enable_activity(OVERHEAD) == 0)
        activities |= 2;
}

/* -- for Python ----------------------------------------------------------------------------------------------------- */

/* Why `jitguard_start` failed, in words. */
const char *jitguard_problem(void) { return problem; }

size_t jitguard_size_of_record(void) { return sizeof(struct record); }

/* The activities that are on: 1 for the driver's compiler, 2 for overheads. */
uint32_t jitguard_activities(void) { return activities; }

/* Records that did not fit since the last call of this. */
uint64_t jitguard_lost(void) { return atomic_exchange(&lost, 0); }

/* Subscribe through the libcupti at `path`. 0, a result of CUPTI's, or -1 if it is no libcupti that can be used. */
int jitguard_start(const char *path, uint32_t wanted) {
    int result;
    problem[0] = 0;
    if (subscriber != NULL) {
        snprintf(problem, sizeof problem, "this process has a witness already");
        return ALREADY_SUBSCRIBED;
    }
    if (!open_library(path))
        return -1;
    if ((result = cupti.subscribe(&subscriber, jitguard_on_callback, NULL)) != 0) {
        subscriber = NULL;
        return failed("cuptiSubscribe", result);
    }
    if ((result = enable_callbacks()) != 0) {
        cupti.unsubscribe(subscriber);
        subscriber = NULL;
        return failed("cuptiEnableCallback", result);
    }
    enable_activities(wanted);
    set_clocks();
    return 0;
}

/* Whether CUPTI still calls us: 1, or 0 if somebody finalised it or took the subscription away. */
int jitguard_is_alive(void) {
    uint32_t module = 0, load = 0;
    return subscriber != NULL && cupti.callback_state(&module, subscriber, RESOURCE, MODULE_LOADED) == 0 && module &&
           cupti.callback_state(&load, subscriber, DRIVER_API, LOADS[1]) == 0 && load;
}

/* Have CUPTI hand over its records of the driver's compiler. */
void jitguard_flush(void) {
    if (subscriber != NULL && activities) {
        set_clocks();
        cupti.flush(FLUSH_ALL);
    }
}

/* All records since the last call, oldest first, for `jitguard_release`. */
struct record *jitguard_take(void) {
    struct record *record = atomic_exchange(&newest, NULL), *oldest = NULL;
    while (record != NULL) {
        struct record *next = record->next;
        record->next = oldest;
        oldest = record;
        record = next;
    }
    return oldest;
}

void jitguard_release(struct record *record) {
    while (record != NULL) {
        struct record *next = record->next;
        atomic_fetch_sub(&pending, 1);
        atomic_fetch_sub(&held, record->copied);
        free(record->copy);
        free(record);
        record = next;
    }
}

int jitguard_stop(void) {
    int result = 0;
    if (subscriber == NULL)
        return 0;
    if (activities & 1)
        cupti.disable_activity(JIT);
    if (activities & 2)
        cupti.disable_activity(OVERHEAD);
    if (activities)
        cupti.flush(FLUSH_ALL);
    activities = 0;
    result = cupti.unsubscribe(subscriber);
    subscriber = NULL;
    return result;
}

/* In a forked child: what the parent saw is the parent's to tell, and CUPTI's own thread is not there to flush. */
void jitguard_forked(void) {
    activities = 0;
    open_call = 0;
    jitguard_release(jitguard_take());
    atomic_store(&lost, 0);
}
