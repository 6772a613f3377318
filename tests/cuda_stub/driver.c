/* CUDA's driver library as far as parotid_seg/runtime/engines/gpu.py asks it; see cudart.c. */

#include "stub.h"

EXPORT int cuInit(unsigned flags) {
    ENTER;
    return 0;
}
EXPORT int cuDeviceGet(int *device, int index) {
    ENTER;
    *device = index;
    return index ? 101 : 0; /* CUDA_ERROR_INVALID_DEVICE */
}
EXPORT int cuDeviceGetName(char *name, int room, int device) { return snprintf(name, room, "NVIDIA H100 (stub)"), 0; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1, 0;
}
EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
