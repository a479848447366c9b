#!/usr/bin/env python3
"""The cases of benches/suite.json, as benches/norms/suite.rs reads them. As a program it prints their names and floors:

    suite.py quick|full|cpu
"""
import json
import math
import pathlib
import sys
from dataclasses import dataclass

SIZES = {"f32": 4, "f16": 2, "bf16": 2}


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
    def backward(self):
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
    def floor_bytes(self):
        """Every tensor of the call read or written once."""
        rows = self.layout == "rows"
        if self.residual:
            tensors = 4 if rows else 5 if self.backward else 3
        else:
            tensors = 3 if self.backward else 2
        return tensors * math.prod(self.shape) * SIZES[self.type]


def cases(extent):
    """Every case of the suite to that extent (quick, full or cpu), each once, in the order of the file."""
    suite = json.loads((pathlib.Path(__file__).parent.parent / "suite.json").read_text())
    lines = suite["quick"] + suite["full"] if extent == "full" else suite[extent]
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
        print(one.name, one.floor_bytes)
