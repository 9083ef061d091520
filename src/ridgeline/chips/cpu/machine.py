"""What this process may use of the machine: CPUs and memory, within the limits of its container.

Source of the file formats: the Linux kernel's documentation of cgroup v1 and v2, and proc(5).
"""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cpus(cgroup_root: Path = CGROUP_ROOT, own_cgroup: Path = OWN_CGROUP) -> int:
    """CPUs that the scheduler may give this process: its affinity, cut by its groups' quotas; at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_cpu_quota(folder) for folder in _own_groups(cgroup_root, own_cgroup)]
    return max(1, min([affinity, *(math.floor(quota) for quota in quotas if quota is not None)]))


def available_memory_bytes(
    cgroup_root: Path = CGROUP_ROOT, meminfo: Path = Path("/proc/meminfo"), own_cgroup: Path = OWN_CGROUP
) -> int:
    """Memory that can still be taken without pushing others out: the system's, cut by what its groups have left."""
    free = _meminfo_bytes(meminfo, "MemAvailable")
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    left = [_memory_left_in_cgroup(folder) for folder in _own_groups(cgroup_root, own_cgroup)]
    return max(0, min([free, *(count for count in left if count is not None)]))


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, such as "AMD EPYC"."""
    text = _text(cpuinfo) or ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _own_groups(root: Path, own_cgroup: Path) -> list[Path]:
    """The group that the process is in and those around it, up to the root of what it sees: each may set limits.

    In a container the root itself is the container's group; with version 1 nothing further is looked for.
    """
    names = [line[3:].strip("/") for line in (_text(own_cgroup) or "").splitlines() if line.startswith("0::")]
    parts = Path(names[0]).parts if names else ()
    return [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1) if ".." not in parts] or [root]


def _cpu_quota(root: Path) -> float | None:
    text = _text(root / "cpu.max")
    if text is not None:
        quota, _, period = text.strip().partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    quota_v1, period_v1 = _text(root / "cpu/cpu.cfs_quota_us"), _text(root / "cpu/cpu.cfs_period_us")
    if quota_v1 is None or period_v1 is None or int(quota_v1) <= 0:
        return None
    return int(quota_v1) / int(period_v1)


def _memory_left_in_cgroup(root: Path) -> int | None:
    for limit_name, usage_name, stat_name in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        limit, usage = _text(root / limit_name), _text(root / usage_name)
        if limit is None or usage is None or limit.strip() == "max":
            continue
        return int(limit) - int(usage) + _reclaimable_bytes(_text(root / stat_name) or "")
    return None


def _reclaimable_bytes(stat: str) -> int:
    """Pages of files that were not used lately: they count as used, and are given up first."""
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _meminfo_bytes(path: Path, field: str) -> int | None:
    for line in (_text(path) or "").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None
