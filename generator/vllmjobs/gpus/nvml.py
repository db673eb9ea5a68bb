"""The NVIDIA GPUs of this machine, asked through NVML (nvidia-ml-py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vllmjobs.environment.problems import UserError
from vllmjobs.gpus.cards import Card, Condition, Holder, health_of, mig_profile

MIB = 2**20


class NvmlError(UserError):
    """A driver that is there and cannot be asked, in one line."""


def cards() -> tuple[list[Card], str]:
    """Look at every GPU and MIG instance, in NVML's order; the text says why there are none.

    A GPU that does not answer is a card all the same, `failed` or `unknown`, with what it did say. A value
    that a GPU, its driver or the permissions do not give is None. NVML may hang with a GPU that hangs.
    Raises `NvmlError` for a driver that is there and does not work.
    """
    import pynvml  # noqa: PLC0415 (400 KB of source, which only this needs)

    try:
        # Without the flag, a driver without a GPU is an error.
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
    except pynvml.NVMLError_LibraryNotFound:
        return [], "no NVIDIA driver here (libnvidia-ml.so.1 not found)"
    except pynvml.NVMLError_DriverNotLoaded:
        return [], "no NVIDIA driver here (libnvidia-ml.so.1 is, but its kernel module is not loaded)"
    except pynvml.NVMLError_LibRmVersionMismatch as error:
        raise NvmlError(
            "the NVIDIA driver was updated, but its old kernel module is still loaded; reboot this machine"
        ) from error
    except pynvml.NVMLError as error:
        raise NvmlError(f"the NVIDIA driver cannot be asked: {error}") from error
    try:
        found = [card for index in range(pynvml.nvmlDeviceGetCount()) for card in _gpu(pynvml, index)]
    except pynvml.NVMLError as error:
        raise NvmlError(f"the NVIDIA driver cannot be asked: {error}") from error
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return found, "" if found else "the NVIDIA driver is loaded, but finds no GPU"


class _Device:
    """A handle that is asked for one value after another, and remembers what is wrong with the GPU."""

    def __init__(self, pynvml: ModuleType, handle: object) -> None:
        self.pynvml = pynvml
        self.fault = ""
        self._handle = handle

    def ask(self, call: str, *arguments: object) -> Any:
        """Answer None where there is no value."""
        try:
            return getattr(self.pynvml, call)(self._handle, *arguments)
        except self.pynvml.NVMLError as error:
            if _is_of_the_gpu(self.pynvml, error):
                self.fault = str(error)
        except self.pynvml.NVMLLibraryMismatchError:  # the driver is older than this call
            pass
        return None


def _is_of_the_gpu(pynvml: ModuleType, error: Any) -> bool:
    """Whether an error tells of the GPU itself: not of the driver, the permissions or the question."""
    return error.value in (
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_INSUFFICIENT_POWER,
        pynvml.NVML_ERROR_IRQ_ISSUE,
    )


def _gpu(pynvml: ModuleType, index: int) -> Iterator[Card]:
    """Yield a GPU, then its MIG instances."""
    driver_version = None
    with suppress(pynvml.NVMLError):
        driver_version = pynvml.nvmlSystemGetDriverVersion()
    try:
        device = _Device(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        failed = _is_of_the_gpu(pynvml, error)
        yield Card(
            index=index,
            driver_version=driver_version,
            health="failed" if failed else "unknown",
            health_reason=str(error),
        )
        return
    capability = device.ask("nvmlDeviceGetCudaComputeCapability")
    temperature = device.ask("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU)
    if temperature is None:  # older drivers have only the call that CUDA 14 removes
        temperature = device.ask("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
    power = device.ask("nvmlDeviceGetPowerUsage")  # mW
    utilization = device.ask("nvmlDeviceGetUtilizationRates")
    mig_mode = device.ask("nvmlDeviceGetMigMode")  # now, and after the next reset
    mig = mig_mode and ("on" if mig_mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE else "off")
    card = replace(
        _memory_and_holders(device),
        index=index,
        compute_capability=capability and f"{capability[0]}.{capability[1]}",
        driver_version=driver_version,
        temperature_c=temperature,
        power_w=None if power is None else power / 1000,
        utilization_percent=utilization and utilization.gpu,
        mig=mig,
    )
    health, reason = health_of(_condition(device))  # asked last: any call before may have met a fault
    if device.fault:
        health, reason = "failed", "; ".join(filter(None, (device.fault, reason)))
    card = replace(card, health=health, health_reason=reason)
    instances = list(_mig_instances(device, card)) if mig == "on" else []
    # To those who may see it, NVML lists the processes of the instances at their GPU again.
    yield replace(card, holders=()) if instances else card
    yield from instances


def _mig_instances(device: _Device, gpu: Card) -> Iterator[Card]:
    """Yield the MIG instances of a GPU, each in its health: NVML has none of their own."""
    for place in range(device.ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
        handle = device.ask("nvmlDeviceGetMigDeviceHandleByIndex", place)
        if handle is None:  # a place without an instance
            continue
        card = _memory_and_holders(_Device(device.pynvml, handle))
        yield replace(
            card,
            index=gpu.index,
            compute_capability=gpu.compute_capability,
            driver_version=gpu.driver_version,
            mig=mig_profile(card.model),
            parent=gpu.uuid,
            health=gpu.health,
            health_reason=gpu.health_reason,
        )


def _memory_and_holders(device: _Device) -> Card:
    """What a GPU and a MIG instance are asked alike."""
    # Only the second version keeps what the driver reserves apart from what is used. A GPU that shares the
    # machine's memory has neither.
    memory = device.ask("nvmlDeviceGetMemoryInfo", device.pynvml.nvmlMemory_v2)
    memory = memory or device.ask("nvmlDeviceGetMemoryInfo")
    return Card(
        uuid=device.ask("nvmlDeviceGetUUID"),
        model=device.ask("nvmlDeviceGetName"),
        memory_mib=memory and memory.total // MIB,
        memory_used_mib=memory and memory.used // MIB,
        holders=_holders(device),
    )


def _condition(device: _Device) -> Condition:
    pynvml = device.pynvml
    remapped = device.ask("nvmlDeviceGetRemappedRows")
    fields = device.ask("nvmlDeviceGetFieldValues", [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    known = bool(fields) and fields[0].nvmlReturn == pynvml.NVML_SUCCESS
    volatile_errors = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    return Condition(
        recovery_action=fields[0].value.uiVal if known else None,
        remap_pending=bool(remapped[2]) if remapped else None,
        remap_failed=bool(remapped[3]) if remapped else None,
        uncorrected_ecc=device.ask("nvmlDeviceGetTotalEccErrors", *volatile_errors),
    )


def _holders(device: _Device) -> tuple[Holder, ...] | None:
    """The processes by pid; one may be listed twice, for compute and for graphics."""
    kinds = ("Compute", "Graphics", "MPSCompute")
    answers = [device.ask(f"nvmlDeviceGet{kind}RunningProcesses") for kind in kinds]
    if all(answer is None for answer in answers):
        return None
    processes = {process.pid: process.usedGpuMemory for answer in answers for process in answer or ()}
    return tuple(
        Holder(_command(pid), pid=pid, memory_mib=None if used is None else used // MIB)
        for pid, used in sorted(processes.items())
    )


def _command(pid: int) -> str:
    """The name that a process has; `?` for one that has ended, or that this container cannot see."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().decode(errors="replace").strip()
    except OSError:
        return "?"
