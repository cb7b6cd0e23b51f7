"""A Ray cluster of several node processes on this machine, and a server on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST = 120  # seconds, on a machine that does much else


def node(**others: Any) -> dict[str, Any]:
    """The arguments of a node: one logical CPU, and about the least memory for objects that Ray takes."""
    return {"num_cpus": 1, "object_store_memory": 80 << 20, **others}


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """A head and two nodes; processes find it by RAY_ADDRESS, which is in the environment within the block."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args=node(include_dashboard=False))
    try:
        for _ in range(2):
            cluster.add_node(**node())
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def replicas(cluster: Any) -> list[int]:
    """The processes of models on a cluster, of which there may be others on this machine."""
    nodes = {one.all_processes["raylet"][0].process.pid for one in cluster.list_all_nodes()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"PPid:\t(\d+)", (folder / "status").read_text())
            named = (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica:ggpy-")
        except OSError:
            continue  # it ended meanwhile
        if named and parent and int(parent[1]) in nodes:
            found.append(int(folder.name))
    return sorted(found)


def wait_for(condition: Callable[[], Any], seconds: float = LONGEST) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`ggpy serve --ray`, begun in a folder, within the block; yields its address and its process, which is told to
    stop at the end."""
    command = [sys.executable, "-m", "ggpy", "serve", "--ray", "--port", "0", *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                break
        else:
            raise AssertionError("".join(said))
        yield found[0], process
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONGEST) == 0
    finally:
        process.kill()
