"""A Ray cluster that loses a replica of the model, then a machine, while clients ask: what becomes of their requests.

python benchmarks/ray_failure.py model.gguf --clients 8 --seconds 60

A cluster of three node processes is started on this machine, and `ggpy serve --ray` on it, with two replicas of the
model. Clients ask, one request after the other, half of them streamed. After a third of the time the process of a
replica is killed, after two thirds a node with all that runs on it. Each answer is compared with the one that the
library gives to the same request alone. A request is *answered*, or *told*: a status 503, or an error as the stream's
last event. All else counts as wrong. The exit status is 1 where there is any, or where no other replica is started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ray.cluster_utils import Cluster

from ggpy import LLM, SamplingParams

WORDS = [
    "the",
    "river",
    "runs",
    "through",
    "a",
    "city",
    "of",
    "old",
    "stone",
    "and",
    "new",
    "glass",
    "where",
    "people",
    "read",
    "write",
    "trade",
    "and",
    "sing",
]
OBJECT_STORE = 80 << 20  # bytes a node, about the least that Ray takes


@dataclass
class Counts:
    """Requests by what became of them."""

    answered: int = 0
    told: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    ends: list[float] = field(default_factory=list)  # of answers, by time.monotonic


def questions(llm: LLM, n: int, rng: random.Random, n_tokens: int) -> list[tuple[dict[str, Any], str]]:
    """Requests with the texts that they are answered with, each found alone."""
    found = []
    for i in range(n):
        prompt = " ".join(rng.choices(WORDS, k=rng.choice((4, 12, 40))))
        values: dict[str, Any] = {"max_tokens": n_tokens, "seed": i, "temperature": rng.choice((0.0, 0.8))}
        (output,) = llm.generate(prompt, SamplingParams(**values, ignore_eos=True))
        found.append(({"prompt": prompt, **values, "ignore_eos": True}, output.outputs[0].text))
    return found


async def client(url: str, asked: list[Any], counts: Counts, rng: random.Random, end: float) -> None:
    """One client's requests, one after the other."""
    async with httpx.AsyncClient(timeout=120) as http:
        while time.monotonic() < end:
            body, expected = rng.choice(asked)
            stream = rng.random() < 0.5
            try:
                if stream:
                    async with http.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as answer:
                        said, error = await _streamed(answer)
                else:
                    answer = await http.post(f"{url}/v1/completions", json=body)
                    whole = answer.json()
                    error = None if answer.status_code == 200 else f"status {answer.status_code}"
                    said = whole["choices"][0]["text"] if error is None else ""
            except (httpx.HTTPError, ValueError, KeyError) as problem:
                counts.wrong[f"{type(problem).__name__}: {problem}"] += 1
                continue
            if error == "status 503" or error == "event replica_lost":
                counts.told[error] += 1
            elif error is not None or said != expected:
                counts.wrong[error or "another text"] += 1
            else:
                counts.answered += 1
                counts.ends.append(time.monotonic())


async def _streamed(answer: httpx.Response) -> tuple[str, str | None]:
    """The text of a stream, and what went wrong, if anything did."""
    if answer.status_code != 200:
        return "", f"status {answer.status_code}"
    said, ended = "", False
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            ended = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                return said, f"event {event['error']['code']}"
            said += event["choices"][0]["text"]
    return said, None if ended else "cut off, and not told"


def replicas() -> dict[int, int]:
    """The processes of replicas, with their nodes' processes."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica:ggpy-"):
                    found[int(folder.name)] = int(re.search(r"PPid:\t(\d+)", (folder / "status").read_text())[1])  # type: ignore[index]
            except OSError:
                continue
    return found


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with LLM(args.model, n_ctx=512, n_threads=1) as llm:
        asked = questions(llm, 24, rng, args.tokens)

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes = [cluster.add_node(**node) for _ in range(2)]
    command = [sys.executable, "-m", "ggpy", "serve", "--ray", "--ray-replicas", "2", "-m", args.model, "-t", "1"]
    command += ["-c", "2048", "--parallel", str(args.parallel), "--port", "0"]
    env = {**os.environ, "RAY_ADDRESS": cluster.address}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    try:
        url = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))  # type: ignore[union-attr]
        counts = Counts()
        await _wait_for_replicas(url, asked[0][0])
        began = time.monotonic()
        clients = [
            asyncio.create_task(client(url, asked, counts, random.Random(rng.random()), began + args.seconds))
            for _ in range(args.clients)
        ]
        lost = []
        for share, what in ((1 / 3, "a replica"), (2 / 3, "a node")):
            await asyncio.sleep(began + args.seconds * share - time.monotonic())
            told = counts.told.total()
            before = replicas()
            on = {one.all_processes["raylet"][0].process.pid: one for one in nodes}
            victim = next(pid for pid, raylet in before.items() if what != "a node" or raylet in on)
            killed = time.monotonic()
            if what == "a node":
                cluster.remove_node(on[before[victim]], allow_graceful=False)
            else:
                os.kill(victim, signal.SIGKILL)
            while len(set(replicas()) - {victim}) < 2 and time.monotonic() < began + args.seconds:
                await asyncio.sleep(0.1)
            back = time.monotonic() - killed
            there = len(set(replicas()) - {victim}) >= 2
            print(f"killed {what}: another was started after {back:.1f} s" if there else f"{what}: none came back")
            lost.append(not there)
            between = sum(killed < end < killed + 5 for end in counts.ends)
            print(f"  told {counts.told.total() - told}, answered by others in the 5 s after: {between}")
        await asyncio.gather(*clients)
        n = counts.answered + counts.told.total() + counts.wrong.total()
        print(f"requests {n}: answered {counts.answered}, told {dict(counts.told)}, wrong {dict(counts.wrong)}")
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
        left = replicas()
        print(f"server ended with {status}, replicas left: {len(left)}")
        return int(bool(counts.wrong or any(lost) or status or left))
    finally:
        server.kill()
        cluster.shutdown()


async def _wait_for_replicas(url: str, body: dict[str, Any]) -> None:
    """Wait until the model answers, and both replicas are there."""
    async with httpx.AsyncClient(timeout=600) as http:
        (await http.post(f"{url}/v1/completions", json=body)).raise_for_status()
    while len(replicas()) < 2:
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)  # the second one loads


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
