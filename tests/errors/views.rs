//! Views: data that does not fill them, strides that overlap, and ops that take no gaps.

use warpnorm::{Cpu, Element, Error, LayerNorm, RmsNorm, Tensor, View, ViewMut};

use super::{
    BACKWARD, FORWARD,
    call::{CHANNEL_OPS, Call, DIMS, Forward, ForwardEval, Method, ROW_OPS, Shape, methods},
};
use crate::support::{
    on_every_backend,
    run::{Placed, Sliced},
};

on_every_backend!(
    data_that_does_not_fill_its_dimensions_is_refused,
    strides_that_overlap_or_overflow_are_refused,
    data_that_ends_before_the_last_row_does_is_refused,
    channel_ops_take_no_gaps,
    row_norms_take_gaps_between_rows,
    row_norms_take_no_gaps_within_a_row,
    a_single_entry_has_no_gaps,
);

fn data_that_does_not_fill_its_dimensions_is_refused<T: Element, B: Sliced>(on: &B) {
    let data = vec![T::default(); 7];
    let error = Tensor::from_slice(on, &data, &[2, 4]).map(drop).unwrap_err();
    assert_eq!(error, Error::Length { arg: "data", expected: 8, actual: 7 });
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 8");
    let error = Tensor::from_slice(on, &data, &[1; 9]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 9 dimensions, at most 8 are supported");

    let mut placed = Placed::<T, B>::room(on, 7, 1).unwrap();
    let error = View::<T, B>::new(placed.data(), &[2, 4]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 8");
    let error = ViewMut::<T, B>::new(placed.data_mut(), &[2, 3]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 6");
}

/// What both kinds of view say of these dimensions and this stride over so much data.
fn strided<T: Element, B: Sliced>(on: &B, len: usize, dims: &[usize], stride: usize) -> Result<(), String> {
    let mut placed = Placed::<T, B>::room(on, len, 1).unwrap();
    let shared = View::<T, B>::strided(placed.data(), dims, stride).map(drop);
    let exclusive = ViewMut::<T, B>::strided(placed.data_mut(), dims, stride).map(drop);
    assert_eq!(shared, exclusive);
    shared.map_err(|error| error.to_string())
}

fn strides_that_overlap_or_overflow_are_refused<T: Element, B: Sliced>(on: &B) {
    for (dims, row) in [(&[3, 8][..], 8), (&[3, 2, 4], 8), (&[1, 8], 8), (&[0, 8], 8)] {
        for stride in [0, 1, row - 1] {
            let message = format!(
                "`dims` has a stride of {stride}, less than the {row} elements of an entry of its first dimension"
            );
            assert_eq!(strided::<T, B>(on, 64, dims, stride), Err(message), "{dims:?}");
        }
        strided::<T, B>(on, 64, dims, row).unwrap();
    }
    for stride in [usize::MAX, usize::MAX / 3 + 1, isize::MAX as usize / 4] {
        let message = "`dims` of [3, 8] is too large: its elements cannot be addressed";
        assert_eq!(strided::<T, B>(on, 64, &[3, 8], stride), Err(message.into()), "{stride}");
    }
    let message = "`dims` has 9 dimensions, at most 8 are supported";
    assert_eq!(strided::<T, B>(on, 64, &[1; 9], 1), Err(message.into()));
}

fn data_that_ends_before_the_last_row_does_is_refused<T: Element, B: Sliced>(on: &B) {
    // Two strides of ten and a row of eight.
    let message = "`data` has 27 elements, the shape needs 28";
    assert_eq!(strided::<T, B>(on, 27, &[3, 2, 4], 10), Err(message.into()));
    for len in [28, 29, 30, 64] {
        strided::<T, B>(on, len, &[3, 2, 4], 10).unwrap();
    }
    strided::<T, B>(on, 0, &[0, 8], 10).unwrap();
    strided::<T, B>(on, 0, &[3, 0], 10).unwrap();
}

type Field = fn(&mut Call) -> &mut Shape;

const GAPS: usize = 10;

fn channel_ops_take_no_gaps<T: Element, B: Sliced>(on: &B) {
    let every = methods(&CHANNEL_OPS, &[FORWARD.as_slice(), &BACKWARD].concat());
    let tensors: [(&str, Field, Vec<Method>); 6] = [
        ("x", |call| &mut call.x, every.clone()),
        ("residual", |call| &mut call.residual, every),
        ("y", |call| &mut call.y, methods(&CHANNEL_OPS, &[Forward, ForwardEval])),
        ("dy", |call| &mut call.dy, methods(&CHANNEL_OPS, &BACKWARD)),
        ("dx", |call| &mut call.dx, methods(&CHANNEL_OPS, &BACKWARD)),
        ("dresidual", |call| &mut call.dresidual, methods(&CHANNEL_OPS, &BACKWARD)),
    ];
    for (arg, field, methods) in tensors {
        for method in methods {
            let mut call = Call::new(method.0);
            field(&mut call).stride = Some(GAPS);
            let op = method.0.name();
            let message = format!(
                "`{arg}` has gaps between the entries of its first dimension, {op} takes dense tensors here"
            );
            call.refused::<T, B>(on, method, &message);
            // A stride of a whole entry leaves none.
            field(&mut call).stride = Some(8);
            call.accepted::<T, B>(on, method);
        }
    }
}

const ROW_TENSORS: [(&str, Field); 7] = [
    ("x", |call| &mut call.x),
    ("y", |call| &mut call.y),
    ("residual", |call| &mut call.residual),
    ("h", |call| &mut call.h),
    ("dy", |call| &mut call.dy),
    ("dx", |call| &mut call.dx),
    ("dh", |call| &mut call.dh),
];

/// The tensors that a method of a row norm takes.
fn takes(method: Method, arg: &str) -> bool {
    let args: &[&str] = match method.1 {
        super::Forward => &["x", "y", "residual", "h"],
        super::InPlace => &["x", "residual"],
        _ => &["x", "dy", "dx", "dh"],
    };
    args.contains(&arg)
}

fn row_norms_take_gaps_between_rows<T: Element, B: Sliced>(on: &B) {
    for method in methods(&ROW_OPS, &super::OWN) {
        let all = Shape { stride: Some(GAPS), ..Shape::dense(&DIMS) };
        Call::new(method.0).with_all(&all).accepted::<T, B>(on, method);
        for (_, field) in ROW_TENSORS {
            let mut call = Call::new(method.0);
            field(&mut call).stride = Some(GAPS);
            call.accepted::<T, B>(on, method);
        }
    }
}

/// Where the row is the whole tensor, gaps between the entries of its first dimension are gaps within the row.
fn row_norms_take_no_gaps_within_a_row<T: Element, B: Sliced>(on: &B) {
    for method in methods(&ROW_OPS, &super::OWN) {
        for (arg, field) in ROW_TENSORS.into_iter().filter(|(arg, _)| takes(method, arg)) {
            let call = Call::new(method.0);
            let call = Call { weight: 24, bias: 24, dweight: 24, dbias: 24, mean: 1, rstd: 1, ..call };
            let mut call = Call { layer: LayerNorm::new(24), rms: RmsNorm::new(24), ..call };
            call.accepted::<T, B>(on, method);
            field(&mut call).stride = Some(GAPS);
            let op = method.0.name();
            let message = format!(
                "`{arg}` has gaps between the entries of its first dimension, {op} takes dense tensors here"
            );
            call.refused::<T, B>(on, method, &message);
        }
    }
}

fn a_single_entry_has_no_gaps<T: Element, B: Sliced>(on: &B) {
    let one = Shape { stride: Some(GAPS), ..Shape::dense(&[1, 2, 4]) };
    for op in CHANNEL_OPS {
        let stats = if op == super::Group { 1 } else { 2 };
        let call = Call { mean: stats, rstd: stats, ..Call::new(op) }.with_all(&one);
        for method in op.methods() {
            call.accepted::<T, B>(on, method);
        }
    }
    for op in ROW_OPS {
        let call = Call { mean: 1, rstd: 1, ..Call::new(op) }.with_all(&one);
        for method in op.methods() {
            call.accepted::<T, B>(on, method);
        }
    }
}

#[test]
fn the_cpu_views_slices_alike() {
    let mut data = [0.0_f32; 7];
    let error = Cpu.view(&data, &[2, 4]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 8");
    let error = Cpu.view_mut(&mut data, &[usize::MAX, 0]).map(drop).unwrap_err();
    let message = format!("`dims` of [{}, 0] is too large: its elements cannot be addressed", usize::MAX);
    assert_eq!(error.to_string(), message);
}
