"""The load of this machine, read from the operating system without further packages, in well under a millisecond.

Names and units are those of `system` in ultralytics 8.4.190 (its `SystemLogger`, with rates). What the system does not
report without further packages is left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from typing import Any, NamedTuple

from hubqueue.destinations.platform.machine import gpus
from hubqueue.destinations.platform.machine.masking import shown_path

_GB, _MB, _GIB, _SECTOR = 1e9, 1e6, 1 << 30, 512
# Bytes of a file in /proc that are read; a machine with thousands of containers has long ones.
_LONGEST = 256 * 1024
_MOST_DISKS = 8
# Seconds. A rate over a shorter time would be noise, so an earlier call gets the last sample again.
_LEAST_INTERVAL = 1.0
_ESCAPED = re.compile(r"\\([0-7]{3})")
_NOT_A_DISK = ("/dev/loop", "/dev/ram", "/dev/zram", "/dev/fuse")


class _Counts(NamedTuple):
    """Counters since the machine was started: processor time in ticks, bytes of disks and of the network."""

    at: float  # seconds of time.monotonic()
    busy: int | None
    total: int | None
    disk: tuple[int, int] | None
    network: tuple[int, int] | None


class Sampler:
    """Samples of one training; each rate is the average since the sample before. Safe to use from several threads.

    `device` is the training's argument of that name: the GPUs that it uses before it has allocated memory on one.
    """

    def __init__(self, device: object = None) -> None:
        self._device = device
        self._mounts: list[str] | None = None
        self._disks: frozenset[str] | None = None
        self._last: tuple[_Counts, dict[str, Any]] | None = None

    def sample(self) -> dict[str, Any]:
        """The load now.

        `cpu` and `ram` in percent, `disk` a list of {mount, used_gb, total_gb} (10^9 bytes), `disk_io` {read_mbs,
        write_mbs} and `network` {recv_mbs, sent_mbs} in 10^6 bytes per second (0 in the first sample), `gpus` by number
        {usage in percent, memory in percent, temp in °C, power in W}; with NVIDIA's driver also `driver_version` and
        `cuda_version`. `cpu` of the first sample is the average of a minute.
        """
        before, now = self._last, time.monotonic()
        if before is not None and now - before[0].at < _LEAST_INTERVAL:
            return before[1]
        counts = self._counts(now)
        found: dict[str, Any] = dict(gpus.versions())
        cpu = _share(before[0], counts) if before is not None else _minute()
        ram = _ram()
        found |= {name: value for name, value in (("cpu", cpu), ("ram", ram)) if value is not None}
        found["disk"] = self._usage()
        last = before[0] if before is not None else counts
        seconds = max(_LEAST_INTERVAL, counts.at - last.at)
        for name, units, old, new in (
            ("disk_io", ("read_mbs", "write_mbs"), last.disk, counts.disk),
            ("network", ("recv_mbs", "sent_mbs"), last.network, counts.network),
        ):
            if old is not None and new is not None:
                rates = (round(max(0, b - a) / _MB / seconds, 3) for a, b in zip(old, new, strict=True))
                found[name] = dict(zip(units, rates, strict=True))
        found["gpus"] = gpus.loads(self._device)
        self._last = counts, found
        return found

    def _counts(self, now: float) -> _Counts:
        busy = total = disk = network = None
        with contextlib.suppress(OSError, ValueError, IndexError):
            ticks = [int(each) for each in _read("/proc/stat", 4096).partition("\n")[0].split()[1:9]]
            total = sum(ticks)
            busy = total - ticks[3] - ticks[4]  # idle, and waiting for a disk
        with contextlib.suppress(OSError, ValueError, IndexError):
            disk = self._transferred()
        with contextlib.suppress(OSError, ValueError, IndexError):
            rows = [line.partition(":") for line in _read("/proc/net/dev").splitlines()[2:]]
            fields = [rest.split() for name, _, rest in rows if name.strip() != "lo"]
            network = sum(int(each[0]) for each in fields), sum(int(each[8]) for each in fields)
        return _Counts(now, busy, total, disk, network)

    def _transferred(self) -> tuple[int, int]:
        """Bytes read and written by all drives; partitions and layers above a drive would count twice."""
        if self._disks is None:
            names = os.listdir("/sys/block")
            self._disks = frozenset(each for each in names if os.path.exists(f"/sys/block/{each}/device"))
        rows = [line.split() for line in _read("/proc/diskstats").splitlines()]
        drives = [each for each in rows if each[2] in self._disks]
        return sum(int(each[5]) for each in drives) * _SECTOR, sum(int(each[9]) for each in drives) * _SECTOR

    def _usage(self) -> list[dict[str, Any]]:
        if self._mounts is None:
            self._mounts = _mounts()
        found = []
        for mount in self._mounts:
            with contextlib.suppress(OSError):
                usage = shutil.disk_usage(mount)
                used, total = round(usage.used / _GB, 3), round(usage.total / _GB, 3)
                found.append({"mount": shown_path(mount), "used_gb": used, "total_gb": total})
        return found


def total_ram() -> float | None:
    """The memory of this machine in GiB; None if unknown."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    return None


def total_disk() -> float:
    """The size of the system's disk in GiB. Raises OSError."""
    return round(shutil.disk_usage(os.path.abspath(os.sep)).total / _GIB, 1)


def _share(before: _Counts, now: _Counts) -> float | None:
    """The share of processor time that was used between two counts, in percent."""
    if before.total is None or before.busy is None or now.total is None or now.busy is None:
        return _minute()
    passed = now.total - before.total
    return (
        round(min(100.0, max(0.0, 100.0 * (now.busy - before.busy) / passed)), 3) if passed > 0 else _minute()
    )


def _minute() -> float | None:
    with contextlib.suppress(OSError, AttributeError):
        return round(min(100.0, 100.0 * os.getloadavg()[0] / (os.cpu_count() or 1)), 3)
    return None


def _ram() -> float | None:
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
        lines = _read("/proc/meminfo").splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[:8])}
        return round(100.0 * (1 - sizes["MemAvailable"] / sizes["MemTotal"]), 3)
    return None


def _mounts() -> list[str]:
    """The root, and where local drives are mounted, each drive once. No file system of the network: it may hang."""
    root = os.path.abspath(os.sep)
    found, drives = {os.stat(root).st_dev: root}, set()
    with contextlib.suppress(OSError, ValueError):
        rows = [line.split() for line in _read("/proc/self/mounts").splitlines()]
        for drive, escaped, kind in sorted(
            (row[:3] for row in rows if len(row) > 2), key=lambda row: len(row[1])
        ):
            mount = _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), escaped)
            if not drive.startswith("/dev/") or drive.startswith(_NOT_A_DISK) or drive in drives:
                continue
            if kind == "squashfs" or f"{mount}/".startswith(("/boot/", "/efi/")):
                continue
            with contextlib.suppress(OSError):
                status = os.stat(mount)
                if stat.S_ISDIR(status.st_mode):  # a container has mounted files too
                    drives.add(drive)
                    found.setdefault(status.st_dev, mount)
    return list(found.values())[:_MOST_DISKS]


def _read(path: str, most: int = _LONGEST) -> str:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        parts, left = [], most
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
