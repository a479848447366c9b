"""PyTorch's worker: eager, or with the argument `compiled` what torch.compile makes of forward passes."""
import os
import sys

import torch

from serve import EPS, Inputs, LeftOut, serve

from peer_torch import expression

aten = torch.ops.aten


def of_memory(case, array):
    """A tensor whose channels are the second dimension, laid out as the array."""
    tensor = torch.from_numpy(array)
    return tensor.movedim(-1, 1) if case.layout == "last" else tensor


def to_memory(case, tensor):
    tensor = tensor.detach()
    if case.layout == "last" and tensor.dim() > 1:
        tensor = tensor.movedim(1, -1)
    return tensor.contiguous().float().numpy()


def name_outputs(case, *names):
    return lambda result: {name: to_memory(case, tensor) for name, tensor in zip(names, result) if tensor is not None}


def backward_alone(case, x, dy, weight, bias):
    """The backward op, given what the forward op saved: where there is one, without the price of autograd."""
    shape, wanted = [case.channels], [True, True, True]
    if case.op == "batch_norm":
        _, mean, rstd = aten.native_batch_norm(x, weight, bias, None, None, True, 0.1, EPS)
        return lambda: aten.native_batch_norm_backward(dy, x, weight, None, None, mean, rstd, True, EPS, wanted)
    if case.op == "layer_norm":
        _, mean, rstd = aten.native_layer_norm(x, shape, weight, bias, EPS)
        return lambda: aten.native_layer_norm_backward(dy, x, shape, mean, rstd, weight, bias, wanted)
    # RMSNorm has no backward op for the CPU.
    wanted = [tensor.requires_grad_() for tensor in ((x, weight) if case.op == "rms_norm" else (x, weight, bias))]
    y = expression(case)(x, weight, bias, None, None, None)
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def prepare(case, compiled):
    inputs = Inputs(case)
    x, dy = of_memory(case, inputs.x), of_memory(case, inputs.dy)
    weight, bias = torch.from_numpy(inputs.weight), torch.from_numpy(inputs.bias)
    mean, var = (torch.zeros(case.channels), torch.ones(case.channels)) if case.eval else (None, None)
    normalize = expression(case)
    if compiled:
        if case.backward:
            raise LeftOut("only forward passes are compiled")
        torch._dynamo.reset()
        normalize = torch.compile(normalize, dynamic=False)
    if case.backward and not case.forward:
        return backward_alone(case, x, dy, weight, bias), name_outputs(case, "dx", "dweight", "dbias")
    if not case.backward:

        def forward():
            with torch.no_grad():
                return (normalize(x, weight, bias, None, mean, var),)

        return forward, name_outputs(case, "y")
    wanted = [tensor.requires_grad_() for tensor in (x, weight, bias)[: 2 if case.op == "rms_norm" else 3]]

    def both():
        y = normalize(x, weight, bias, None, mean, var)
        return y, *torch.autograd.grad(y, wanted, dy)

    return both, name_outputs(case, "y", "dx", "dweight", "dbias")


def main():
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_num_interop_threads(1)
    compiled = "compiled" in sys.argv[1:]
    serve(torch.__version__, lambda case: prepare(case, compiled))


if __name__ == "__main__":
    main()
