"""PyTorch: eager with cuDNN and without, and compiled."""
import torch
import torch.nn.functional as F

from tensors import EPS, NoSuchOp, call_of


def expression(case):
    """The case as a function of x, weight, bias, residual and running statistics, composed of PyTorch's ops."""
    shape = (case.channels,)

    def normalize(x, weight, bias, mean, var):
        if case.op == "batch_norm":
            return F.batch_norm(x, mean, var, weight, bias, training=not case.eval, eps=EPS)
        if case.op == "instance_norm":
            return F.instance_norm(x, None, None, weight, bias, use_input_stats=True, eps=EPS)
        if case.op == "group_norm":
            return F.group_norm(x, case.groups, weight, bias, EPS)
        if case.op == "layer_norm":
            return F.layer_norm(x, shape, weight, bias, EPS)
        return F.rms_norm(x, shape, weight, EPS)

    def function(x, weight, bias, residual, mean, var):
        if case.layout == "rows" and case.residual:
            h = x + residual
            return normalize(h, weight, bias, mean, var), h
        y = normalize(x, weight, bias, mean, var)
        if case.residual:
            y = y + residual
        if "relu" in case.options:
            y = F.relu(y)
        if "silu" in case.options:
            y = F.silu(y)
        return y

    return function


class Eager:
    """PyTorch's own kernels, with cuDNN's where it takes them."""

    name = "torch"
    cudnn = True

    def __init__(self):
        self.version = torch.__version__

    def call(self, case, tensors):
        torch.backends.cudnn.enabled = self.cudnn
        return self.call_function(expression(case), case, tensors)

    @staticmethod
    def call_function(function, case, tensors):
        t = tensors
        args = (t.x, t.weight, t.bias, t.residual, t.running_mean, t.running_var)
        return call_of(case, tensors, lambda: function(*args))


class Native(Eager):
    """Eager with cuDNN off, for the ops where that matters."""

    name = "torch-native"
    cudnn = False

    def call(self, case, tensors):
        if case.op not in ("batch_norm", "instance_norm"):
            raise NoSuchOp("cuDNN makes no difference")
        return super().call(case, tensors)


class Compiled(Eager):
    """torch.compile in its default mode, for the shape of the case alone."""

    name = "torch-compile"

    def __init__(self):
        super().__init__()
        # A backward pass that is called again and again must not reuse the memory of what was saved for it.
        import torch._functorch.config as config

        if hasattr(config, "donated_buffer"):
            config.donated_buffer = False

    def call(self, case, tensors):
        torch.backends.cudnn.enabled = self.cudnn
        torch._dynamo.reset()
        return self.call_function(torch.compile(expression(case), dynamic=False), case, tensors)
