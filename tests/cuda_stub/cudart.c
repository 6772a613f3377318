/* CUDA's runtime without a GPU: device memory is the host's, copies are real, kernels do nothing. Every event is
recorded, and any function can be made to fail. build.py adds a function that does nothing for each other name that
onnxruntime needs. */

#include "stub.h"
#include <driver_types.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *record;
static size_t used, room;
static int capturing, last_error;
static size_t allocated;
static const size_t limit = (size_t)80 << 30;

/* ---- for the tests, by ctypes ---- */

static struct {
    char function[80];
    int code;
} failures[16];
static int failing;

void stub_note(const char *format, ...) {
    char line[600];
    va_list arguments;
    va_start(arguments, format);
    size_t length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    pthread_mutex_lock(&lock);
    if (used + length + 1 > room) record = realloc(record, room = 2 * (room + length) + 4096);
    memcpy(record + used, line, length);
    record[used += length] = 0;
    pthread_mutex_unlock(&lock);
}

/* The events since `stub_forget`, a line each; valid until the next event. */
EXPORT const char *stub_events(void) { return record ? record : ""; }

EXPORT void stub_forget(void) {
    pthread_mutex_lock(&lock);
    used = 0;
    if (record) record[0] = 0;
    pthread_mutex_unlock(&lock);
}

/* Let a function, or all with "*", return an error from now on. */
EXPORT void stub_fail(const char *function, int code) {
    strncpy(failures[failing].function, function, sizeof failures[failing].function - 1);
    failures[failing++].code = code;
}

int stub_entered(const char *function) {
    for (int i = 0; i < failing; i++)
        if (!strcmp(failures[i].function, function) || failures[i].function[0] == '*')
            return last_error = failures[i].code;
    return 0;
}

void *stub_handle(void) { return calloc(1, 4096); }

/* ---- devices and errors ---- */

EXPORT int cudaGetDeviceCount(int *count) {
    ENTER;
    return *count = 1, 0;
}
EXPORT int cudaGetDevice(int *device) {
    ENTER;
    return *device = 0, 0;
}
EXPORT int cudaDriverGetVersion(int *version) { return *version = 13000, 0; }
EXPORT int cudaRuntimeGetVersion(int *version) { return *version = 13000, 0; }
EXPORT int cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    ENTER;
    memset(found, 0, sizeof *found);
    strcpy(found->name, "NVIDIA H100 (stub)");
    found->major = 9;
    found->totalGlobalMem = limit;
    found->sharedMemPerBlock = 49152;
    found->sharedMemPerBlockOptin = 232448;
    found->sharedMemPerMultiprocessor = 233472;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->totalConstMem = 65536;
    found->warpSize = 32;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxGridSize[0] = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->maxThreadsPerMultiProcessor = 2048;
    found->multiProcessorCount = 132;
    found->l2CacheSize = 50 << 20;
    found->concurrentKernels = found->memoryPoolsSupported = 1;
    return 0;
}
EXPORT int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER;
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        default: *value = 1;
    }
    return 0;
}
EXPORT int cudaGetLastError(void) {
    int error = last_error;
    return last_error = 0, error;
}
EXPORT int cudaPeekAtLastError(void) { return last_error; }
EXPORT const char *cudaGetErrorName(int error) {
    switch (error) {
        case 0: return "cudaSuccess";
        case 2: return "cudaErrorMemoryAllocation";
        case 35: return "cudaErrorInsufficientDriver";
        case 100: return "cudaErrorNoDevice";
        case 209: return "cudaErrorNoKernelImageForDevice";
        case 719: return "cudaErrorLaunchFailure";
        default: return "cudaErrorUnknown";
    }
}
EXPORT const char *cudaGetErrorString(int error) {
    switch (error) {
        case 0: return "no error";
        case 2: return "out of memory";
        case 35: return "CUDA driver version is insufficient for CUDA runtime version";
        case 100: return "no CUDA-capable device is detected";
        case 209: return "no kernel image is available for execution on the device";
        case 719: return "unspecified launch failure";
        default: return "unknown error";
    }
}

