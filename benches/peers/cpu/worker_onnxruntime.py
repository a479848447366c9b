"""ONNX Runtime's worker: a graph of one node, with bound input and output. It has forward passes of channels first."""
import os

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from serve import EPS, Inputs, LeftOut, serve

OPSET = 23
IR_VERSION = 10


def node(case, inputs):
    """The op with its attributes and its parameters' values."""
    # Parameters must have the tensor's type, also where others keep them in f32.
    weight, bias = inputs.weight.astype(inputs.x.dtype), inputs.bias.astype(inputs.x.dtype)
    if case.op == "batch_norm":
        running = [np.zeros_like(weight), np.ones_like(weight)]
        return "BatchNormalization", {"training_mode": int(not case.eval)}, [weight, bias, *running]
    if case.op == "layer_norm":
        return "LayerNormalization", {"axis": -1}, [weight, bias]
    if case.op == "rms_norm":
        return "RMSNormalization", {"axis": -1}, [weight]
    if case.op == "group_norm":
        return "GroupNormalization", {"num_groups": case.groups}, [weight, bias]
    return "InstanceNormalization", {}, [weight, bias]


def session(case, inputs):
    op, attributes, params = node(case, inputs)
    dtype = helper.np_dtype_to_tensor_dtype(inputs.x.dtype)
    names = [f"parameter {i}" for i in range(len(params))]
    # A BatchNorm in training has its running statistics as outputs too.
    outputs = ["y", "mean", "var"] if op == "BatchNormalization" and not case.eval else ["y"]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], outputs, epsilon=EPS, **attributes)],
        "norm",
        [helper.make_tensor_value_info("x", dtype, case.shape)],
        [helper.make_tensor_value_info("y", dtype, case.shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in zip(names, params)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def prepare(case):
    if case.backward:
        raise LeftOut("no backward pass")
    if case.layout == "last":
        raise LeftOut("no channels-last layout")
    inputs = Inputs(case)
    norm = session(case, inputs)
    y = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(case.shape), inputs.x.dtype.type, "cpu")
    binding, options = norm.io_binding(), onnxruntime.RunOptions()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(inputs.x))
    binding.bind_ortvalue_output("y", y)
    return lambda: norm.run_with_iobinding(binding, options), lambda _: {"y": y.numpy()}


if __name__ == "__main__":
    serve(onnxruntime.__version__, prepare)
