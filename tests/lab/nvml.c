/* A machine with two GPUs, as far as NVML tells: what libnvidia-ml.so.1 exports with the signatures of nvml.h, with numbers
   of our own. The second one is cut into instances (MIG), so its utilization is not known. */
#include <string.h>

typedef unsigned int nvmlReturn_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { int index; } *nvmlDevice_t;

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, GIB = 1 << 30 };
static struct { int index; } devices[] = {{0}, {1}};

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { return flags == 0 ? SUCCESS : INVALID_ARGUMENT; }

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index > 1) return INVALID_ARGUMENT;
    *device = (nvmlDevice_t)&devices[index];
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    strncpy(name, device->index == 0 ? "NVIDIA A10" : "NVIDIA A100-SXM4-80GB", length);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    memory->total = (device->index == 0 ? 24ull : 80ull) * GIB;
    memory->used = (device->index == 0 ? 20ull : 8ull) * GIB;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    if (device->index == 1) return NOT_SUPPORTED;
    rates->gpu = 75;
    rates->memory = 10;
    return SUCCESS;
}
