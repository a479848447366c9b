//! What PyTorch tests its normalization layers with: the samples of its suites from files, and the special cases of
//! `test_nn.py` and the C++ API by name.

mod refusals;
mod special;
mod suite;

#[cfg(feature = "emulator")]
use core::any::TypeId;

use warpnorm::{Element, Layout};

use crate::support::{
    check,
    data::{Rng, running, zeros},
    problem::{Op, Problem, Values},
    run::{Options, Sliced},
    small,
};

/// A problem without parameters, whose `x` is still to be set. Every other input is what most cases need.
pub(crate) fn blank(op: Op, dims: &[usize]) -> Problem {
    let len = dims.iter().product();
    Problem { dy: Rng(len as u64).normals(len, 0.0, 1.0), ..zeros(op, dims) }
}

/// The same problem with normally distributed `x`, weight and bias, and running statistics where it is inference.
pub(crate) fn filled(problem: Problem, seed: u64) -> Problem {
    let mut rng = Rng(seed);
    let params = problem.geometry().params;
    let given = matches!(problem.op, Op::BatchNormEval | Op::InstanceNormEval);
    Problem {
        x: vec![rng.normals(problem.last_x().len(), 0.5, 2.0)],
        weight: Some(rng.normals(params, 1.0, 0.5)),
        bias: Some(rng.normals(params, 0.0, 0.5)),
        running: if given { Some(running(params, seed)) } else { problem.running },
        ..problem
    }
}

/// The same values with the channels last.
pub(crate) fn with_channels_last(first: &Problem) -> Problem {
    let mut dims = first.dims.clone();
    dims[1..].rotate_left(1);
    let sizes = sizes(first);
    Problem {
        x: first.x.iter().map(|x| transposed(x, sizes)).collect(),
        dy: transposed(&first.dy, sizes),
        residual: first.residual.as_ref().map(|v| transposed(v, sizes)),
        layout: Layout::ChannelsLast,
        dims,
        ..first.clone()
    }
}

/// Samples, channels and positions of a problem with its channels first.
pub(crate) fn sizes(first: &Problem) -> [usize; 3] {
    [first.dims[0], first.dims[1], first.dims[2..].iter().product()]
}

/// Swaps the last two of three dimensions.
pub(crate) fn transposed(values: &[f64], [samples, rows, cols]: [usize; 3]) -> Vec<f64> {
    (0..samples * cols * rows)
        .map(|i| {
            let (sample, col, row) = (i / (rows * cols), i / rows % cols, i % rows);
            values[(sample * rows + row) * cols + col]
        })
        .collect()
}

/// Checks a problem in both layouts. The outputs are those of either, all with the channels first.
pub(crate) fn check_both_layouts<T: Element, B: Sliced>(
    on: &B,
    first: &Problem,
    options: &Options,
) -> [Values; 2] {
    let mut last = check::<T, B>(on, &with_channels_last(first), options);
    let [samples, channels, positions] = sizes(first);
    for name in ["y", "dx", "dresidual"] {
        if let Some(values) = last.get_mut(name) {
            *values = transposed(values, [samples, positions, channels]);
        }
    }
    [check::<T, B>(on, first, options), last]
}

/// A size for the CPU and for GPUs, for the emulator, and for where all are small.
pub(crate) fn by_backend<B: Sliced, S>(full: S, emulated: S, smallest: S) -> S {
    if small() {
        smallest
    } else if is_emulated::<B>() {
        emulated
    } else {
        full
    }
}

#[cfg(feature = "emulator")]
fn is_emulated<B: Sliced>() -> bool {
    TypeId::of::<B>() == TypeId::of::<warpnorm::Emulated>()
}

#[cfg(not(feature = "emulator"))]
fn is_emulated<B: Sliced>() -> bool {
    false
}
