"""`python -m vllmjobs.supervisor.gpu.watch [UUID_OR_INDEX ...]`: the only process that talks to NVML.

A call into a sick driver may never return. So this is a process of its own, which may hang without anybody
waiting for it. It writes a line of JSON to stdout for each thing that it observes, and holds no second one:

| kind | when |
|---|---|
| seen | every 5 s for each GPU, with what `gpu_policy.Look` holds; null where the driver does not say |
| xid | as soon as the driver reports it, with its code |
| lost | every 5 s for a GPU that NVML calls lost, or of no use before it is reset, with the reason |
| unanswered | every 5 s for a GPU that cannot be asked, with the code (nvmlReturn_t) and the reason |
| no_driver | with the reason, before it exits 0: there is nothing to watch |
| no_access | with the code and the reason, before it exits 1: try again in some seconds |

Every line has `at`, seconds since 1970, and the first four `gpu`: the uuid, or what it was asked for by.
Without arguments it watches every GPU, or its MIG instances. A byte on stdin asks for a look at once; it
leaves when stdin ends or its parent is another, and on SIGTERM.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

INTERVAL = 5.0
SLICE = 0.5
"""Seconds, at most, until a byte or the end of stdin is seen."""


@dataclass
class _Device:
    """A GPU or a MIG instance that is asked for one value after another."""

    pynvml: ModuleType
    gpu: str
    handle: Any
    parent: Any
    """The handle of its GPU, which has the health of both; of a whole GPU its own."""
    instance: int | None = None
    """Of a MIG instance: the GPU instance that it is part of."""
    fault: Any = None

    def ask(self, call: str, *arguments: object, of: Any = None) -> Any:
        """Answer None where there is no value."""
        try:
            return getattr(self.pynvml, call)(self.handle if of is None else of, *arguments)
        except self.pynvml.NVMLError as error:
            if _is_of_the_gpu(self.pynvml, error):
                self.fault = error
            elif error.value == self.pynvml.NVML_ERROR_UNKNOWN:
                self.fault = self.fault or error
        except self.pynvml.NVMLLibraryMismatchError:  # the driver is older than this call
            pass
        return None


def main(gpus: list[str]) -> int:
    """Watch until there is no reason to."""
    # A write to a parent that is gone ends this process, too.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent does about it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    parent = os.getppid()
    import pynvml  # noqa: PLC0415 (4 MB, and the parent imports what is above)

    try:
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
        devices = _devices(pynvml, gpus)
    except pynvml.NVMLError as error:
        if error.value in (
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,  # updated, and not to be asked before a reboot
        ):
            _say("no_driver", reason=str(error))
            return 0
        _say("no_access", code=error.value, reason=str(error))
        return 1
    if devices is None:
        _say("no_driver", reason="the NVIDIA driver is loaded, but finds no GPU")
        return 0
    if not devices:
        return 1
    events = _events(pynvml, devices)
    while True:
        for device in devices:
            _look(device)
        if not _wait(pynvml, devices, events, parent):
            return 0


def _devices(pynvml: ModuleType, gpus: list[str]) -> list[_Device] | None:
    """Open the GPUs; those that cannot be are said, and left out. None where there are none."""
    found = []
    asked = gpus or [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    if not asked:
        return None
    for gpu in asked:
        try:
            if gpu.isdecimal():
                handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
            else:
                handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
        except pynvml.NVMLError as error:
            _say_fault(pynvml, gpu, error)
            continue
        device = _Device(pynvml, gpu, handle, handle)
        instances = [] if gpus else _mig_instances(device)
        found += instances or [_named(device)]
    return found


def _mig_instances(gpu: _Device) -> list[_Device]:
    places = range(gpu.ask("nvmlDeviceGetMaxMigDeviceCount") or 0)
    handles = [gpu.ask("nvmlDeviceGetMigDeviceHandleByIndex", place) for place in places]
    return [_named(_Device(gpu.pynvml, gpu.gpu, handle, gpu.handle)) for handle in handles if handle]


def _named(device: _Device) -> _Device:
    device.gpu = device.ask("nvmlDeviceGetUUID") or device.gpu
    if device.gpu.startswith("MIG-"):
        # Events, recovery action, remapped rows: NVML has them of the whole GPU only.
        device.parent = device.ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle") or device.parent
        device.instance = device.ask("nvmlDeviceGetGpuInstanceId")
    return device


def _events(pynvml: ModuleType, devices: list[_Device]) -> Any:
    """Register for XIDs; None where no GPU reports them."""
    try:
        events = pynvml.nvmlEventSetCreate()
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None
    xid = pynvml.nvmlEventTypeXidCriticalError
    is_registered = False
    parents: list[Any] = []
    for device in devices:
        supported = device.ask("nvmlDeviceGetSupportedEventTypes", of=device.parent) or 0
        if supported & xid and not any(_is_same(device.parent, parent) for parent in parents):
            parents.append(device.parent)
            try:
                pynvml.nvmlDeviceRegisterEvents(device.parent, xid, events)
                is_registered = True
            except pynvml.NVMLError as error:
                _say_fault(pynvml, device.gpu, error)
    return events if is_registered else None


def _look(device: _Device) -> None:
    pynvml = device.pynvml
    device.fault = None
    # Only the second version keeps what the driver reserves apart from what is used.
    memory = device.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
    memory = memory or device.ask("nvmlDeviceGetMemoryInfo")
    temperature = device.ask("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU, of=device.parent)
    if temperature is None:  # older drivers have only the call that CUDA 14 removes
        temperature = device.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU, of=device.parent)
    wanted = [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
    fields = device.ask("nvmlDeviceGetFieldValues", wanted, of=device.parent)
    is_known = bool(fields) and fields[0].nvmlReturn == pynvml.NVML_SUCCESS
    rows = device.ask("nvmlDeviceGetRemappedRows", of=device.parent)
    ecc = {
        kind: device.ask("nvmlDeviceGetTotalEccErrors", error, pynvml.NVML_VOLATILE_ECC, of=device.parent)
        for kind, error in (
            ("corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ("uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        )
    }
    reasons = device.ask("nvmlDeviceGetCurrentClocksEventReasons", of=device.parent)
    if reasons is None:  # before driver 535
        reasons = device.ask("nvmlDeviceGetCurrentClocksThrottleReasons", of=device.parent)
    answers = [device.ask(f"nvmlDeviceGet{kind}RunningProcesses") for kind in ("Compute", "MPSCompute")]
    pids = {process.pid for answer in answers for process in answer or ()}
    index = device.ask("nvmlDeviceGetIndex", of=device.parent)
    name = device.ask("nvmlDeviceGetName")
    # One call alone that answers "Unknown Error" is a whim of the driver.
    if device.fault and (memory is None or _is_of_the_gpu(pynvml, device.fault)):
        _say_fault(pynvml, device.gpu, device.fault)
        return
    _say(
        "seen",
        gpu=device.gpu,
        index=index,
        name=name,
        memory_used=memory and memory.used,
        memory_total=memory and memory.total,
        temperature=temperature,
        recovery_action=fields[0].value.uiVal if is_known else None,
        remapped=rows
        and {
            "corrected": rows[0], "uncorrected": rows[1], "pending": bool(rows[2]), "failed": bool(rows[3]),
        },
        ecc=ecc,
        clocks_reasons=reasons,
        pids=None if all(answer is None for answer in answers) else sorted(pids),
    )  # fmt: skip


def _wait(pynvml: ModuleType, devices: list[_Device], events: Any, parent: int) -> bool:
    """Say XIDs as they come, until it is time for another look; False when it is time to leave."""
    until = time.monotonic() + INTERVAL
    while (left := until - time.monotonic()) > 0:
        pause = min(left, SLICE)
        if events is not None:
            try:
                _say_xid(pynvml, devices, pynvml.nvmlEventSetWait_v2(events, int(pause * 1000) + 1))
                pause = 0.0
            except pynvml.NVMLError as error:
                # A lost GPU ends each wait at once.
                pause = 0.0 if error.value == pynvml.NVML_ERROR_TIMEOUT else pause
            except pynvml.NVMLLibraryMismatchError:
                events = None
        if os.getppid() != parent:
            return False
        if select.select([0], [], [], pause)[0]:
            return bool(os.read(0, 4096))
    return True


def _say_xid(pynvml: ModuleType, devices: list[_Device], event: Any) -> None:
    if event.eventType != pynvml.nvmlEventTypeXidCriticalError:
        return
    for device in devices:
        # 0xFFFFFFFF: of all instances.
        if _is_same(device.parent, event.device) and (
            device.instance is None or event.gpuInstanceId in (device.instance, 0xFFFFFFFF)
        ):
            _say("xid", gpu=device.gpu, code=event.eventData)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two handles are of one GPU: they are pointers to opaque structs."""
    from ctypes import c_void_p, cast  # noqa: PLC0415 (for this process only)

    return cast(one, c_void_p).value == cast(other, c_void_p).value


def _is_of_the_gpu(pynvml: ModuleType, error: Any) -> bool:
    """Whether an error tells of the GPU itself: not of the driver, the permissions or the question."""
    return error.value in (
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_INSUFFICIENT_POWER,
        pynvml.NVML_ERROR_IRQ_ISSUE,
    )


def _say_fault(pynvml: ModuleType, gpu: str, error: Any) -> None:
    if _is_of_the_gpu(pynvml, error):
        _say("lost", gpu=gpu, reason=str(error))
    else:
        _say("unanswered", gpu=gpu, code=error.value, reason=str(error))


def _say(kind: str, **more: object) -> None:
    line = json.dumps({"at": round(time.time(), 3), "kind": kind, **more})
    os.write(1, line.encode() + b"\n")  # at most PIPE_BUF: whole, or not yet


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
