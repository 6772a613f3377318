/* CUDA's driver library without a GPU, as far as parotid_seg and PyCUDA use it: device memory is the host's, copies are done
at once, and a graph repeats the copies that were captured. See cudart.c, where events are recorded. build.py adds a
function that does nothing for each other name that PyCUDA needs. */

#include "stub.h"

enum { OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
#define MOST_CONTEXTS 64
#define MOST_COPIES 1024

struct copy {
    void *to;
    const void *from;
    size_t bytes;
};
struct graph {
    struct copy copies[MOST_COPIES];
    int count;
};
static void *current[MOST_CONTEXTS];
static int depth;
static char primary;
static struct graph *captured;

/* First line of a function that needs a context. */
#define IN_CONTEXT                         \
    ENTER;                                 \
    do {                                   \
        if (!depth) return INVALID_CONTEXT; \
    } while (0)

/* ---- devices and contexts ---- */

EXPORT int cuInit(unsigned flags) {
    ENTER;
    return 0;
}
EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
EXPORT int cuDeviceGetCount(int *count) { return *count = 1, 0; }
EXPORT int cuDeviceGet(int *device, int index) {
    ENTER;
    *device = index;
    return index ? INVALID_DEVICE : 0;
}
EXPORT int cuDeviceGetName(char *name, int room, int device) { return snprintf(name, room, "NVIDIA H100 (stub)"), 0; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1, 0; /* compute capability */
}
EXPORT int cuGetErrorString(int error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == INVALID_CONTEXT ? "invalid device context" : "failure";
    return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER;
    stub_note("retain");
    return *context = &primary, 0;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    stub_note("release");
    return 0;
}
EXPORT int cuCtxPushCurrent_v2(void *context) {
    if (depth == MOST_CONTEXTS) return INVALID_CONTEXT;
    return current[depth++] = context, 0;
}
EXPORT int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    return *context = current[--depth], 0;
}
EXPORT int cuCtxGetCurrent(void **context) { return *context = depth ? current[depth - 1] : NULL, 0; }
EXPORT int cuCtxGetDevice(int *device) { return *device = 0, depth ? 0 : INVALID_CONTEXT; }
EXPORT int stub_depth(void) { return depth; }

/* ---- memory ---- */

EXPORT int cuMemAlloc_v2(void **place, size_t bytes) {
    IN_CONTEXT;
    stub_note("alloc %zu", bytes);
    return posix_memalign(place, 512, bytes) ? OUT_OF_MEMORY : 0;
}
EXPORT int cuMemFree_v2(void *place) {
    IN_CONTEXT;
    stub_note("free");
    free(place);
    return 0;
}
EXPORT int cuMemHostAlloc(void **place, size_t bytes, unsigned flags) {
    IN_CONTEXT;
    stub_note("pinned %zu", bytes);
    return posix_memalign(place, 4096, bytes) ? OUT_OF_MEMORY : 0;
}
EXPORT int cuMemFreeHost(void *place) {
    IN_CONTEXT;
    stub_note("unpinned");
    free(place);
    return 0;
}
static int copied(const char *where, void *to, const void *from, size_t bytes) {
    stub_note("copy %s %zu asynchronous%s", where, bytes, captured ? " while capturing" : "");
    if (!captured) return memmove(to, from, bytes), 0;
    captured->copies[captured->count++] = (struct copy){to, from, bytes};
    return 0;
}
EXPORT int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    IN_CONTEXT;
    return copied("up", to, from, bytes);
}
EXPORT int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    IN_CONTEXT;
    return copied("down", to, from, bytes);
}
EXPORT int cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    IN_CONTEXT;
    return copied("device", to, from, bytes);
}

/* ---- streams, events and graphs ---- */

EXPORT int cuStreamCreate(void **stream, unsigned flags) {
    IN_CONTEXT;
    stub_note("stream %u", flags);
    return *stream = stub_handle(), 0;
}
EXPORT int cuStreamSynchronize(void *stream) {
    IN_CONTEXT;
    stub_note("wait stream");
    return 0;
}
EXPORT int cuEventCreate(void **event, unsigned flags) {
    IN_CONTEXT;
    return *event = stub_handle(), 0;
}
EXPORT int cuEventElapsedTime_v2(float *ms, void *from, void *to) { return *ms = 1, 0; }
EXPORT int cuStreamBeginCapture_v2(void *stream, int mode) {
    IN_CONTEXT;
    stub_note("begin capture %d", mode);
    return captured = calloc(1, sizeof *captured), 0;
}
EXPORT int cuStreamEndCapture(void *stream, void **graph) {
    IN_CONTEXT;
    stub_note("end capture");
    *graph = captured;
    return captured = NULL, 0;
}
EXPORT int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    IN_CONTEXT;
    return *executable = memcpy(malloc(sizeof(struct graph)), graph, sizeof(struct graph)), 0;
}
EXPORT int cuGraphLaunch(void *executable, void *stream) {
    IN_CONTEXT;
    stub_note("replay");
    struct graph *graph = executable;
    for (int i = 0; i < graph->count; i++) memmove(graph->copies[i].to, graph->copies[i].from, graph->copies[i].bytes);
    return 0;
}
EXPORT int cuGraphDestroy(void *graph) {
    free(graph);
    return 0;
}
EXPORT int cuGraphExecDestroy(void *executable) {
    stub_note("graph destroyed");
    free(executable);
    return 0;
}
