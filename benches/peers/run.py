#!/usr/bin/env python3
"""Times what others make of the cases of benches/suite.json, as `cargo bench` times ours.

    run.py [--quick] [--only PATTERN] [--peers NAME,...] [--seconds N] OUT.json

PyTorch eager (`torch`, and `torch-native` with cuDNN off), `torch-compile`, and where they are installed apex, Liger
and quack. One that is missing is named in the file with the reason, and so is every case that a peer leaves out. Without
PyTorch all are missing, and the exit status is 1. The example `perf_report` joins the file with ours.

Peers that compile for each shape come last, and what `--seconds` leaves no time for is left out: with --quick 140, so
that our own run (60 s at most), this and one last compilation (30 s) stay below four minutes.
"""
import argparse
import datetime
import importlib
import itertools
import json
import sys
import time

sys.dont_write_bytecode = True  # this folder may be part of a package or read-only

import suite

# Modules and classes, in the order they are timed in.
PEERS = [
    ("torch", "peer_torch", "Eager"),
    ("torch-native", "peer_torch", "Native"),
    ("apex", "peer_apex", "Apex"),
    ("liger", "peer_liger", "Liger"),
    ("quack", "peer_quack", "Quack"),
    ("torch-compile", "peer_torch", "Compiled"),
]
QUICK_SECONDS = 140


def first_line(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def load(wanted):
    """The peers that are here, and an entry of the file for each that was asked for."""
    found, entries = [], []
    for name, module, kind in PEERS:
        if wanted and name not in wanted:
            continue
        try:
            peer = getattr(importlib.import_module(module), kind)()
        except Exception as error:  # whatever an import does: the others can still be timed
            print(f"missing: {name} ({first_line(error)})", file=sys.stderr)
            entries.append({"name": name, "version": None, "missing": first_line(error)})
            continue
        found.append(peer)
        entries.append({"name": name, "version": peer.version, "missing": None})
    return found, entries


def measure(peer, case, clock):
    """The entry of the file for a case."""
    import torch

    import tensors

    entry = {
        "case": case.name, "peer": peer.name, "floor_bytes": case.floor_bytes, "cold_us": None, "warm_us": None,
        "copy_cold_us": None, "copy_warm_us": None, "how": None, "left_out": None,
    }
    try:
        # A backward pass runs on the stream of its forward pass, which must be the one that is captured.
        with torch.cuda.stream(clock.stream), torch.set_grad_enabled(case.backward or not case.eval):
            call = peer.call(case, tensors.Tensors(case))
            entry["cold_us"], entry["warm_us"], entry["how"] = clock.time(call)
    except tensors.NoSuchOp as reason:
        entry["left_out"] = str(reason)
    except torch.cuda.OutOfMemoryError:
        entry["left_out"] = "out of memory"
    except Exception as error:  # one case must not end the run
        entry["left_out"] = first_line(error)
    return entry


def machine():
    import torch

    cudnn = torch.backends.cudnn.version()
    return {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "torch's CUDA": str(torch.version.cuda),
        "torch's cuDNN": str(cudnn),
    }


def by_turns(cases):
    """The first case of each op, then the second of each, and so on: where time runs out, every op has had some."""
    ops = {}
    for case in cases:
        ops.setdefault(case.op, []).append(case)
    turns = itertools.zip_longest(*ops.values())
    return [case for turn in turns for case in turn if case is not None]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the cases of cargo bench -- --quick")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only cases whose names contain it")
    parser.add_argument("--peers", type=lambda names: names.split(","), metavar="NAME,...", help="only these")
    parser.add_argument("--seconds", type=float, metavar="N", help="start no case after so many seconds")
    parser.add_argument("out", metavar="OUT.json")
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = QUICK_SECONDS if options.quick else float("inf")
    return options


def no_torch():
    """Why nothing can be timed, or None."""
    try:
        import torch
    except ImportError as error:
        return f"no PyTorch: {error}"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def main():
    options = arguments()
    start = time.monotonic()
    run = {"machine": {}, "peers": [], "results": []}

    def write():
        with open(options.out, "w") as out:
            json.dump(run, out, indent=1)

    reason = no_torch()
    if reason:
        names = [name for name, _, _ in PEERS if not options.peers or name in options.peers]
        run["peers"] = [{"name": name, "version": None, "missing": reason} for name in names]
        write()
        sys.exit(reason)

    import torch
    from clock import Clock

    run["machine"] = machine()
    peers, run["peers"] = load(options.peers)
    extent = "quick" if options.quick else "full"
    cases = by_turns([case for case in suite.cases(extent) if options.only in case.name])
    clock = Clock()
    written = start
    for peer in peers:
        for i, case in enumerate(cases):
            passed = time.monotonic() - start
            print(f"[{peer.name} {i + 1}/{len(cases)}, {passed:.0f} s] {case.name}", file=sys.stderr)
            if passed > options.seconds:
                left_out = {"case": case.name, "peer": peer.name, "floor_bytes": case.floor_bytes}
                run["results"].append(left_out | {"left_out": f"more than {options.seconds:.0f} s had passed"})
                continue
            entry = measure(peer, case, clock)
            run["results"].append(entry)
            if entry["left_out"]:
                print(f"left out: {entry['left_out']}", file=sys.stderr)
            # Tensors of one case are rarely of use to the next, and some take most of the memory.
            torch.cuda.empty_cache()
            if time.monotonic() - written > 10:  # a run that is cut short leaves what it has
                write()
                written = time.monotonic()
    write()


if __name__ == "__main__":
    main()
