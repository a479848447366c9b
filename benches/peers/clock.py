"""How a call is timed: as benches/norms/timing.rs times ours, which says what cold and warm mean."""
import statistics

import torch

# The least that is written to empty the L2 cache, in bytes.
FLUSH = 256 << 20
SAMPLES = 50
# Calls in a graph of the warm measurement.
CALLS_PER_GRAPH = 10
# Calls before the first that counts: libraries compile and pick their kernels in them.
WARM_UP = 3


class Clock:
    """Times on a stream of its own, which `stream` must be made the current one for all that is timed."""

    def __init__(self):
        l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
        self.stream = torch.cuda.Stream()
        self.flush = torch.empty(max(FLUSH, 4 * l2), dtype=torch.uint8, device="cuda")

    def time(self, call):
        """Cold and warm microseconds of a call, and whether captured graphs of it or the calls were timed."""
        for _ in range(WARM_UP):
            call()
        torch.cuda.synchronize()
        one, several = self._capture(call, 1), self._capture(call, CALLS_PER_GRAPH)
        how = "graph" if one and several else "calls"
        if how == "calls":
            one = call

            def several():
                for _ in range(CALLS_PER_GRAPH):
                    call()

        cold = self._median(one, self.flush.zero_)
        warm = self._median(several, lambda: None) / CALLS_PER_GRAPH
        return cold, warm, how

    def _median(self, work, before):
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(SAMPLES)]
        for start, end in pairs:
            before()
            start.record()
            work()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) * 1e3 for start, end in pairs)

    def _capture(self, call, calls):
        """What replays a graph of so many calls, or None where they cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Gradients are computed on a thread of their own, which the stricter modes would watch too.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for _ in range(calls):
                    call()
            finally:
                graph.capture_end()
        except RuntimeError:
            torch.cuda.synchronize()
            return None
        return graph.replay
