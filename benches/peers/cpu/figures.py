#!/usr/bin/env python3
"""The tables of a run of `run`. As a program it prints them again:

    figures.py RUN.json
"""
import json
import math
import statistics
import sys
from dataclasses import dataclass

OWN, CEILING = "warpnorm", "copy"
# Upper bounds of one tensor's bytes: of tiny ones a call is mostly overhead; x and y of small ones fit the second cache of most
# processors, of medium ones the last, which one huge tensor does not.
SIZE_CLASSES = [("tiny", 64 << 10), ("small", 1 << 20), ("medium", 8 << 20), ("large", 32 << 20), ("huge", math.inf)]
PASSES = {"fwd": "forward", "eval_fwd": "forward", "bwd": "backward", "fwdbwd": "forward and backward"}


@dataclass(frozen=True)
class Row:
    """A case at a number of threads."""

    case: str
    threads: int
    size_class: str
    us: float
    # The fastest other implementation that agrees with ours, and its time; None where there is none.
    best: tuple[str, float] | None
    copy_us: float | None

    @property
    def direction(self) -> str:
        return PASSES[self.case.split("/")[1].split("+")[0]]

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer."""
        return self.best[1] / self.us if self.best else None

    @property
    def share(self) -> float | None:
        """Of the speed of a copy that moves as many bytes."""
        return self.copy_us / self.us if self.copy_us else None


def size_class(tensor_bytes: int) -> str:
    return next(name for name, bound in SIZE_CLASSES if tensor_bytes < bound)


def lower_quartile(values: list[float]) -> float:
    """With the median as the middle of an even number of values, and so on for the quarters."""
    return statistics.quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]


def rows(run: dict) -> list[Row]:
    """Those that were measured, in the order of the results."""
    measured: dict[tuple, dict] = {}
    for result in run["results"]:
        if result["min_us"] and not result["left_out"] and not result["disagrees"]:
            measured.setdefault((result["case"], result["threads"]), {})[result["peer"]] = result
    found = []
    for (case, threads), peers in measured.items():
        if OWN not in peers:
            continue
        times = {name: statistics.median(result["min_us"]) for name, result in peers.items()}
        others = [(name, us) for name, us in times.items() if name not in (OWN, CEILING)]
        best = min(others, key=lambda other: other[1], default=None)
        kind = size_class(peers[OWN]["tensor_bytes"])
        found.append(Row(case, threads, kind, times[OWN], best, times.get(CEILING)))
    return found


def summary(found: list[Row]) -> list[tuple]:
    """Threads, passes, size class, cases, those of them with ratios below 1, lower quartile, geometric mean and least of the
    ratios, median and least share."""
    lines = []
    directions, sizes = [None, *dict.fromkeys(PASSES.values())], [None, *(name for name, _ in SIZE_CLASSES)]
    for threads in dict.fromkeys(row.threads for row in found):
        for direction in directions:
            for size in sizes:
                chosen = [
                    row for row in found
                    if row.threads == threads
                    and direction in (None, row.direction)
                    and size in (None, row.size_class)
                ]
                ratios = [row.ratio for row in chosen if row.ratio]
                shares = [row.share for row in chosen if row.share]
                if ratios:
                    lines.append((
                        threads, direction or "all", size or "all", len(ratios), sum(ratio < 1 for ratio in ratios),
                        lower_quartile(ratios), statistics.geometric_mean(ratios), min(ratios),
                        statistics.median(shares) if shares else None, min(shares, default=None),
                    ))
    return lines


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def page(run: dict) -> str:
    """Markdown."""
    lines = ["# CPU backend and its peers", ""]
    lines += [f"- {name}: {value}" for name, value in run["machine"].items()]
    for peer in run["peers"]:
        version = f"- {peer['name']} {peer['version']}"
        lines.append(f"- **missing: {peer['name']}** ({peer['missing']})" if peer["missing"] else version)
    lines += _left_out(run)
    found = rows(run)
    lines += [
        "", "How many times as fast as the fastest peer that computes the same (above 1: faster), and the share of a",
        "copy's speed at the same bytes.", "",
        "| threads | passes | tensors | cases | slower | lower quartile | geometric mean | least "
        "| median share of a copy | least share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for threads, direction, size, cases, slower, quartile, mean, least, share, least_share in summary(found):
        lines.append(
            f"| {threads} | {direction} | {size} | {cases} | {slower} | {quartile:.2f} | {mean:.2f} | {least:.2f} "
            f"| {number(share, '.0%')} | {number(least_share, '.0%')} |"
        )
    lines += [
        "", "| case | threads | us | best peer | its us | ratio | share of a copy |", "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        name, us = row.best or ("none", None)
        lines.append(
            f"| {row.case} | {row.threads} | {row.us:.1f} | {name} | {number(us, '.1f')} | {number(row.ratio, '.2f')} "
            f"| {number(row.share, '.0%')} |"
        )
    return "\n".join(lines) + "\n"


def _left_out(run: dict) -> list[str]:
    """Reasons for which peers have no time or none that counts, with the number of cases."""
    reasons: dict[tuple, set] = {}
    for result in run["results"]:
        reason = result["left_out"] or result["disagrees"] and "computes something else"
        if reason:
            reasons.setdefault((result["peer"], reason), set()).add(result["case"])
    return [f"- {peer}, cases left out: {len(cases)} ({reason})" for (peer, reason), cases in reasons.items()]


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(page(json.load(file)), end="")
