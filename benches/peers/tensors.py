"""The tensors of a case, and what makes a call of a forward function."""
import torch

EPS = 1e-5
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class NoSuchOp(Exception):
    """The library has no such op, or not for such tensors."""


class Tensors:
    """What benches/norms/calls.rs makes too. Dimensions are PyTorch's: the channels are the second."""

    def __init__(self, case, device="cuda"):
        dtype = TYPES[case.type]

        def noise():
            tensor = torch.randn(case.dims, dtype=dtype, device=device)
            return tensor.movedim(-1, 1) if case.layout == "last" else tensor

        # BatchNorm and InstanceNorm keep their parameters in f32, the others in the tensor's type.
        params = torch.float32 if case.op in ("batch_norm", "instance_norm") else dtype
        # As in training: a forward pass keeps what the backward pass needs, but for inference.
        grad = case.backward or not case.eval
        self.x = noise().requires_grad_(grad)
        self.weight = torch.ones(case.channels, dtype=params, device=device).requires_grad_(grad)
        self.bias = torch.zeros(case.channels, dtype=params, device=device).requires_grad_(grad)
        self.residual = noise().requires_grad_(grad and case.layout != "rows") if case.residual else None
        self.dy = noise() if case.backward else None
        # The gradient that reaches the row norms' sum by its other uses.
        self.dh = noise() if case.backward and case.residual and case.layout == "rows" else None
        self.running_mean = torch.zeros(case.channels, device=device) if case.eval else None
        self.running_var = torch.ones(case.channels, device=device) if case.eval else None

    def wanted(self, case):
        """What a backward pass gives the gradients of. The row norms' residual has that of x."""
        inputs = [self.x, self.weight]
        if case.op != "rms_norm":
            inputs.append(self.bias)
        if case.residual and case.layout != "rows":
            inputs.append(self.residual)
        return inputs


def call_of(case, tensors, forward):
    """The call of a case: `forward` takes nothing and returns y, or y and the row norms' sum."""
    if not case.backward:
        return forward
    outputs = forward()
    grads = [tensors.dy] if tensors.dh is None else [tensors.dy, tensors.dh]
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    inputs = tensors.wanted(case)
    return lambda: torch.autograd.grad(outputs, inputs, grads, retain_graph=True)
