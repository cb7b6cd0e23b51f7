"""A server under load: no token lost or mixed up, memory flat, little time of its own.

python benchmarks/server_load.py model.gguf --clients 64 --seconds 600 --parallel 8

Many clients stream completions from `ggpy serve`, each one after the other, with pauses of random lengths; some leave
in the middle. Hostile ones are among them: half-open connections, readers that are slow or read nothing, bodies of 100
MB, bodies that are no text, odd values in every field; and connections that ask for nothing. Each answer is compared
with the one that the library gives to the same request alone. Meanwhile `/health` is asked and the server's memory is
read. Then as many clients ask without pauses, and what they get a second is compared with the same requests given to
the engine in a process without a server; the clients' own work, on the same machine, counts as the server's. All of it
follows from --seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggpy import LLM, SamplingParams
from ggpy.engine.async_engine import AsyncEngine
from ggpy.protocol import llama_server, ollama
from ggpy.protocol.anthropic import MessagesBody
from ggpy.protocol.openai_bodies import ChatBody, CompletionBody
from ggpy.protocol.responses_bodies import ResponsesBody

TEXT = (
    "the river runs through a city of old stone and new glass where people read write trade and sing until late in the"
    " evening while boats carry bread salt wine letters and news from one bank to the other under seven bridges"
)
TIMEOUT = 10  # seconds that the server waits for its clients
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"


@dataclass(frozen=True)
class Question:
    """A request, and the text that it is answered with."""

    body: dict[str, Any]
    text: str
    n_tokens: int


@dataclass
class Counts:
    """A count of all that happened. waits: seconds until the first text, and between texts; health: of /health."""

    whole: int = 0
    left: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    hostile: Counter[str] = field(default_factory=Counter)
    n_tokens: int = 0
    first: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds from the start, bytes


def questions(llm: LLM, n: int, rng: random.Random, n_ctx: int) -> list[Question]:
    """Requests of different lengths, half of which begin alike, with their answers, each found alone."""
    found = []
    beginning = " ".join(rng.choices(TEXT.split(), k=40))
    for i in range(n):
        text = " ".join(rng.choices(TEXT.split(), k=rng.choice((4, 12, 60))))
        prompt = f"{beginning} {text}" if i % 2 else text
        n_tokens = min(rng.choice((4, 16, 32, 64)), n_ctx // 4)
        values: dict[str, Any] = {"max_tokens": n_tokens, "seed": i, "temperature": rng.choice((0.0, 0.8))}
        (output,) = llm.generate(prompt, SamplingParams(**values, ignore_eos=True))
        body = {"prompt": prompt, **values, "ignore_eos": True, "stream": True}
        found.append(Question(body, output.outputs[0].text, len(output.outputs[0].token_ids)))
    return found


class Connection:
    """HTTP of just what is needed, as a client library would take more time than the server."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.writer.close()

    def send(self, path: str, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)

    async def status(self) -> int:
        head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    async def texts(self) -> Any:
        """The pieces of a streamed completion, up to its end."""
        while True:
            line = await self.reader.readline()
            if not line or line == b"data: [DONE]\n":
                return
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                yield event["choices"][0]["text"]


async def client(port: int, asked: list[Question], counts: Counts, rng: random.Random, end: float, calm: bool) -> None:
    """One client's requests, one after the other. calm: with pauses, and some left in the middle."""
    while time.monotonic() < end:
        if calm:
            await asyncio.sleep(rng.expovariate(2.0))
        question = rng.choice(asked)
        leaves = rng.randrange(question.n_tokens) if calm and rng.random() < 0.2 else None
        try:
            async with Connection(port) as connection:
                began = time.monotonic()
                connection.send("/v1/completions", question.body)
                status = await connection.status()
                if status != 200:
                    counts.failed[f"status {status}"] += 1
                    continue
                said = ""
                async for text in connection.texts():
                    if not said:
                        counts.first.append(time.monotonic() - began)
                    said += text
                    if leaves is not None and len(said) >= leaves:
                        break
                if leaves is not None:
                    counts.left += 1
                    counts.wrong += not question.text.startswith(said)
                else:
                    counts.whole += 1
                    counts.n_tokens += question.n_tokens
                    counts.wrong += said != question.text
        except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:
            counts.failed[f"{type(error).__name__}: {error}"] += 1


