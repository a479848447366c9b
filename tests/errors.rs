//! Refusals: what they say, and that a refused call has written nothing.

mod buffers;
mod call;
mod conveniences;
mod settings;
mod views;

use warpnorm::{Element, LayerNorm, Layout, RmsNorm};

use crate::support::{on_every_backend, run::Sliced};
use call::{
    Backward, BackwardEval, Batch, CHANNEL_OPS, Call, DIMS, Forward, ForwardEval, Group, InPlace,
    InPlaceEval, Instance, Layer, Method, OPS, Pass, ROW_OPS, Rms, Shape, all_methods, methods,
};

on_every_backend!(
    every_method_accepts_what_the_refused_calls_start_from,
    a_vector_of_the_wrong_length_is_refused,
    a_tensor_shaped_unlike_x_is_refused,
    a_tensor_of_other_channels_is_refused,
    a_tensor_of_too_few_or_too_many_dimensions_is_refused,
    a_shape_that_kernels_cannot_index_is_refused,
    a_row_that_is_not_the_trailing_dimensions_is_refused,
);

const FORWARD: [Pass; 4] = [Forward, InPlace, ForwardEval, InPlaceEval];
const BACKWARD: [Pass; 2] = [Backward, BackwardEval];
/// The passes that take statistics of the tensor at hand.
const OWN: [Pass; 3] = [Forward, InPlace, Backward];
/// Those that take running statistics, to read or to move.
const RUNNING: [Pass; 5] = [Forward, InPlace, ForwardEval, InPlaceEval, BackwardEval];

fn every_method_accepts_what_the_refused_calls_start_from<T: Element, B: Sliced>(on: &B) {
    let all = all_methods();
    assert_eq!(all.len(), 2 * 6 + 3 * 3);
    for method in all {
        Call::new(method.0).accepted::<T, B>(on, method);
    }
}

fn a_vector_of_the_wrong_length_is_refused<T: Element, B: Sliced>(on: &B) {
    type Field = fn(&mut Call) -> &mut usize;
    let no_rms = [Batch, Instance, Group, Layer];
    let tracking = [Batch, Instance];
    let vectors: [(&str, Field, Vec<Method>); 9] = [
        ("weight", |call| &mut call.weight, all_methods()),
        ("bias", |call| &mut call.bias, all_methods()),
        ("dweight", |call| &mut call.dweight, methods(&OPS, &BACKWARD)),
        ("dbias", |call| &mut call.dbias, methods(&OPS, &BACKWARD)),
        ("mean", |call| &mut call.mean, methods(&no_rms, &OWN)),
        ("rstd", |call| &mut call.rstd, methods(&OPS, &OWN)),
        ("running_mean", |call| &mut call.running_mean, methods(&tracking, &RUNNING)),
        ("running_var", |call| &mut call.running_var, methods(&tracking, &RUNNING)),
        ("momentum", |call| &mut call.momentum, methods(&tracking, &[Forward, InPlace])),
    ];
    for (arg, field, methods) in vectors {
        for method in methods {
            let right = *field(&mut Call::new(method.0));
            for wrong in [0, 1, right - 1, right + 1, 2 * right] {
                if wrong == right {
                    continue; // a momentum is one value
                }
                let mut call = Call::new(method.0);
                *field(&mut call) = wrong;
                let message = format!("`{arg}` has {wrong} elements, the shape needs {right}");
                call.refused::<T, B>(on, method, &message);
            }
        }
    }
}

fn a_tensor_shaped_unlike_x_is_refused<T: Element, B: Sliced>(on: &B) {
    type Field = fn(&mut Call) -> &mut Shape;
    let tensors: [(&str, Field, Vec<Method>); 7] = [
        ("y", |call| &mut call.y, methods(&OPS, &[Forward, ForwardEval])),
        (
            "residual",
            |call| &mut call.residual,
            [methods(&CHANNEL_OPS, &[FORWARD.as_slice(), &BACKWARD].concat()), methods(&ROW_OPS, &FORWARD)]
                .concat(),
        ),
        ("h", |call| &mut call.h, methods(&ROW_OPS, &[Forward])),
        ("dy", |call| &mut call.dy, methods(&OPS, &BACKWARD)),
        ("dx", |call| &mut call.dx, methods(&OPS, &BACKWARD)),
        ("dresidual", |call| &mut call.dresidual, methods(&CHANNEL_OPS, &BACKWARD)),
        ("dh", |call| &mut call.dh, methods(&ROW_OPS, &BACKWARD)),
    ];
    for (arg, field, methods) in tensors {
        for method in methods {
            for (dims, layout, actual) in [
                (&[3, 2, 5][..], Layout::ChannelsFirst, "[3, 2, 5]"),
                (&[2, 2, 4], Layout::ChannelsFirst, "[2, 2, 4]"),
                (&[3, 2, 2, 2], Layout::ChannelsFirst, "[3, 2, 2, 2]"),
                (&[24], Layout::ChannelsFirst, "[24]"),
                (&[3, 2, 4], Layout::ChannelsLast, "[3, 2, 4] channels last"),
            ] {
                let mut call = Call::new(method.0);
                *field(&mut call) = Shape { layout, ..Shape::dense(dims) };
                let message = format!("`{arg}` is {actual}, it must be [3, 2, 4] like `x`");
                call.refused::<T, B>(on, method, &message);
            }
        }
    }
}

