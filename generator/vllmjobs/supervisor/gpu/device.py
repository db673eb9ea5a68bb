"""The GPUs of this machine through NVML (nvidia-ml-py): the only code that reads it.

NVML may hang with a GPU that hangs. `vllmjobs gpus` waits for it; the supervisor reads it in a process of its
own, `watch.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from ctypes import c_void_p, cast
from dataclasses import dataclass
from typing import Any, Literal

import pynvml

from vllmjobs.supervisor.core.gpu_events import GpuReading, Lost, Unanswered, Xid

NO_DRIVER = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver here (libnvidia-ml.so.1 not found)",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "no NVIDIA driver here (libnvidia-ml.so.1 is there, but its kernel module is not loaded)"
    ),
}
"""NVML's errors on a machine without a driver."""
UPDATED = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH  # after an update; not to be asked before a reboot
ALL_INSTANCES = 0xFFFFFFFF  # of an XID that all MIG instances have
NO_GPU = "the NVIDIA driver is loaded, but finds no GPU"
# NVML's errors that tell of the GPU itself: not of the driver, the permissions or the question.
_OF_THE_GPU = (
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_INSUFFICIENT_POWER,
    pynvml.NVML_ERROR_IRQ_ISSUE,
)


Fault = Lost | Unanswered


class DriverError(Exception):
    """A driver that is not there, or that cannot be asked."""

    def __init__(self, error: Any) -> None:
        super().__init__(str(error))
        self.code: int = error.value  # NVML's nvmlReturn_t


def load() -> None:
    """Load NVML; raises `DriverError`."""
    try:
        # Without the flag, a driver without a GPU is an error.
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
    except pynvml.NVMLError as error:
        raise DriverError(error) from error


def unload() -> None:
    """Let NVML go."""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def driver_version() -> str | None:
    """Return the version of the driver, such as 570.124.06."""
    with suppress(pynvml.NVMLError):
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None


def count() -> int:
    """Return the number of GPUs; raises `DriverError`."""
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        raise DriverError(error) from error


def fault(gpu: str, error: Any) -> Fault:
    """Return the event of an error that NVML answered for a GPU."""
    if error.value in _OF_THE_GPU:
        return Lost(gpu, str(error))
    return Unanswered(gpu, error.value, str(error))