FLOOD = {"prompt": "a", "max_tokens": 64, "n": 8, "stream": True, "ignore_eos": True}
HELLO = [{"role": "user", "content": "a"}]
BODIES = {
    "/v1/completions": (CompletionBody, {"prompt": "a", "max_tokens": 8}),
    "/v1/chat/completions": (ChatBody, {"messages": HELLO, "max_tokens": 8}),
    "/v1/responses": (ResponsesBody, {"input": "a", "max_output_tokens": 8}),
    "/v1/messages": (MessagesBody, {"messages": HELLO, "max_tokens": 8}),
    "/completion": (llama_server.CompletionBody, {"prompt": "a", "n_predict": 8}),
    "/api/chat": (ollama.ChatBody, {"model": "m", "messages": HELLO, "options": {"num_predict": 8}}),
}
ODD: list[Any] = [0, -1, 1.5, 10**30, True, "", "\x00", "a", [], [[]], [None], {}, {"a": [{"b": None}]}, [{"type": 3}]]


async def hostile(port: int, counts: Counts, rng: random.Random, end: float) -> None:
    """Clients that mean harm, one after the other, of each kind in turn; each has a few seconds."""
    kinds = [half_open, half_a_body, large_body, endless_body, no_text, no_reader, slow_reader, wrong_types]
    while time.monotonic() < end:
        kind = rng.choice(kinds)
        try:
            async with Connection(port) as connection:
                await asyncio.wait_for(kind(connection, rng), rng.uniform(0.5, 4))
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            pass  # it was shown the door, or its time is over
        except RuntimeError as error:
            counts.failed[str(error)] += 1
        counts.hostile[kind.__name__] += 1


async def half_open(connection: Connection, rng: random.Random) -> None:
    connection.writer.write((POST + b"content-length: 9")[: rng.randrange(len(POST))])
    await asyncio.sleep(4)


async def half_a_body(connection: Connection, rng: random.Random) -> None:
    connection.writer.write(POST + b'content-length: 100\r\n\r\n{"prompt": ')
    await asyncio.sleep(4)


async def large_body(connection: Connection, rng: random.Random) -> None:
    """A hundred megabytes, as long as they are taken."""
    connection.writer.write(POST + b"content-length: 100000000\r\n\r\n")
    await fill(connection, b"x" * 100_000, 1000)


async def endless_body(connection: Connection, rng: random.Random) -> None:
    """The same in chunks, without telling how much it will be."""
    connection.writer.write(POST + b"transfer-encoding: chunked\r\n\r\n")
    await fill(connection, b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000), 1000)


async def fill(connection: Connection, piece: bytes, n: int) -> None:
    for _ in range(n):
        connection.writer.write(piece)
        await connection.writer.drain()


async def no_text(connection: Connection, rng: random.Random) -> None:
    data = b'{"prompt": "' + rng.randbytes(rng.randrange(1, 200)) + b"\xff\xfe"
    connection.writer.write(POST + b"content-length: %d\r\n\r\n%b" % (len(data), data))
    check_status(await connection.status(), "invalid UTF-8", least=400)


async def no_reader(connection: Connection, rng: random.Random) -> None:
    connection.send("/v1/completions", FLOOD)
    await asyncio.sleep(4)


async def slow_reader(connection: Connection, rng: random.Random) -> None:
    connection.send("/v1/completions", FLOOD)
    while await connection.reader.read(20):
        await asyncio.sleep(0.2)


async def wrong_types(connection: Connection, rng: random.Random) -> None:
    """Any field of any body, and whatever may be its value."""
    path = rng.choice(list(BODIES))
    kind, body = BODIES[path]
    field = rng.choice(list(kind.model_fields)).rstrip("_")
    connection.send(path, {**body, field: rng.choice(ODD)})
    check_status(await connection.status(), f"{path} with {field}")


def check_status(status: int, what: str, least: int = 200) -> None:
    if not least <= status < 500 and status not in (501, 503):
        raise RuntimeError(f"{what}: status {status}")


async def idle(port: int, rng: random.Random, end: float) -> None:
    """A connection that asks for nothing, opened again when the server has closed it; all do not come at once."""
    await asyncio.sleep(rng.uniform(0, TIMEOUT))
    while (left := end - time.monotonic()) > 0:
        try:
            async with Connection(port) as connection:
                await asyncio.wait_for(connection.reader.read(1), left)
        except (OSError, asyncio.TimeoutError):
            await asyncio.sleep(0.1)


