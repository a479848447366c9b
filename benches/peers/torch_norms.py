#!/usr/bin/env python3
"""PyTorch's BatchNorm and LayerNorm on the shapes of benches/norms.rs, timed the same way: runs of calls between two
synchronizations, warm. One line a case: name, microseconds a call, GB/s of the floor's bytes."""
import time

import torch

SHAPES = [  # dims as they lie in memory, channels last, layer norm
    ((256, 64, 112, 112), False, False),
    ((256, 112, 112, 64), True, False),
    ((32, 256, 56, 56), False, False),
    ((32, 56, 56, 256), True, False),
    ((32, 512, 7, 7), False, False),
    ((4, 128, 1024, 1024), False, False),
    ((4096, 1024), False, False),
    ((16384, 4096), False, True),
    ((8192, 8192), False, True),
    ((131072, 128), False, True),
    ((1024, 12288), False, True),
]


def microseconds(body, seconds=0.5):
    body()
    torch.cuda.synchronize()
    samples = []
    calls = 10
    while len(samples) < 10:
        start = time.perf_counter()
        for _ in range(calls):
            body()
        torch.cuda.synchronize()
        took = time.perf_counter() - start
        if took < seconds / 10 and calls < 10000:
            calls *= 2  # too short to time well
            continue
        samples.append(took / calls * 1e6)
    return sorted(samples)[len(samples) // 2]


def report(name, dtype, layout, dims, floor_bytes, body):
    us = microseconds(body)
    print(f"{name}/torch/{dtype}/{layout}/{list(dims)}: {us:.1f} us, {floor_bytes / us / 1e3:.0f} GB/s", flush=True)


def main():
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    for dims, channels_last, layer_norm in SHAPES:
        for dtype, dtype_name in names.items():
            x = torch.randn(dims, device="cuda", dtype=dtype)
            size = x.numel() * x.element_size()
            layout = "last" if channels_last else "first"
            if layer_norm:
                report("layer_norm_fwd", dtype_name, layout, dims, 2 * size,
                       lambda: torch.nn.functional.layer_norm(x, dims[1:]))
                continue
            if channels_last:
                x = x.permute(0, 3, 1, 2)
            channels = x.shape[1]
            weight = torch.ones(channels, device="cuda", requires_grad=True)
            bias = torch.zeros(channels, device="cuda", requires_grad=True)
            x.requires_grad_()
            forward = lambda: torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
            with torch.no_grad():
                report("batch_norm_fwd", dtype_name, layout, dims, 2 * size, forward)
            y = forward()
            dy = torch.randn_like(y)
            report("batch_norm_bwd", dtype_name, layout, dims, 3 * size,
                   lambda: torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True))
            del x, y, dy


if __name__ == "__main__":
    main()
