"""Memory and utilization of the machine's GPUs, read through NVML beside the engine's loop.

A driver in trouble may hold a reading up for seconds, so that a thread of its own reads; the loop only takes what is
there. Where there is no driver there are no readings: unknown, not zero.
"""

from __future__ import annotations

import logging
import threading
import time

from runtime.ipc import Gpus, GpuUse

PERIOD_S = 2.0

log = logging.getLogger("engine")


class GpuWatch:
    """The newest reading, for one taker."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._period_s = period_s
        self._newest: Gpus | None = None
        threading.Thread(target=self._watch, name="gpus", daemon=True).start()

    def take(self) -> Gpus | None:
        """The newest reading, once; None when there is nothing new."""
        newest, self._newest = self._newest, None
        return newest

    def _watch(self) -> None:
        # Imported here: 10,000 lines of constants, which nobody has to wait for.
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.info("no GPU metrics: %s", error)
            return
        while True:
            try:
                self._newest = Gpus(read_gpus())
            except pynvml.NVMLError as error:
                log.error("no GPU metrics any more: %s", error)
                self._newest = Gpus(())
                return
            time.sleep(self._period_s)


def read_gpus() -> tuple[GpuUse, ...]:
    """Every GPU that the driver shows. Needs nvmlInit. Raises pynvml.NVMLError when memory cannot be read."""
    import pynvml

    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        try:
            utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except pynvml.NVMLError_NotSupported:  # a GPU that is cut into instances (MIG)
            utilization = None
        found.append(GpuUse(index, pynvml.nvmlDeviceGetName(handle), memory.used, memory.total, utilization))
    return tuple(found)