async def idle_cost(port: int, pid: int, n: int) -> dict[str, Any]:
    """CPU time and memory of the server without connections, and with some that ask for nothing."""
    seconds = TIMEOUT * 0.4  # before the server closes them
    found = {}
    for name, n_now in (("no connection", 0), (f"{n} idle connections", n)):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(n_now)]
        await asyncio.sleep(0.5)
        began = cpu_seconds(pid)
        await asyncio.sleep(seconds)
        used = 1000 * (cpu_seconds(pid) - began) / seconds
        found[name] = {"CPU ms a second": round(used, 1), "memory, MB": round(memory(pid) / 1e6, 1)}
        for _, writer in held:
            writer.close()
    return found


async def watch(port: int, pid: int, counts: Counts, end: float) -> None:
    """Time /health and read the server's memory, ten times a second."""
    began = time.monotonic()
    while time.monotonic() < end:
        asked = time.monotonic()
        async with Connection(port) as connection:
            connection.send("/health")
            await connection.status()
        counts.health.append(time.monotonic() - asked)
        counts.memory.append((asked - began, memory(pid)))
        await asyncio.sleep(0.1)


def memory(pid: int) -> int:
    """Bytes of a process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(options: argparse.Namespace) -> tuple[subprocess.Popen[str], int, dict[str, Any]]:
    """A server on a free port, with its model loaded, and how soon it listened."""
    began, found = time.monotonic(), {}
    command = [
        sys.executable, "-m", "ggpy", "serve", "-m", options.model, "--port", "0", "--parallel", str(options.parallel),
        "-c", str(options.n_ctx), "-t", str(options.threads), "--timeout", str(TIMEOUT), "--max-queue", "1000",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        if match := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
            port = int(match[1])
            found = {"s": round(time.monotonic() - began, 2), "CPU s": round(cpu_seconds(process.pid), 2)}
        if line.startswith("loaded "):
            return process, port, {"listens after": found}
    raise SystemExit("the server did not start")


async def load(port: int, pid: int, asked: list[Question], options: argparse.Namespace) -> Counts:
    counts, end = Counts(), time.monotonic() + options.seconds
    seeds = random.Random(options.seed)
    clients = [
        client(port, asked, counts, random.Random(seeds.random()), end, calm=True) for _ in range(options.clients)
    ]
    others = [hostile(port, counts, random.Random(seeds.random()), end) for _ in range(options.hostile)]
    others += [idle(port, random.Random(seeds.random()), end) for _ in range(options.idle)]
    await asyncio.gather(*clients, *others, watch(port, pid, counts, end))
    return counts


async def through_server(port: int, asked: list[Question], options: argparse.Namespace, seed: int) -> int:
    """Tokens of clients that ask without pauses for some seconds."""
    counts, end = Counts(), time.monotonic() + options.throughput
    seeds = random.Random(seed)
    each = [random.Random(seeds.random()) for _ in range(options.clients)]
    await asyncio.gather(*(client(port, asked, counts, rng, end, calm=False) for rng in each))
    if counts.failed or counts.wrong or not counts.whole:
        raise SystemExit(f"{counts.whole} answers, of which {counts.wrong} are wrong; failed: {dict(counts.failed)}")
    return counts.n_tokens


async def by_itself(llm: LLM, asked: list[Question], options: argparse.Namespace, seed: int) -> int:
    """Tokens of the same requests, given to the engine in this process."""
    engine, n_tokens, end = AsyncEngine(llm.engine, llm.lock), 0, time.monotonic() + options.throughput
    seeds = random.Random(seed)

    async def one(rng: random.Random) -> None:
        nonlocal n_tokens
        while time.monotonic() < end:
            question = rng.choice(asked)
            names = ("max_tokens", "seed", "temperature", "ignore_eos")
            params = SamplingParams(**{name: question.body[name] for name in names})
            async for _ in engine.follow(llm.request(llm.tokenize(question.body["prompt"]), params)):
                pass
            n_tokens += question.n_tokens

    await asyncio.gather(*(one(random.Random(seeds.random())) for _ in range(options.clients)))
    await asyncio.to_thread(engine.close)
    return n_tokens


def compare(llm: LLM, port: int, pid: int, asked: list[Question], options: argparse.Namespace) -> dict[str, Any]:
    """The server beside the engine, in turns, as the machine may be busy with other things: tokens a second, and CPU
    time a token of the process that has the engine."""
    rates: list[tuple[float, float]] = []
    times: list[tuple[float, float, float]] = []
    for i in range(options.rounds):
        began, cpu = time.monotonic(), time.process_time()
        n = asyncio.run(by_itself(llm, asked, options, options.seed + i))
        alone = n / (time.monotonic() - began), (time.process_time() - cpu) / n
        began, cpu, loop = time.monotonic(), cpu_seconds(pid), cpu_seconds(pid, event_loop_alone=True)
        n = asyncio.run(through_server(port, asked, options, options.seed + i))
        served = n / (time.monotonic() - began), (cpu_seconds(pid) - cpu) / n
        rates.append((alone[0], served[0]))
        times.append((alone[1], served[1], (cpu_seconds(pid, event_loop_alone=True) - loop) / n))
    return {
        "tokens/s of the engine, of the server, by round": [[round(one, 1) for one in pair] for pair in rates],
        "overhead in time, median of rounds, %": round(100 * statistics.median(a / b - 1 for a, b in rates), 1),
        "CPU ms a token of the engine, of the server, of its event loop, by round": [
            [round(1e3 * t, 3) for t in each] for each in times
        ],
        "overhead in CPU time, median of rounds, %": round(100 * statistics.median(b / a - 1 for a, b, _ in times), 1),
        "of that the event loop, median, %": round(100 * statistics.median(loop / a for a, _, loop in times), 1),
    }


def cpu_seconds(pid: int, event_loop_alone: bool = False) -> float:
    """CPU time of a process so far, or of its first thread, which has the event loop."""
    folder = Path(f"/proc/{pid}/task/{pid}" if event_loop_alone else f"/proc/{pid}")
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def growth(samples: list[tuple[float, int]]) -> float:
    """By what share memory grew over the last half: the median of its last tenth beside that of its first tenth. Bodies
    of tens of megabytes come and go meanwhile."""
    half = [size for _, size in samples[len(samples) // 2 :]]
    tenth = max(1, len(half) // 10)
    return statistics.median(half[-tenth:]) / statistics.median(half[:tenth]) - 1 if half else 0.0


def report(counts: Counts) -> dict[str, Any]:
    return {
        "answers": counts.whole,
        "left in the middle": counts.left,
        "hostile": dict(sorted(counts.hostile.items())),
        "wrong": counts.wrong,
        "failed": dict(counts.failed),
        "first text p50, p99, ms": [round(1000 * percentile(counts.first, share), 1) for share in (0.5, 0.99)],
        "/health p50, p99, max, ms": [round(1000 * percentile(counts.health, share), 1) for share in (0.5, 0.99, 1.0)],
        "memory at the end, MB": round(counts.memory[-1][1] / 1e6) if counts.memory else 0,
        "memory grown over the last half, %": round(100 * growth(counts.memory), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--hostile", type=int, default=4, help="hostile clients among them")
    parser.add_argument("--idle", type=int, default=500, help="connections that ask for nothing, beside them")
    parser.add_argument("--seconds", type=float, default=600, help="of load")
    parser.add_argument("--rounds", type=int, default=4, help="of clients without pauses, beside the engine alone")
    parser.add_argument("--throughput", type=float, default=10, help="seconds of each")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("-c", "--n-ctx", type=int, default=512)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    with LLM(options.model, n_ctx=options.n_ctx, n_parallel=options.parallel, n_threads=options.threads) as llm:
        asked = questions(llm, options.questions, random.Random(options.seed), options.n_ctx)
        process, port, result = start(options)
        try:
            result |= asyncio.run(idle_cost(port, process.pid, options.idle))
            counts = asyncio.run(load(port, process.pid, asked, options))
            result |= report(counts)
            result |= compare(llm, port, process.pid, asked, options) if options.rounds else {}
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
    result["tracebacks"] = said.count("Traceback")
    result["exit status"] = process.returncode
    print(json.dumps(result, indent=2))
    sys.exit(bool(counts.wrong or counts.failed or result["tracebacks"] or process.returncode))


if __name__ == "__main__":
    main()