/* ---- memory ---- */

static int allocate(const char *event, void **place, size_t bytes) {
    stub_note("%s %zu%s", event, bytes, capturing ? " while capturing" : "");
    if (bytes + allocated > limit) return last_error = cudaErrorMemoryAllocation;
    if (posix_memalign(place, 512, bytes ? bytes : 1)) return last_error = cudaErrorMemoryAllocation;
    allocated += malloc_usable_size(*place);
    return 0;
}
static int give_back(const char *event, void *place) {
    stub_note("%s%s", event, capturing ? " while capturing" : "");
    allocated -= malloc_usable_size(place);
    free(place);
    return 0;
}
/* A graph copies from the host what lies there when it is replayed, not what lay there when it was captured. Where that
differs the replay is recorded as stale, except for copies of `LARGEST_CHECKED` bytes or more. */
#define LARGEST_CHECKED 65536
struct source {
    const void *from;
    void *content;
    size_t bytes;
    struct source *next;
};
struct graph {
    struct source *sources;
};
static struct source *captured;

static void check_sources(const struct graph *graph) {
    for (struct source *each = graph->sources; each; each = each->next)
        if (memcmp(each->from, each->content, each->bytes)) stub_note("stale %zu", each->bytes);
}

static int copied(const char *how, void *to, const void *from, size_t bytes, int kind) {
    static const char *kinds[] = {"host", "up", "down", "device", "default"};
    stub_note("copy %s %zu %s%s", kinds[kind], bytes, how, capturing ? " while capturing" : "");
    memmove(to, from, bytes);
    if (capturing && kind == cudaMemcpyHostToDevice && bytes < LARGEST_CHECKED) {
        struct source *source = malloc(sizeof *source);
        *source = (struct source){from, malloc(bytes), bytes, captured};
        memcpy(source->content, from, bytes);
        captured = source;
    }
    return 0;
}
EXPORT int cudaMalloc(void **place, size_t bytes) {
    ENTER;
    return allocate("alloc", place, bytes);
}
EXPORT int cudaMallocFromPoolAsync(void **place, size_t bytes, void *pool, void *stream) {
    ENTER;
    return allocate("alloc", place, bytes);
}
EXPORT int cudaFree(void *place) { return give_back("free", place); }
EXPORT int cudaFreeAsync(void *place, void *stream) { return give_back("free", place); }
EXPORT int cudaMallocHost(void **place, size_t bytes) {
    ENTER;
    stub_note("pinned %zu", bytes);
    return posix_memalign(place, 4096, bytes ? bytes : 1) ? cudaErrorMemoryAllocation : 0;
}
EXPORT int cudaHostAlloc(void **place, size_t bytes, unsigned flags) { return cudaMallocHost(place, bytes); }
EXPORT int cudaFreeHost(void *place) {
    free(place);
    return 0;
}
EXPORT int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    ENTER;
    *free_bytes = limit - allocated;
    return *total = limit, 0;
}
EXPORT int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    ENTER;
    return copied("synchronous", to, from, bytes, kind);
}
EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    ENTER;
    return copied("asynchronous", to, from, bytes, kind);
}
EXPORT int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                             size_t height, int kind, void *stream) {
    ENTER;
    for (size_t i = 0; i < height; i++) memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    return 0;
}
EXPORT int cudaMemset(void *place, int value, size_t bytes) {
    ENTER;
    memset(place, value, bytes);
    return 0;
}
EXPORT int cudaMemsetAsync(void *place, int value, size_t bytes, void *stream) { return cudaMemset(place, value, bytes); }
EXPORT int cudaMemPoolCreate(void **pool, const void *properties) { return *pool = stub_handle(), 0; }
EXPORT int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) { return *(size_t *)value = 0, 0; }
EXPORT int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *place) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeDevice;
    return 0;
}

