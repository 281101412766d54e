"""A stand-in for NVML's Python module, with the bits of its clock event reasons (nvml.h)."""
# ruff: noqa: N802  (the names are NVML's)

from __future__ import annotations

IDLE, SET_CLOCKS, POWER, HARDWARE, BOOST, HEAT, HARDWARE_HEAT, BRAKE, DISPLAY = (1 << bit for bit in range(9))


class FakeNvml:
    """Answers each sample from a list of (SM MHz, milliwatts, °C, clock event bits), the last one for ever."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, *samples: tuple[int, int, int, int]) -> None:
        self.samples, self.at, self.asked = samples, -1, []

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        assert handle == "handle"
        if kind == self.NVML_CLOCK_MEM:
            return 3201
        self.at = min(self.at + 1, len(self.samples) - 1)
        return self.samples[self.at][0]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self.samples[self.at][1]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self.samples[self.at][2]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self.samples[self.at][3]


class OldNvml(FakeNvml):
    """A driver that knows the older name only, as a newer Python module says it."""

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        raise self.NVMLError("Function Not Found")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return self.samples[self.at][3]


class SilentNvml(FakeNvml):
    """It reads clocks and not what holds them down."""

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        raise self.NVMLError("Not Supported")
