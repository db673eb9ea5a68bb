"""The process that reads NVML for a supervisor.

    python -m vllmjobs.supervisor.gpu.watch [UUID_OR_INDEX ...]

A call into a sick driver may never return. So this is a process of its own, which may hang without anybody
waiting for it. It writes the events of `core/gpu_events.py` to stdout, a line each, and holds no second one.

Without arguments it watches every GPU, or its MIG instances. A byte on stdin asks for a reading at once; it
leaves when stdin ends or its parent is another, and on SIGTERM.
"""

import os
import select
import signal
import sys
import time

from vllmjobs.supervisor.core.gpu_events import Lost, NoAccess, NoDriver, Written, as_line
from vllmjobs.supervisor.gpu import device as nvml
from vllmjobs.supervisor.gpu.device import NO_DRIVER, NO_GPU, UPDATED, Device, DriverError, Xids

INTERVAL = 5.0
SLICE = 0.5  # the seconds, at most, until a byte or the end of stdin is noticed


def main(gpus: list[str]) -> int:
    """Watch until there is no reason to; return the exit code."""
    # A write to a parent that is gone ends this process, too.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent does about it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    parent = os.getppid()
    try:
        nvml.load()
        return _watch(gpus, parent)
    except DriverError as error:
        if error.code == UPDATED or error.code in NO_DRIVER:
            _write(NoDriver(str(error)))
            return 0
        _write(NoAccess(error.code, str(error)))
        return 1


def _watch(gpus: list[str], parent: int) -> int:
    wanted = gpus or [str(index) for index in range(nvml.count())]
    if not wanted:
        _write(NoDriver(NO_GPU))
        return 0
    devices: list[Device] = []
    for gpu in wanted:
        device = nvml.open_device(gpu)
        if not isinstance(device, Device):
            _write(device)
        else:
            devices += ([] if gpus else device.mig_instances()) or [device.named()]
    if not devices:
        return 1
    xids = Xids(devices)
    for event in xids.faults:
        _write(event)
    while True:
        for device in devices:
            _read(device)
        if not _wait(xids, parent):
            return 0


def _read(device: Device) -> None:
    device.error = None
    reading = device.read()
    # One call alone that answers "Unknown Error" is a whim of the driver.
    if (event := device.fault) and (isinstance(event, Lost) or reading.memory_used is None):
        _write(event)
    else:
        _write(reading)


def _wait(xids: Xids, parent: int) -> bool:
    """Write XIDs as they come, until it is time for another reading; False when it is time to leave."""
    until = time.monotonic() + INTERVAL
    while (left := until - time.monotonic()) > 0:
        events, pause = xids.wait(min(left, SLICE))
        for event in events:
            _write(event)
        if os.getppid() != parent:
            return False
        if select.select([0], [], [], pause)[0]:
            return bool(os.read(0, 4096))
    return True


def _write(event: Written) -> None:
    os.write(1, as_line(event, round(time.time(), 3)))  # at most PIPE_BUF: whole, or not yet


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
