#!/usr/bin/env python3
"""The cases of benches/suite.json, as benches/norms/suite.rs reads them. As a program it prints their names, and
their floors on a GPU and on a CPU:

    suite.py quick|full|cpu|test
"""
import json
import math
import pathlib
import sys
from dataclasses import dataclass

SIZES = {"f32": 4, "f16": 2, "bf16": 2}
# Bytes from which on no last cache of a few cores holds a tensor.
HUGE = 32 << 20


@dataclass(frozen=True)
class Case:
    op: str
    call: str
    type: str
    layout: str  # first, last or rows
    shape: tuple  # samples, channels, positions; or rows, columns
    groups: int | None

    @property
    def options(self):
        return self.call.split("+")[1:]

    @property
    def forward(self):
        return "fwd" in self.call.split("+")[0]

    @property
    def backward(self):
        """After the forward pass where there is one."""
        return self.call.split("+")[0].endswith("bwd")

    @property
    def eval(self):
        return self.call.startswith("eval_")

    @property
    def residual(self):
        return "residual" in self.options

    @property
    def channels(self):
        return self.shape[1]

    @property
    def dims(self):
        """As they lie in memory."""
        if self.layout == "last":
            return (self.shape[0], *self.shape[2:], self.shape[1])
        return self.shape

    @property
    def name(self):
        groups = f"/g{self.groups}" if self.groups else ""
        return f"{self.op}/{self.call}/{self.type}/{self.layout}/{'x'.join(map(str, self.dims))}{groups}"

    @property
    def tensor_bytes(self):
        return math.prod(self.shape) * SIZES[self.type]

    @property
    def floor_bytes(self):
        """Every tensor of each pass read or written once."""
        rows = self.layout == "rows"
        forward, backward = ((4, 4) if rows else (3, 5)) if self.residual else (2, 3)
        tensors = forward * self.forward + backward * self.backward
        return tensors * self.tensor_bytes

    @property
    def cpu_floor_bytes(self):
        """No cache holds a huge tensor from one pass to the next, and a BatchNorm's statistics are a pass of their own."""
        twice = self.op == "batch_norm" and not self.eval and self.tensor_bytes >= HUGE
        return self.floor_bytes + twice * (self.forward + 2 * self.backward) * self.tensor_bytes


def cases(extent):
    """Every case of the suite to that extent (quick, full, cpu or test), each once, in the order of the file."""
    suite = json.loads((pathlib.Path(__file__).parent.parent / "suite.json").read_text())
    parts = {"full": ["quick", "full"], "test": ["test", "cpu"]}.get(extent, [extent])
    lines = [line for part in parts for line in suite[part]]
    found = {}
    for line in lines:
        for shape in line["shapes"]:
            for layout in line["layouts"]:
                for dtype in line["types"]:
                    for call in line["calls"]:
                        case = Case(line["op"], call, dtype, layout, tuple(shape), line.get("groups"))
                        found.setdefault(case.name, case)
    return list(found.values())


if __name__ == "__main__":
    for one in cases(sys.argv[1]):
        print(one.name, one.floor_bytes, one.cpu_floor_bytes)
