/* A libnvidia-ml.so.1 without GPUs: it answers what the environment says.
 *
 * NVML_INIT=9                    the code that nvmlInit answers (NVML_ERROR_DRIVER_NOT_LOADED); 0 without it
 * NVML_GPUS=2                    how many there are
 * GPU1_NAME=NVIDIA A10           one answer of the second GPU; GPU1_MIG0_NAME of its first MIG instance
 * GPU1_TEMPERATURE=!3            an answer that is an error (NVML_ERROR_NOT_SUPPORTED)
 * GPU1=!15                       the error that every call on it answers (NVML_ERROR_GPU_IS_LOST)
 * GPU1_COMPUTE=17:1073741824,18  pids, and the bytes that each has
 *
 * What is not said is NVML_ERROR_NOT_SUPPORTED. Compiled with -DOLD, it lacks the newer calls, as an older driver does.
 * Signatures and layouts: nvml.h, as nvidia-ml-py declares them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { GPUS = 16, PLACES = 8, GET_GPU_RECOVERY_ACTION = 230 };

typedef struct { char name[16]; } Device;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned version, sensor; int value; } Temperature;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type;
    int answer;
    union { double d; unsigned u; unsigned long long ull; } value;
} Field;

static Device devices[GPUS][PLACES + 1];

/* The text of an answer, or NULL and its error. */
static const char *said(const Device *device, const char *key, int *error) {
    char name[64], whole[16];
    const char *text;
    snprintf(whole, sizeof whole, "%.*s", (int)strcspn(device->name, "_"), device->name);
    text = getenv(whole);
    if (text == NULL) {
        snprintf(name, sizeof name, "%s_%s", device->name, key);
        text = getenv(name);
    }
    *error = text == NULL ? NOT_SUPPORTED : *text == '!' ? atoi(text + 1) : SUCCESS;
    return *error ? NULL : text;
}

static int number(const Device *device, const char *key, unsigned long long *value) {
    int error;
    const char *text = said(device, key, &error);
    if (text) *value = strtoull(text, NULL, 10);
    return error;
}

static int small(const Device *device, const char *key, unsigned *value) {
    unsigned long long wide = 0;
    int error = number(device, key, &wide);
    *value = (unsigned)wide;
    return error;
}

static int copy(const Device *device, const char *key, char *value, unsigned size) {
    int error;
    const char *text = said(device, key, &error);
    if (text) snprintf(value, size, "%s", text);
    return error;
}

int nvmlInitWithFlags(unsigned flags) {
    const char *code = getenv("NVML_INIT"), *count = getenv("NVML_GPUS");
    if (code) return atoi(code);
    return !(flags & 1) && (!count || !atoi(count)) ? NOT_FOUND : SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "an error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    snprintf(version, size, "570.124.06");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    const char *text = getenv("NVML_GPUS");
    *count = text ? (unsigned)atoi(text) : 0;
    return text && *text == '!' ? atoi(text + 1) : SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    char name[32];
    const char *text;
    if (index >= GPUS) return INVALID_ARGUMENT;
    *device = &devices[index][PLACES];
    snprintf((*device)->name, sizeof(*device)->name, "GPU%u", index);
    snprintf(name, sizeof name, "GPU%u_HANDLE", index);
    text = getenv(name);
    return text ? atoi(text + 1) : SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(const Device *device, unsigned *count) {
    return small(device, "MIG_PLACES", count);
}

int nvmlDeviceGetMigDeviceHandleByIndex(const Device *device, unsigned place, Device **instance) {
    char name[64];
    int gpu = atoi(device->name + 3);
    if (place >= PLACES) return INVALID_ARGUMENT;
    *instance = &devices[gpu][place];
    snprintf((*instance)->name, sizeof(*instance)->name, "GPU%d_MIG%u", gpu, place);
    snprintf(name, sizeof name, "%s_UUID", (*instance)->name);
    return getenv(name) ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetMigMode(const Device *device, unsigned *now, unsigned *pending) {
    int error = small(device, "MIG", now);
    *pending = *now;
    return error;
}

int nvmlDeviceGetName(const Device *device, char *name, unsigned size) {
    return copy(device, "NAME", name, size);
}

int nvmlDeviceGetUUID(const Device *device, char *uuid, unsigned size) {
    return copy(device, "UUID", uuid, size);
}

int nvmlDeviceGetCudaComputeCapability(const Device *device, int *major, int *minor) {
    int error;
    const char *text = said(device, "CAPABILITY", &error);
    if (text) sscanf(text, "%d.%d", major, minor);
    return error;
}

int nvmlDeviceGetMemoryInfo(const Device *device, Memory *memory) {
    unsigned long long reserved = 0;
    int error = number(device, "MEMORY", &memory->total);
    if (error) return error;
    number(device, "RESERVED", &reserved);
    number(device, "USED", &memory->used);
    memory->used += reserved;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(const Device *device, unsigned sensor, unsigned *value) {
    return sensor ? INVALID_ARGUMENT : small(device, "TEMPERATURE", value);
}

int nvmlDeviceGetPowerUsage(const Device *device, unsigned *milliwatts) {
    return small(device, "POWER", milliwatts);
}

int nvmlDeviceGetUtilizationRates(const Device *device, Utilization *utilization) {
    return small(device, "UTILIZATION", &utilization->gpu);
}

int nvmlDeviceGetTotalEccErrors(const Device *device, unsigned kind, unsigned counter,
                                unsigned long long *count) {
    return kind == 1 && counter == 0 ? number(device, "UNCORRECTED", count) : INVALID_ARGUMENT;
}

int nvmlDeviceGetRemappedRows(const Device *device, unsigned *correctable, unsigned *uncorrectable,
                              unsigned *pending, unsigned *failed) {
    int error;
    const char *text = said(device, "REMAPPED", &error);
    if (text) sscanf(text, "%u,%u,%u,%u", correctable, uncorrectable, pending, failed);
    return error;
}

int nvmlDeviceGetFieldValues(const Device *device, int count, Field *fields) {
    if (count != 1 || fields->id != GET_GPU_RECOVERY_ACTION) return INVALID_ARGUMENT;
    fields->type = 1;
    fields->answer = small(device, "RECOVERY", &fields->value.u);
    return SUCCESS;
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(const Device *device, MemoryV2 *memory) {
    int error = number(device, "MEMORY", &memory->total);
    if (memory->version != 0x02000028) return INVALID_ARGUMENT;
    if (!error) number(device, "USED", &memory->used);
    return error;
}

int nvmlDeviceGetTemperatureV(const Device *device, Temperature *temperature) {
    if (temperature->version != 0x100000C || temperature->sensor) return INVALID_ARGUMENT;
    return small(device, "TEMPERATURE", (unsigned *)&temperature->value);
}

static int processes(const Device *device, const char *key, unsigned *count, Process *list) {
    int error;
    unsigned size = *count;
    const char *text = said(device, key, &error);
    if (!text) return error;
    for (*count = 0; *text; ++*count) {
        char *end;
        Process one = {(unsigned)strtoul(text, &end, 10), ~0ULL, ~0U, ~0U};
        if (*end == ':') one.used = strtoull(end + 1, &end, 10);
        if (*count < size && list) list[*count] = one;
        text = *end == ',' ? end + 1 : end;
    }
    return *count > size || (*count && !list) ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(const Device *device, unsigned *count, Process *list) {
    return processes(device, "COMPUTE", count, list);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(const Device *device, unsigned *count, Process *list) {
    return processes(device, "GRAPHICS", count, list);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(const Device *device, unsigned *count, Process *list) {
    return processes(device, "MPS", count, list);
}
#endif
