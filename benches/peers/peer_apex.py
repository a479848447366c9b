"""NVIDIA apex: row norms, and BatchNorm and GroupNorm of channels last. Each is an extension of its own, which a build
of apex may lack."""
import importlib
import importlib.metadata

from tensors import EPS, NoSuchOp, call_of


class Apex:
    name = "apex"

    def __init__(self):
        importlib.import_module("apex")
        try:
            self.version = importlib.metadata.version("apex")
        except importlib.metadata.PackageNotFoundError:
            self.version = "unknown"

    def call(self, case, tensors):
        if case.op in ("layer_norm", "rms_norm") and not case.residual:
            return call_of(case, tensors, self._row_norm(case, tensors))
        four_last = case.layout == "last" and len(case.shape) == 4
        if case.op == "group_norm" and four_last:
            return self._group_norm(case, tensors)
        fits = case.type == "f16" and case.channels % 4 == 0 and not case.eval
        if case.op == "batch_norm" and four_last and fits:
            return self._batch_norm(case, tensors)
        raise NoSuchOp("no such op")

    @staticmethod
    def _part(name):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise NoSuchOp(f"built without it: {error}") from error

    def _row_norm(self, case, t):
        self._part("fused_layer_norm_cuda")
        ops = self._part("apex.normalization.fused_layer_norm")
        shape = (case.channels,)
        if case.op == "rms_norm":
            return lambda: ops.fused_rms_norm_affine(t.x, t.weight, shape, EPS)
        return lambda: ops.fused_layer_norm_affine(t.x, t.weight, t.bias, shape, EPS)

    def _group_norm(self, case, t):
        module = self._part("apex.contrib.group_norm").GroupNorm(
            case.groups, case.channels, eps=EPS, device="cuda", dtype=t.x.dtype,
            act="silu" if "silu" in case.options else "",
        )
        # It would quietly call PyTorch.
        if not module._check_legality(t.x):
            raise NoSuchOp("not for such tensors")
        t.weight, t.bias = module.weight, module.bias
        return call_of(case, t, lambda: module(t.x))

    def _batch_norm(self, case, t):
        ops = self._part("apex.contrib.groupbn.batch_norm")
        module = ops.BatchNorm2d_NHWC(case.channels, fuse_relu="relu" in case.options).to("cuda")
        t.weight, t.bias = module.weight, module.bias

        def positions_before_channels(tensor):
            # Dimensions as they lie in memory; a leaf again, for the gradient.
            return None if tensor is None else tensor.detach().permute(0, 2, 3, 1).requires_grad_(tensor.requires_grad)

        t.x, t.residual = positions_before_channels(t.x), positions_before_channels(t.residual)
        t.dy = positions_before_channels(t.dy)
        if case.residual:
            return call_of(case, t, lambda: module(t.x, t.residual))
        return call_of(case, t, lambda: module(t.x))

