"""Processes that time: one for each implementation and number of threads, all through a round."""
import json
import os
import pathlib
import signal
import subprocess

# Tensors are given back to the C library and taken again in each call; without these it would give large ones back to
# the system, and the calls would be timed with its page faults.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26),
}
# Memory in pages of 2 MiB, of whatever allocates by the C library (2.35 and later): with pages of 4 KiB the same program is up
# to twice as slow as it was in its last process, by where they lie.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
NICE = "-15"
# The longest that a case may take, with compiling it.
SECONDS = 300


class Failed(Exception):
    """A worker that ended or went silent."""


class Worker:
    def __init__(self, name: str, command: list[str], env: dict, threads: int, log: pathlib.Path):
        self._arguments = (name, command, env, threads, log)
        count = str(threads)
        env = os.environ | KEEP_MEMORY | HUGE_PAGES | {
            "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count, "JAX_PLATFORMS": "cpu",
        } | env
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        # A worker must not outlive `run`, since nothing would wake it. Where more priority is not permitted, `nice` says
        # so in the log and goes on.
        pin = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", NICE, "taskset", "-c", ",".join(map(str, cpus))]
        with open(log, "a") as errors:
            self.process = subprocess.Popen(
                pin + command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )
        self.log = log
        self.version = self._read()["version"]
        self._pause()

    def ask(self, case: str, min_time: float, check: bool) -> dict:
        """Times a case while every other worker rests."""
        self.process.send_signal(signal.SIGCONT)
        try:
            request = {"case": case, "min_time": min_time, "check": check}
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError as error:
            raise Failed(self._last_words()) from error
        answer = self._read()
        self._pause()
        return answer

    def _pause(self):
        # Idle threads of some libraries spin for a while.
        self.process.send_signal(signal.SIGSTOP)

    def _read(self) -> dict:
        # A timer that kills the worker ends the read, too.
        previous = signal.signal(signal.SIGALRM, lambda *_: self.process.kill())
        signal.alarm(SECONDS)
        try:
            line = self.process.stdout.readline()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        if not line:
            raise Failed(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self.close()
        lines = self.log.read_text().strip().splitlines()
        return lines[-1] if lines else f"ended with status {self.process.returncode}"

    def again(self) -> "Worker":
        """One more like it, in place of this one."""
        return Worker(*self._arguments)

    def close(self):
        self.process.kill()  # also where it is stopped
        self.process.wait()
