"""JAX's worker: the formulas as Flax computes them by default, with the variance as mean(x²) - mean(x)². That is the
faster of its two ways, and the one that loses the variance where the mean is large. How many threads it starts it takes
from the processors that it may use."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from serve import EPS, Inputs, LeftOut, serve


def statistics(x, axes):
    mean = x.mean(axes, keepdims=True)
    return mean, jnp.maximum((x * x).mean(axes, keepdims=True) - mean * mean, 0)


def batch_norm(case, x, weight, bias):
    channel = x.ndim - 1 if case.layout == "last" else 1
    axes = tuple(i for i in range(x.ndim) if i != channel)
    shape = [1] * x.ndim
    shape[channel] = case.channels
    wide = x.astype(jnp.float32)
    mean, var = (0.0, 1.0) if case.eval else statistics(wide, axes)
    scale = jax.lax.rsqrt(var + EPS) * weight.reshape(shape)
    return ((wide - mean) * scale + bias.reshape(shape)).astype(x.dtype)


def group_norm(case, groups, x, weight, bias):
    if case.layout == "last":
        raise LeftOut("written for channels first")
    wide = x.astype(jnp.float32).reshape(x.shape[0], groups, -1)
    mean, var = statistics(wide, -1)
    x_hat = ((wide - mean) * jax.lax.rsqrt(var + EPS)).reshape(x.shape)
    shape = [1, case.channels] + [1] * (x.ndim - 2)
    return (x_hat * weight.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


def layer_norm(x, weight, bias):
    wide = x.astype(jnp.float32)
    mean, var = statistics(wide, -1)
    return ((wide - mean) * (jax.lax.rsqrt(var + EPS) * weight) + bias).astype(x.dtype)


def rms_norm(x, weight):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + EPS) * weight).astype(x.dtype)


def formula(case):
    if case.op == "batch_norm":
        return functools.partial(batch_norm, case)
    if case.op == "group_norm":
        return functools.partial(group_norm, case, case.groups)
    if case.op == "instance_norm":
        return functools.partial(group_norm, case, case.channels)
    return layer_norm if case.op == "layer_norm" else rms_norm


@functools.cache
def compiled(case):
    """A function of the inputs; kept for later rounds, since compiling takes long."""
    forward = formula(case)
    if not case.backward:
        return jax.jit(lambda params, dy: (forward(*params),))

    def both(params, dy):
        y, backward = jax.vjp(forward, *params)
        return y, *backward(dy)

    return jax.jit(both)


def prepare(case):
    if case.backward and not case.forward:
        raise LeftOut("no backward pass alone")
    inputs = Inputs(case)
    params = [inputs.x, inputs.weight] + ([] if case.op == "rms_norm" else [inputs.bias])
    params, dy = [jnp.asarray(array) for array in params], jnp.asarray(inputs.dy)
    function = compiled(case)
    names = ("y", "dx", "dweight", "dbias")
    call = lambda: jax.block_until_ready(function(params, dy))
    return call, lambda result: {name: np.asarray(array) for name, array in zip(names, result)}


if __name__ == "__main__":
    serve(jax.__version__, prepare)
