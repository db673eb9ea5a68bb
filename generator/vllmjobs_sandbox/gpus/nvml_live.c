/* The libnvidia-ml.so.1 of nvml/, with events, and answers that change while a process uses it.
 *
 * NVML_LIVE=PATH is a FIFO whose lines nvmlEventSetWait_v2 takes:
 *   xid 0 79 4294967295     an XID of the first GPU, and the GPU instance that it is of
 *   GPU1=!15                from now on, this answer (nvml/nvml.c has their names)
 * GPU0_EVENTS=8             the types of events that a GPU supports
 * GPU0_CLOCKS=64            why its clocks are low; `hang:PATH`: the call does not return while there is this file
 */
#include "nvml/nvml.c"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

enum { TIMEOUT = 10 };

typedef struct {
    Device *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} Event;

static FILE *live;

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    for (unsigned index = 0; index < GPUS; ++index) {
        char known[96] = "";
        Device *gpu;
        nvmlDeviceGetHandleByIndex_v2(index, &gpu);
        if (!nvmlDeviceGetUUID(gpu, known, sizeof known) && !strcmp(uuid, known)) return *device = gpu, SUCCESS;
        for (unsigned place = 0; place < PLACES; ++place)
            if (!nvmlDeviceGetMigDeviceHandleByIndex(gpu, place, device) &&
                !nvmlDeviceGetUUID(*device, known, sizeof known) && !strcmp(uuid, known))
                return SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(const Device *instance, Device **gpu) {
    return nvmlDeviceGetHandleByIndex_v2((unsigned)atoi(instance->name + 3), gpu);
}

int nvmlDeviceGetGpuInstanceId(const Device *instance, unsigned *id) { return small(instance, "INSTANCE", id); }

int nvmlDeviceGetIndex(const Device *device, unsigned *index) {
    *index = (unsigned)atoi(device->name + 3);
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(const Device *device, unsigned long long *reasons) {
    int error;
    const char *text = said(device, "CLOCKS", &error);
    while (text && !strncmp(text, "hang:", 5) && !access(text + 5, F_OK)) pause();
    return number(device, "CLOCKS", reasons);
}

int nvmlEventSetCreate(void **set) {
    int descriptor = open(getenv("NVML_LIVE"), O_RDWR | O_NONBLOCK);
    live = fdopen(descriptor, "r");
    *set = live;
    return SUCCESS;
}

int nvmlDeviceGetSupportedEventTypes(const Device *device, unsigned long long *types) {
    return number(device, "EVENTS", types);
}

/* Of a GPU only, never of a MIG instance. */
int nvmlDeviceRegisterEvents(const Device *device, unsigned long long types, void *set) {
    return set != live || types != 8 || strchr(device->name, '_') ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlEventSetWait_v2(void *set, Event *event, unsigned milliseconds) {
    struct pollfd waiting = {fileno(set), POLLIN, 0};
    char line[256];
    unsigned index;
    if (!fgets(line, sizeof line, set)) {
        clearerr(set);
        if (!poll(&waiting, 1, (int)milliseconds) || !fgets(line, sizeof line, set)) return TIMEOUT;
    }
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "xid %u %llu %u", &index, &event->data, &event->gpu_instance) == 3) {
        event->type = 8;
        return nvmlDeviceGetHandleByIndex_v2(index, &event->device);
    }
    if (strchr(line, '=')) putenv(strdup(line));
    return TIMEOUT;
}
