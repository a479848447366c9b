"""Whether two implementations computed the same: their results, as digests."""
# Of the mean magnitude of the result, or of the value where that is larger. In f32 implementations add in other orders
# and some take E[x²] - E[x]²; in f16 some round weights and intermediate values to it.
TOLERANCES = {"f32": 1e-3, "f16": 2e-2}


def disagreement(own: dict, other: dict, dtype: str, wanted: list[str]) -> str | None:
    """What differs, or None. `wanted` are results that both must have; of others those count that both have."""
    tolerance = TOLERANCES[dtype]
    for name in wanted:
        if name not in own or name not in other:
            return f"no {name}"
    for name in sorted(own.keys() & other.keys()):
        ours, theirs = own[name], other[name]
        if ours["len"] != theirs["len"]:
            return f"{name} has {theirs['len']} elements instead of {ours['len']}"
        scale = ours["mean_abs"]
        if scale is None or theirs["mean_abs"] is None:
            return f"{name} is not finite"
        if abs(scale - theirs["mean_abs"]) > tolerance * scale:
            return f"{name} has a mean magnitude of {theirs['mean_abs']:.4g} instead of {scale:.4g}"
        for a, b in zip(ours["samples"], theirs["samples"]):
            if a is None or b is None or abs(a - b) > tolerance * max(scale, abs(a)):
                return f"{name} has {b} instead of {a}"
    return None


def wanted(case) -> list[str]:
    """The results that a case is judged by."""
    return ["y"] * case.forward + ["dx", "dweight"] * case.backward
