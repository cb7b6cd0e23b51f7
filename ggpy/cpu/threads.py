"""The thread team: Python threads that walk programs together in machine code, meeting at barriers, with no Python
between operations.

Between steps workers spin for a few milliseconds, so that the next token finds them awake, then sleep; sooner where
other processes keep the CPUs busy.
"""

from __future__ import annotations

import threading

import numpy as np

from ggpy.cpu.isa.layout import FEWEST_SPINS, LINE, MOST_PATIENCE, NAP, NAP_NS, PATIENCE, SPINS, STATES, STOP
from ggpy.cpu.kernels import kernel
from ggpy.host.cores import usable_cpus


class Team:
    """`n_threads` threads, the caller's among them, that run programs, one at a time.

    Models that take turns, as one that drafts for another, share a team: of two, the idle one's threads would wait
    awake on the CPUs that the other needs."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        words = np.zeros((STATES + LINE * (n_threads + 1)) // 8, np.int64)
        self._words = words
        self._team = (words.ctypes.data + LINE - 1) // LINE * LINE
        self._sleepers = np.zeros(n_threads, np.int64)
        self._worker_loop, self._submit_step, self._run_program = (
            kernel(name).call for name in ("worker_loop", "submit_step", "run_program")
        )
        self._where_sleepers = self._sleepers.ctypes.data
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._words[:] = 0
        patience = SPINS if self.n_threads <= usable_cpus() else FEWEST_SPINS
        words = self._words[(self._team - self._words.ctypes.data) // 8 :]
        words[MOST_PATIENCE // 8], words[NAP // 8 + 1] = patience, NAP_NS
        words[(STATES + PATIENCE) // 8 :: LINE // 8] = patience
        self._alarms = [threading.Semaphore(0) for _ in range(self.n_threads)]
        self._workers: list[threading.Thread] | None = [
            threading.Thread(target=self._work, args=(tid,), daemon=True, name=f"ggpy-{tid}")
            for tid in range(1, self.n_threads)
        ]
        for worker in self._workers:
            worker.start()

    def lose_threads(self) -> None:
        """Forget the threads in a child made by `fork`, which has none: the next step starts new ones."""
        self._workers = None

    def _work(self, tid: int) -> None:
        job = 0
        while True:
            job = self._worker_loop(self._team, tid, self.n_threads, job)
            if self._closed:
                return
            self._alarms[tid].acquire()

    def run(self, ops: int, n_ops: int, step: int) -> None:
        """One step of a program, given by the addresses of its operations' records and of its step's: returns when
        every thread has finished."""
        if self._workers is None:
            self._start()
        while True:
            asleep = self._submit_step(ops, n_ops, step, self._team, self.n_threads, self._where_sleepers)
            try:
                for i in range(abs(asleep)):
                    self._alarms[int(self._sleepers[i])].release()
            finally:
                if asleep > 0:
                    self._run_program(ops, n_ops, step, self._team, 0, self.n_threads)
            if asleep >= 0:
                return

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._words[(self._team - self._words.ctypes.data + STOP) // 8] = 1
        for alarm in self._alarms:
            alarm.release()
        for worker in self._workers or ():
            worker.join()
