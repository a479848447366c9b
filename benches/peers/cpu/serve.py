"""A Python worker's side of the conversation with `run`: a request per line on standard input, an answer per line on
standard output. rust/src/serve.rs and worker_onednn.cpp are the same in their languages."""
import json
import math
import pathlib
import sys
import time

import numpy as np

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import suite

EPS = 1e-5
TYPES = {"f32": np.float32, "f16": np.float16}
# Values after which they come again.
PERIOD = 1 << 20
# Bytes.
LINE = 64

WARM_UP = 3
# So long that reading the clock does not count.
SAMPLE_US = 150
MIN_SAMPLES, MAX_SAMPLES = 15, 3000
# After which even a slow call has been timed enough.
MAX_SECONDS, MIN_SLOW_SAMPLES = 1.0, 3
# Elements of a result that are compared one by one.
DIGEST = 64


class LeftOut(Exception):
    """The peer has no such op, or not for such tensors."""


def noise(start: int, count: int) -> np.ndarray:
    """What benches/norms/noise.rs makes: so many values from one on, in f32."""
    with np.errstate(over="ignore"):
        bits = np.arange(1, PERIOD + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
        bits ^= bits >> 15
        bits *= np.uint32(0x85EBCA77)
        bits ^= bits >> 13
    values = (bits >> 8).astype(np.float32) / np.float32(1 << 23) - np.float32(0.75)
    return np.resize(values, start + count)[start:]


def from_line(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a line of the cache, as the tensors of PyTorch and JAX do: numpy's need not."""
    room = np.empty(array.nbytes + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    copy = room[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Inputs:
    """Those of benches/norms/calls.rs: tensors as they lie in memory."""

    def __init__(self, case):
        dtype = TYPES[case.type]
        # BatchNorm and InstanceNorm keep their parameters in f32, the others in the tensor's type.
        params = np.float32 if case.op in ("batch_norm", "instance_norm") else dtype
        size = math.prod(case.shape)
        self.x = from_line(noise(0, size).astype(dtype).reshape(case.dims))
        self.dy = from_line(noise(1, size).astype(dtype).reshape(case.dims))
        spread = noise(0, case.channels + 1).astype(dtype).astype(np.float32) / 2
        self.weight = (1 + spread[:-1]).astype(params)
        self.bias = spread[1:].astype(params)


def serve(version, prepare):
    """Says who it is, then answers until the requests end.

    `prepare` makes of a case its call, and what names the arrays of the call's result.
    """
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print

    def say(message):
        print(json.dumps(message), file=out, flush=True)

    cases = {case.name: case for case in suite.cases("cpu")}
    say({"version": version})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say(_answer(*prepare(cases[request["case"]]), request))
        except Exception as error:  # one case must not end the run
            text = str(error).strip().splitlines() or [type(error).__name__]
            kind = "" if isinstance(error, LeftOut) else type(error).__name__ + ": "
            say({"left_out": kind + text[0]})


def _answer(call, outputs, request):
    times = sorted(_time(call, request["min_time"]))
    named = outputs(call()) if request["check"] else {}
    return {
        "min_us": times[0],
        "median_us": times[len(times) // 2],
        "outputs": {name: digest(array) for name, array in named.items() if array is not None},
    }


def digest(array):
    """What two results are compared by."""
    values = np.asarray(array).astype(np.float32).ravel()
    samples = values[np.arange(DIGEST) * values.size // DIGEST].astype(float).tolist()
    mean_abs = float(np.abs(values.astype(np.float64)).mean())
    return {
        "len": values.size,
        "mean_abs": mean_abs if math.isfinite(mean_abs) else None,
        "samples": [value if math.isfinite(value) else None for value in samples],
    }


def _time(call, min_time):
    """Microseconds of a call, in samples of several calls each."""

    def timed(calls):
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return (time.perf_counter_ns() - start) / 1e3 / calls

    timed(WARM_UP)
    calls = min(max(math.ceil(SAMPLE_US / max(timed(1), 0.5)), 1), 500)
    times = []
    start = time.perf_counter()
    while len(times) < MAX_SAMPLES:
        passed = time.perf_counter() - start
        if len(times) >= MIN_SAMPLES and passed >= min_time:
            break
        if len(times) >= MIN_SLOW_SAMPLES and passed >= max(MAX_SECONDS, min_time):
            break
        times.append(timed(calls))
    return times
