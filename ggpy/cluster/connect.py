"""The Ray cluster that this machine is a node of, and what a replica of a model takes of it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ggpy.errors import GGPYError, shown

_FILES = ("model", "draft_model", "chat_template")  # parameters of `LLM` that may name one


def connect(*parts: str) -> None:
    """Join the cluster of this machine, or the one that RAY_ADDRESS names. parts: modules of Ray that are needed.
    Raises GGPYError where one is not installed, or no cluster is found."""
    try:
        ray = import_module("ray")
        for part in parts:
            import_module(part)
    except ImportError as error:
        raise GGPYError(f"--ray needs the package {error.name or 'ray'}: pip install 'ggpy[ray]'.") from None
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise GGPYError(
            f"RAY_ADDRESS is {shown(address)}, a client's address; unset it and run this on a machine of the cluster,"
            " which `ray start --address=HEAD:6379` makes of this one."
        )
    try:
        if address not in ("", "auto"):
            _check_listens(address)  # Ray itself tries for two minutes
        ray.init("auto", namespace="ggpy", logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, TimeoutError, socket.gaierror):
        where = f"at {shown(address)} (RAY_ADDRESS)" if address else "on this machine"
        raise GGPYError(
            f"No Ray cluster is found {where}; begin one with `ray start --head`, or join one with"
            " `ray start --address=HEAD:6379`."
        ) from None
    except (RuntimeError, ValueError, OSError) as error:  # such as another version of Ray or Python on its head
        raise GGPYError(f"The Ray cluster cannot be joined: {shown(' '.join(str(error).split()), 300)}") from None


def _check_listens(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ConnectionError
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def resources(options: Mapping[str, Any]) -> dict[str, float]:
    """The resources that Ray reserves for a replica of a model. options: parameters of `LLM`. Raises GGPYError.

    With n_threads that many cores; without, it takes its machine's cores as it would by itself, and one is reserved.
    """
    device = options.get("device") or "cpu"
    found: dict[str, float] = {"num_cpus": options.get("n_threads") or 1}
    if device == "cpu":
        return found
    if (match := re.fullmatch(r"cuda(?::(\d+(?:,\d+)*))?", device)) is None:
        raise GGPYError(f"--device {shown(device)} is not known on a cluster, whose machines differ; say cpu or cuda.")
    return {**found, "num_gpus": len((match[1] or "0").split(","))}


def on_its_machine(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters of `LLM` for a process of Ray, which runs in another folder and sees only the GPUs reserved
    for it, counted from 0."""
    found = {key: absolute(value) if key in _FILES else value for key, value in options.items()}
    if isinstance(config := found.get("speculative_config"), dict):
        found["speculative_config"] = {**config, "model": absolute(config.get("model"))}
    if n := int(resources(options).get("num_gpus", 0)):
        found["device"] = "cuda:" + ",".join(map(str, range(n)))
    return found


def absolute(name: str | None) -> str | None:
    """A name, such as a model's, which in any folder is that of the same file, if it is one of a file."""
    return os.path.abspath(name) if name is not None and os.path.exists(name) else name


def takes_machine(options: Mapping[str, Any]) -> bool:
    """True where a replica takes all cores of its machine, so that there is one on each."""
    return set(resources(options)) == {"num_cpus"} and not options.get("n_threads")


def most_replicas(options: Mapping[str, Any]) -> int:
    """How many replicas of a model the machines of the cluster take. Raises GGPYError where none does."""
    import ray

    needed = resources(options)
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    n = 0
    for node in ray.nodes():
        if node["Alive"]:
            there = node["Resources"]
            fit = min(int(there.get(names[name], 0) // share) for name, share in needed.items())
            n += min(fit, 1) if takes_machine(options) else fit
    if not n:
        words = " and ".join(f"{share:g} {names[name]}s" for name, share in needed.items())
        raise GGPYError(f"No machine of the Ray cluster has the {words} that a replica takes; see -t and --device.")
    return n
