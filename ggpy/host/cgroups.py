"""The control groups that this process is in, whose limits hold besides the machine's (Linux, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMBERSHIP, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def groups(controller: str, membership: Path, mount: Path) -> Iterator[tuple[int, Path]]:
    """The version and the folder of each control group that may limit this process's "cpu" or "memory": its own, and
    all above it, any of which may be the tightest."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, root = 2, mount
        elif controller in controllers.split(","):
            version, root = 1, mount / controller
            if not root.is_dir():
                root = mount / controllers  # mounted together: cpu,cpuacct
        else:
            continue
        # Inside a container the path may be the host's; the mount itself then stands for the group.
        group = root / path.lstrip("/")
        yield version, group
        for parent in group.parents:
            if parent.is_relative_to(root):
                yield version, parent