@dataclass
class Device:
    """A GPU or a MIG instance that is asked for one value after another."""

    gpu: str  # the name by which it was asked for, or its uuid
    handle: Any
    parent: Any  # the handle of its GPU, which has the health of both; the GPU's own handle for a whole GPU
    instance: int | None = None  # the GPU instance that a MIG instance is part of
    error: Any = None  # the error that shows what is wrong with the GPU, since this was last None

    def ask(self, call: str, *arguments: object, of: Any = None) -> Any:
        """Call NVML with the handle, or with the one of another device; None where there is no value."""
        try:
            return getattr(pynvml, call)(self.handle if of is None else of, *arguments)
        except pynvml.NVMLError as error:
            if error.value in _OF_THE_GPU:
                self.error = error
            elif error.value == pynvml.NVML_ERROR_UNKNOWN:
                self.error = self.error or error
        except pynvml.NVMLLibraryMismatchError:  # the driver is older than this call
            pass
        return None

    @property
    def fault(self) -> Fault | None:
        """Return the event of its error, if there was one."""
        return self.error and fault(self.gpu, self.error)

    @property
    def mig_mode(self) -> Literal["on", "off"] | None:
        """Tell whether it is divided into MIG instances; None where it cannot be."""
        mode = self.ask("nvmlDeviceGetMigMode")  # now, and after the next reset
        return mode and ("on" if mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE else "off")

    def mig_instances(self) -> list["Device"]:
        """Return the MIG instances of a GPU, named by their uuids."""
        places = range(self.ask("nvmlDeviceGetMaxMigDeviceCount") or 0)
        handles = [self.ask("nvmlDeviceGetMigDeviceHandleByIndex", place) for place in places]
        return [Device(self.gpu, handle, self.handle).named() for handle in handles if handle]

    def named(self) -> "Device":
        """Name it by its uuid, and find the GPU of a MIG instance; return the device itself."""
        self.gpu = self.uuid or self.gpu
        if self.gpu.startswith("MIG-"):
            # Events, recovery action, remapped rows: NVML has them of the whole GPU only.
            self.parent = self.ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle") or self.parent
            self.instance = self.ask("nvmlDeviceGetGpuInstanceId")
        return self

    @property
    def uuid(self) -> str | None:
        """Return its uuid: `GPU-…` or `MIG-…`."""
        uuid: str | None = self.ask("nvmlDeviceGetUUID")
        return uuid

    def memory(self) -> tuple[int | None, int | None]:
        """Return the bytes in use and in all."""
        # Only the second version keeps what the driver reserves apart from what is used. A GPU that shares
        # the machine's memory has neither.
        memory = self.ask("nvmlDeviceGetMemoryInfo", pynvml.nvmlMemory_v2)
        memory = memory or self.ask("nvmlDeviceGetMemoryInfo")
        return (memory.used, memory.total) if memory else (None, None)

    def processes(self, *kinds: str) -> dict[int, int | None] | None:
        """Return the bytes in use by pid, for kinds such as Compute; None where no kind is answered."""
        answers = [self.ask(f"nvmlDeviceGet{kind}RunningProcesses") for kind in kinds]
        if all(answer is None for answer in answers):
            return None
        # One process may be listed twice, for compute and for graphics.
        return {process.pid: process.usedGpuMemory for answer in answers for process in answer or ()}

    def read(self) -> GpuReading:
        """Read all values of a GPU's state; `error` may be set by any of them."""
        used, total = self.memory()
        temperature = self.ask("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU, of=self.parent)
        if temperature is None:  # older drivers have only the call that CUDA 14 removes
            temperature = self.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU, of=self.parent)
        wanted = [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
        fields = self.ask("nvmlDeviceGetFieldValues", wanted, of=self.parent)
        is_known = bool(fields) and fields[0].nvmlReturn == pynvml.NVML_SUCCESS
        rows = self.ask("nvmlDeviceGetRemappedRows", of=self.parent)
        corrected, uncorrected = (
            self.ask("nvmlDeviceGetTotalEccErrors", kind, pynvml.NVML_VOLATILE_ECC, of=self.parent)
            for kind in (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        )
        reasons = self.ask("nvmlDeviceGetCurrentClocksEventReasons", of=self.parent)
        if reasons is None:  # before driver 535
            reasons = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons", of=self.parent)
        return GpuReading(
            gpu=self.gpu,
            index=self.ask("nvmlDeviceGetIndex", of=self.parent),
            name=self.ask("nvmlDeviceGetName"),
            memory_used=used,
            memory_total=total,
            temperature=temperature,
            recovery_action=fields[0].value.uiVal if is_known else None,
            remap_pending=bool(rows[2]) if rows else None,
            remap_failed=bool(rows[3]) if rows else None,
            corrected_ecc=corrected,
            uncorrected_ecc=uncorrected,
            clocks_reasons=reasons,
        )


def open_device(gpu: str) -> Device | Fault:
    """Open a GPU by its uuid or index; a GPU that cannot be opened is the event of that."""
    try:
        if gpu.isdecimal():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(gpu))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu)
    except pynvml.NVMLError as error:
        return fault(gpu, error)
    return Device(gpu, handle, handle)


class Xids:
    """The XIDs of some GPUs, as the driver reports them."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self.faults: list[Fault] = []  # the GPUs that could not be registered
        self._devices = devices
        self._events = self._register()

    def wait(self, seconds: float) -> tuple[list[Xid], float]:
        """Wait for XIDs; return them, and for how long the caller still has to wait where NVML did not."""
        if self._events is None:
            return [], seconds
        try:
            event = pynvml.nvmlEventSetWait_v2(self._events, int(seconds * 1000) + 1)
        except pynvml.NVMLError as error:
            # A lost GPU ends each wait at once.
            return [], 0.0 if error.value == pynvml.NVML_ERROR_TIMEOUT else seconds
        except pynvml.NVMLLibraryMismatchError:
            self._events = None
            return [], seconds
        return list(self._xids(event)), 0.0

    def _register(self) -> Any:
        """Register for XIDs; None where no GPU reports them."""
        try:
            events = pynvml.nvmlEventSetCreate()
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            return None
        xid = pynvml.nvmlEventTypeXidCriticalError
        is_registered = False
        parents: list[Any] = []
        for device in self._devices:
            supported = device.ask("nvmlDeviceGetSupportedEventTypes", of=device.parent) or 0
            if supported & xid and not any(_is_same(device.parent, parent) for parent in parents):
                parents.append(device.parent)
                try:
                    pynvml.nvmlDeviceRegisterEvents(device.parent, xid, events)
                    is_registered = True
                except pynvml.NVMLError as error:
                    self.faults.append(fault(device.gpu, error))
        return events if is_registered else None

    def _xids(self, event: Any) -> Iterator[Xid]:
        if event.eventType != pynvml.nvmlEventTypeXidCriticalError:
            return
        for device in self._devices:
            if _is_same(device.parent, event.device) and (
                device.instance is None or event.gpuInstanceId in (device.instance, ALL_INSTANCES)
            ):
                yield Xid(device.gpu, event.eventData)


def _is_same(handle: Any, other: Any) -> bool:
    """Tell whether two handles are of one GPU: they are pointers to opaque structs."""
    return cast(handle, c_void_p).value == cast(other, c_void_p).value
