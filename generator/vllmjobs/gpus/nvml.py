"""The cards of this machine's GPUs, read through NVML."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vllmjobs.environment.problems import UserError
from vllmjobs.gpus.cards import Card, CardHolder, health_of, mig_profile
from vllmjobs.supervisor.core.gpu_events import Lost
from vllmjobs.supervisor.gpu import device as nvml
from vllmjobs.supervisor.gpu.device import NO_DRIVER, NO_GPU, UPDATED, Device, DriverError, Fault

MIB = 2**20


class NvmlError(UserError):
    """A driver that is there and cannot be asked, in one line."""


def cards() -> tuple[list[Card], str]:
    """Read every GPU and MIG instance, in NVML's order; the text says why there are none.

    A GPU that does not answer is a card all the same, `failed` or `unknown`, with what it did tell. A value
    that a GPU, its driver or the permissions do not give is None. NVML may hang with a GPU that hangs.
    Raises `NvmlError` for a driver that is there and does not work.
    """
    try:
        nvml.load()
        try:
            version = nvml.driver_version()
            cards = [
                replace(card, index=index, driver_version=version)
                for index in range(nvml.count())
                for card in _cards(nvml.open_device(str(index)))
            ]
        finally:
            nvml.unload()
    except DriverError as error:
        if error.code in NO_DRIVER:
            return [], NO_DRIVER[error.code]
        if error.code == UPDATED:
            message = "the NVIDIA driver was updated, but its old kernel module is still loaded"
            raise NvmlError(f"{message}; reboot this machine") from error
        raise NvmlError(f"the NVIDIA driver cannot be asked: {error}") from error
    return cards, "" if cards else NO_GPU


def _cards(device: Device | Fault) -> Iterator[Card]:
    """Yield a GPU, then its MIG instances."""
    if not isinstance(device, Device):
        yield Card(health="failed" if isinstance(device, Lost) else "unknown", health_reason=device.reason)
        return
    capability = device.ask("nvmlDeviceGetCudaComputeCapability")
    power = device.ask("nvmlDeviceGetPowerUsage")  # mW
    utilization = device.ask("nvmlDeviceGetUtilizationRates")
    mig_mode = device.mig_mode
    card = replace(
        _memory_and_holders(device),
        compute_capability=capability and f"{capability[0]}.{capability[1]}",
        power_w=None if power is None else power / 1000,
        utilization_percent=utilization and utilization.gpu,
        mig=mig_mode,
    )
    reading = device.read()
    health, reason = health_of(reading)
    card = replace(card, temperature_c=reading.temperature, health=health, health_reason=reason)
    if isinstance(fault := device.fault, Lost):  # asked last: any call before may have met one
        reasons = "; ".join(filter(None, (fault.reason, reason)))
        card = replace(card, health="failed", health_reason=reasons)
    instances = [_mig_card(instance, card) for instance in device.mig_instances()] if mig_mode == "on" else []
    # To those who may see it, NVML lists the processes of the instances at their GPU again.
    yield replace(card, holders=()) if instances else card
    yield from instances


def _mig_card(device: Device, gpu: Card) -> Card:
    """Return a MIG instance in the health of its GPU: NVML has none of its own."""
    card = _memory_and_holders(device)
    return replace(
        card,
        compute_capability=gpu.compute_capability,
        mig=mig_profile(card.model),
        parent=gpu.uuid,
        health=gpu.health,
        health_reason=gpu.health_reason,
    )


def _memory_and_holders(device: Device) -> Card:
    """Ask what a GPU and a MIG instance have alike."""
    used, total = device.memory()
    return Card(
        uuid=device.uuid,
        model=device.ask("nvmlDeviceGetName"),
        memory_mib=None if total is None else total // MIB,
        memory_used_mib=None if used is None else used // MIB,
        holders=_holders(device),
    )


def _holders(device: Device) -> tuple[CardHolder, ...] | None:
    processes = device.processes("Compute", "Graphics", "MPSCompute")
    if processes is None:
        return None
    return tuple(
        CardHolder(_command(pid), pid=pid, memory_mib=None if used is None else used // MIB)
        for pid, used in sorted(processes.items())
    )


def _command(pid: int) -> str:
    """Return the name of a process; `?` for one that has ended, or that this container cannot see."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().decode(errors="replace").strip()
    except OSError:
        return "?"
