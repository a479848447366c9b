"""quack: row norms written in CuTe's Python dialect."""
import importlib
import importlib.metadata

from tensors import EPS, NoSuchOp, call_of


class Quack:
    name = "quack"

    def __init__(self):
        # `quack.rmsnorm` as an attribute is the function of that name.
        self.ops = importlib.import_module("quack.rmsnorm")
        self.version = importlib.metadata.version("quack-kernels")

    def call(self, case, tensors):
        if case.op == "rms_norm":
            return call_of(case, tensors, self._rms_norm(case, tensors))
        if case.op == "layer_norm" and not case.residual:
            return self._layer_norm(case, tensors)
        raise NoSuchOp("no such op")

    def _rms_norm(self, case, t):
        if case.residual:
            return lambda: self.ops.rmsnorm(t.x, t.weight, residual=t.residual, eps=EPS, prenorm=True)
        return lambda: self.ops.rmsnorm(t.x, t.weight, eps=EPS)

    def _layer_norm(self, case, t):
        if case.backward and not hasattr(self.ops, "layernorm_bwd"):
            raise NoSuchOp("no such op")
        # These are not functions of autograd, and take parameters in f32 only.
        x, weight, bias = t.x.detach(), t.weight.detach().float(), t.bias.detach().float()

        def forward():
            return self.ops.layernorm_fwd(x, weight, bias, EPS, return_rstd=True, return_mean=True)

        if not case.backward:
            return forward
        _, rstd, mean = forward()
        return lambda: self.ops.layernorm_bwd(x, weight, t.dy, rstd, mean, has_bias=True)