fn a_tensor_of_other_channels_is_refused<T: Element, B: Sliced>(on: &B) {
    for method in methods(&CHANNEL_OPS, &[FORWARD.as_slice(), &BACKWARD].concat()) {
        let op = method.0;
        let message = format!("`x` has 4 channels, this {} has 2", op.name());
        Call::shaped(op, &[3, 4, 2]).refused::<T, B>(on, method, &message);
        Call::shaped(op, &[0, 4, 1]).refused::<T, B>(on, method, &message);
        let last = Shape { layout: Layout::ChannelsLast, ..Shape::dense(&DIMS) };
        Call::new(op).with_all(&last).refused::<T, B>(on, method, &message);
        if op != Instance {
            Call::shaped(op, &[3, 4]).refused::<T, B>(on, method, &message);
        }
    }
}

fn a_tensor_of_too_few_or_too_many_dimensions_is_refused<T: Element, B: Sliced>(on: &B) {
    for method in methods(&CHANNEL_OPS, &[FORWARD.as_slice(), &BACKWARD].concat()) {
        let op = method.0;
        let takes = if op == Instance { "3 to 5" } else { "2 to 5" };
        let refused = |dims: &[usize]| {
            let message = format!("`x` has {} dimensions, {} takes {takes}", dims.len(), op.name());
            Call::shaped(op, dims).refused::<T, B>(on, method, &message);
        };
        refused(&[]);
        refused(&[2]);
        refused(&[3, 2, 1, 1, 1, 4]);
        if op == Instance {
            refused(&[3, 2]);
        }
    }
    for method in all_methods() {
        let message = "`dims` has 9 dimensions, at most 8 are supported";
        Call::shaped(method.0, &[1; 9]).refused::<T, B>(on, method, message);
    }
}

/// Empty, so that the test needs no memory: the sizes are checked nevertheless.
fn a_shape_that_kernels_cannot_index_is_refused<T: Element, B: Sliced>(on: &B) {
    for method in methods(&CHANNEL_OPS, &[FORWARD.as_slice(), &BACKWARD].concat()) {
        let message = "`x` of [0, 2, 2147483648] is too large: 2^31 positions, slabs or neighbors in a group, or \
                       2^46 elements, and more";
        Call::shaped(method.0, &[0, 2, 1 << 31]).refused::<T, B>(on, method, message);
    }
    for method in methods(&ROW_OPS, &OWN) {
        let mut call = Call::shaped(method.0, &[0, 1 << 31]);
        (call.layer, call.rms) = (LayerNorm::new(1 << 31), RmsNorm::new(1 << 31));
        let limit = "2^31 columns, 2^37 rows or 2^46 elements, and more";
        let message = format!("`x` of [0, 2147483648] is too large: {limit}");
        call.refused::<T, B>(on, method, &message);

        let rows = |rows| {
            let none = Call { weight: 0, bias: 0, dweight: 0, dbias: 0, ..Call::new(method.0) };
            let none = none.with_all(&Shape::dense(&[rows, 0]));
            Call { layer: LayerNorm::new(0), rms: RmsNorm::new(0), ..none }
        };
        let message = format!("`x` of [137438953472, 0] is too large: {limit}");
        rows(1 << 37).refused::<T, B>(on, method, &message);
        // One row less is a shape, for which the statistics are too few.
        let arg = if method.0 == Rms { "rstd" } else { "mean" };
        let message = format!("`{arg}` has 3 elements, the shape needs 137438953471");
        rows((1 << 37) - 1).refused::<T, B>(on, method, &message);
    }
    for method in all_methods() {
        let message =
            format!("`dims` of [0, 2, {}] is too large: its elements cannot be addressed", usize::MAX);
        Call::shaped(method.0, &[0, 2, usize::MAX]).refused::<T, B>(on, method, &message);
    }
}

fn a_row_that_is_not_the_trailing_dimensions_is_refused<T: Element, B: Sliced>(on: &B) {
    for method in methods(&ROW_OPS, &OWN) {
        for (dims, cols) in [
            (&[3, 2, 4][..], 3),
            (&[3, 2, 4], 2),
            (&[3, 2, 4], 48),
            (&[3, 2, 4], 1),
            (&[8, 3], 8),
            (&[0, 4], 8),
            (&[], 8),
            (&[], 1),
        ] {
            let mut call = Call::shaped(method.0, dims);
            (call.layer, call.rms) = (LayerNorm::new(cols), RmsNorm::new(cols));
            let name = if method.0 == Rms { "RmsNorm" } else { "LayerNorm" };
            let message = format!(
                "the trailing dimensions of `x` are {dims:?}, this {name} normalizes over {cols} elements"
            );
            call.refused::<T, B>(on, method, &message);
        }
    }
}