/* ---- streams, events and graphs ---- */

EXPORT int cudaStreamCreate(void **stream) {
    ENTER;
    return *stream = stub_handle(), 0;
}
EXPORT int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreate(stream); }
EXPORT int cudaEventCreate(void **event) { return *event = stub_handle(), 0; }
EXPORT int cudaEventCreateWithFlags(void **event, unsigned flags) { return *event = stub_handle(), 0; }
EXPORT int cudaEventElapsedTime(float *ms, void *from, void *to) { return *ms = 1, 0; }
static int waited(const char *what) {
    stub_note("wait %s%s", what, capturing ? " while capturing" : "");
    return 0;
}
EXPORT int cudaStreamSynchronize(void *stream) {
    ENTER;
    return waited("stream");
}
EXPORT int cudaEventSynchronize(void *event) {
    ENTER;
    return waited("event");
}
EXPORT int cudaDeviceSynchronize(void) {
    ENTER;
    return waited("device");
}
EXPORT int cudaStreamIsCapturing(void *stream, int *status) { return *status = capturing, 0; }
EXPORT int cudaStreamBeginCapture(void *stream, int mode) {
    ENTER;
    stub_note("begin capture");
    return capturing = 1, 0;
}
EXPORT int cudaStreamEndCapture(void *stream, void **graph) {
    ENTER;
    stub_note("end capture");
    capturing = 0;
    *graph = stub_handle();
    ((struct graph *)*graph)->sources = captured;
    return captured = NULL, 0;
}
EXPORT int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
    ENTER;
    *executable = stub_handle();
    ((struct graph *)*executable)->sources = ((struct graph *)graph)->sources;
    return 0;
}
EXPORT int cudaGraphLaunch(void *executable, void *stream) {
    ENTER;
    stub_note("replay");
    check_sources(executable);
    return 0;
}
EXPORT int cudaGraphExecDestroy(void *executable) {
    stub_note("graph destroyed");
    return 0;
}

/* ---- kernels ---- */

#define MOST_KERNELS 200000
static struct {
    const void *function;
    const char *name;
} kernels[MOST_KERNELS];
static int known;

EXPORT void **__cudaRegisterFatBinary(void *binary) { return stub_handle(); }
EXPORT void __cudaRegisterFunction(void **binary, const char *function, char *device_function, const char *name) {
    if (known < MOST_KERNELS) kernels[known].function = function, kernels[known++].name = name;
}
static int launched(const void *function) {
    const char *name = "unknown";
    for (int i = 0; i < known; i++)
        if (kernels[i].function == function) name = kernels[i].name;
    stub_note("launch %s", name);
    return 0;
}
EXPORT int cudaLaunchKernel(const void *function) {
    ENTER;
    return launched(function);
}
EXPORT int __cudaLaunchKernel(const void *function) {
    int failure = stub_entered("cudaLaunchKernel");
    return failure ? failure : launched(function);
}
EXPORT int cudaLaunchKernelExC(const void *config, const void *function) { return __cudaLaunchKernel(function); }
EXPORT int __cudaGetKernel(void **kernel, const void *function) { return *kernel = (void *)function, 0; }
EXPORT unsigned __cudaPushCallConfiguration(void) { return 0; }
EXPORT int __cudaPopCallConfiguration(unsigned *grid, unsigned *block, size_t *shared, void **stream) {
    grid[0] = grid[1] = grid[2] = block[0] = block[1] = block[2] = 1;
    *shared = 0;
    return *stream = NULL, 0;
}
EXPORT int cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    ENTER;
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->binaryVersion = found->ptxVersion = 90;
    return 0;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { return *blocks = 2, 0; }
EXPORT int cudaGetDriverEntryPointByVersion(const char *name, void **found, unsigned version, unsigned long long flags,
                                            int *status) {
    *found = NULL;
    if (status) *status = cudaDriverEntryPointSymbolNotFound;
    return 0;
}
