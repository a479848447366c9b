"""Liger-Kernel: Triton kernels of row norms and GroupNorm."""
import importlib.metadata

from tensors import EPS, NoSuchOp, call_of


class Liger:
    name = "liger"

    def __init__(self):
        import liger_kernel.ops

        self.ops = liger_kernel.ops
        self.version = importlib.metadata.version("liger-kernel")

    def call(self, case, tensors):
        return call_of(case, tensors, self._forward(case, tensors))

    def _forward(self, case, t):
        # Gradients must not overwrite `dy`, which the next call reads: the last argument of the RMSNorms.
        if case.op == "rms_norm" and case.residual:
            fused = self.ops.LigerFusedAddRMSNormFunction
            return lambda: fused.apply(t.x, t.residual, t.weight, EPS, 0.0, "llama", False)
        if case.op == "rms_norm":
            return lambda: self.ops.LigerRMSNormFunction.apply(t.x, t.weight, EPS, 0.0, "llama", False)
        if case.op == "layer_norm" and not case.residual:
            return lambda: self.ops.LigerLayerNormFunction.apply(t.x, t.weight, t.bias, EPS)
        if case.op == "group_norm" and case.layout == "first" and not case.options:
            function = self.ops.LigerGroupNormFunction
            return lambda: function.apply(t.x, t.weight, t.bias, case.channels, case.groups, EPS)
        raise NoSuchOp("no such op")
