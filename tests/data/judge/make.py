#!/usr/bin/env python3
"""Makes outputs.safetensors and verdicts.json: outputs with mistakes in them, and what golden.py says of each.

Needs numpy and safetensors. The outputs are the golden expected values, rounded, then spoiled; a fixed seed keeps them
the same.
"""
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "golden"))
import golden  # noqa: E402

CASES = [
    "bn_shape_2x3x31_nchw_f16", "bn_ema_5steps_2x3x3x5_nhwc_f16", "bn_f16overflow_4x5x3_nchw_f16",
    "bn_inf_4x3x3x3_nhwc_f16", "bn_nan_4x3x3x3_nchw_f32", "bn_cumulative_resumed_4x2x2x3_nhwc_f32",
    "bn_subnormal_4x3x5_nchw_f32", "bneval_eval_2x5x6x7_nhwc_f16", "bneval_eval_3x3x3x3_nhwc_f32",
    "ln_shape_k3_2x3x4x5_rows_f16", "ln_const_6x33_rows_f32", "ln_nan_inf_4x7_rows_f32", "ln_subnormal_4x31_rows_f16",
    "ln_ill_normal_3x77_rows_f32", "rms_shape_k1_2x7_rows_f16", "rms_nan_inf_4x7_rows_f32", "rms_subnormal_4x9_rows_f32",
    "gn_shape_g2_2x6x3_nchw_f16", "gn_ill_2x4x5x6_nhwc_f32", "gn_const_2x4x4x4_nchw_f16", "gn_nan_inf_2x4x6_nchw_f32",
    "in_shape_2x3x3x5_nhwc_f16", "in_track_cumulative_3x4x4x3_nhwc_f32", "in_const_2x4x9_nchw_f32",
    "ineval_eval_3x4x5_nchw_f32",
]

rng = np.random.default_rng(7)


def step(e, t, dtype):
    """The next number of the type, away from zero, at one element."""
    g = e.astype(dtype)
    i = rng.integers(g.size)
    g.reshape(-1)[i] = np.nextafter(g.reshape(-1)[i], dtype(np.inf))
    return g


MISTAKES = {
    "none": lambda e, t, dtype: e.astype(dtype),
    "within": lambda e, t, dtype: (e + 0.7 * t * rng.choice([-1, 1], e.shape)).astype(dtype),
    "beyond": lambda e, t, dtype: (e + 3 * t * rng.uniform(-1, 1, e.shape)).astype(dtype),
    "step": step,
    "scaled": lambda e, t, dtype: (e * (1 + 1e-3)).astype(dtype),
    "nan": lambda e, t, dtype: np.where(rng.random(e.shape) < 0.2, np.nan, e).astype(dtype),
    "zero": lambda e, t, dtype: np.where(np.isfinite(e), e, 0).astype(dtype),
}

cases, inputs, expected = golden.load(str(HERE.parent / "golden"))
outputs, verdicts = {}, []
for s in (s for s in cases if s["id"] in CASES):
    t, ref = inputs[s["id"]], expected[s["id"]]
    tolerances = golden.tolerances(s, t, ref)
    runs = [("f32", "f32")] + [("f16", "f32"), ("f16", "f16")] * (s["storage"] == "f16")
    for n, (mistake, spoil) in enumerate(MISTAKES.items()):
        dtype, params = runs[n % len(runs)]
        name, got = f"{s['id']}.{mistake}", {}
        for k, e in ref.items():
            half = dtype == "f16" and (k in ("y", "dx") or params == "f16" and k in ("dgamma", "dbeta"))
            with np.errstate(all="ignore"):
                got[k] = spoil(e, np.broadcast_to(tolerances[k], e.shape), np.float16 if half else np.float32)
            outputs[f"{name}/{k}"] = np.ascontiguousarray(got[k])
        said = golden.judge(s, t, ref, s["ref_err"], got, dtype, params)
        verdicts.append({
            "outputs": name, "case": s["id"], "dtype": dtype, "params": params,
            "verdicts": {k: [ok, worst if np.isfinite(worst) else None] for k, (ok, worst) in said.items()},
        })

save_file(outputs, HERE / "outputs.safetensors")
(HERE / "verdicts.json").write_text("[\n" + ",\n".join(json.dumps(v) for v in verdicts) + "\n]\n")
passed = sum(ok for v in verdicts for ok, _ in v["verdicts"].values())
print(len(verdicts), "outputs,", passed, "tensors pass,", sum(len(v["verdicts"]) for v in verdicts) - passed, "fail")
