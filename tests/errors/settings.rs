//! Settings out of range, and settings that the tensors at hand do not fit.

use warpnorm::{
    BatchNorm, Element, Error, GroupNorm, InstanceNorm, LayerNorm, RmsNorm, Statistics, View, Workspace,
};

use super::{
    FORWARD,
    call::{
        Backward, BackwardEval, Batch, CHANNEL_OPS, Call, Forward, ForwardEval, Group, InPlace, InPlaceEval,
        Instance, Layer, Method, Rms, all_methods, methods,
    },
};
use crate::support::{
    on_every_backend,
    run::{Placed, Sliced},
};

on_every_backend!(
    an_eps_that_is_negative_or_not_finite_is_refused,
    a_momentum_that_is_not_finite_is_refused_in_training,
    a_weight_offset_other_than_0_and_1_is_refused,
    groups_that_do_not_divide_the_channels_are_refused,
    samples_that_no_virtual_batch_divides_are_refused,
    a_virtual_batch_of_other_statistics_is_refused,
    time_steps_that_the_tensor_does_not_have_are_refused,
    training_on_one_value_is_refused,
    one_value_is_enough_where_nothing_is_trained_on,
    statistics_of_other_lengths_need_other_buffers,
    a_workspace_made_for_less_is_refused,
);

fn an_eps_that_is_negative_or_not_finite_is_refused<T: Element, B: Sliced>(on: &B) {
    for (eps, shown) in [
        (-0.5, "-0.5"),
        (-f32::MIN_POSITIVE, "-0.000000000000000000000000000000000000011754944"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let message = format!("`eps` is {shown}, it must be finite and not negative");
        for method in all_methods() {
            for dims in [[3, 2, 4], [0, 2, 4]] {
                let mut call = Call::shaped(method.0, &dims);
                call.batch = call.batch.eps(eps);
                call.instance = call.instance.eps(eps);
                call.group = call.group.eps(eps);
                call.layer = call.layer.eps(eps);
                call.rms = call.rms.eps(eps);
                call.refused::<T, B>(on, method, &message);
            }
        }
    }
}

fn a_momentum_that_is_not_finite_is_refused_in_training<T: Element, B: Sliced>(on: &B) {
    for (momentum, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for op in [Batch, Instance] {
            let mut call = Call::new(op);
            call.batch = call.batch.momentum(momentum);
            call.instance = call.instance.momentum(momentum);
            for method in methods(&[op], &[Forward, InPlace]) {
                let message = format!("`momentum` is {shown}, it must be finite");
                call.refused::<T, B>(on, method, &message);
            }
            for method in methods(&[op], &[ForwardEval, InPlaceEval, Backward, BackwardEval]) {
                call.accepted::<T, B>(on, method);
            }
        }
    }
}

fn a_weight_offset_other_than_0_and_1_is_refused<T: Element, B: Sliced>(on: &B) {
    for (offset, shown) in [(2.0, "2"), (0.5, "0.5"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")]
    {
        for method in Rms.methods() {
            for dims in [[3, 2, 4], [0, 2, 4]] {
                let mut call = Call::shaped(Rms, &dims);
                call.rms = call.rms.weight_offset(offset);
                let message = format!("`weight_offset` is {shown}, it must be 0 or 1");
                call.refused::<T, B>(on, method, &message);
            }
        }
    }
    for offset in [0.0, -0.0, 1.0] {
        for method in Rms.methods() {
            let mut call = Call::new(Rms);
            call.rms = call.rms.weight_offset(offset);
            call.accepted::<T, B>(on, method);
        }
    }
}

fn groups_that_do_not_divide_the_channels_are_refused<T: Element, B: Sliced>(on: &B) {
    for method in Group.methods() {
        for groups in [0, 3, 4, usize::MAX] {
            for dims in [[3, 2, 4], [0, 2, 4]] {
                let mut call = Call::shaped(Group, &dims);
                call.group = GroupNorm::new(groups, 2);
                let message = format!("2 channels cannot be cut into {groups} groups");
                call.refused::<T, B>(on, method, &message);
            }
        }
    }
}

fn samples_that_no_virtual_batch_divides_are_refused<T: Element, B: Sliced>(on: &B) {
    for chunk in [0, 2, 4, usize::MAX] {
        let mut call = Call::new(Batch);
        call.batch = call.batch.virtual_batch(chunk);
        for method in methods(&[Batch], &[Forward, InPlace, Backward]) {
            let message = format!("`x` has 3 samples, which are no multiple of the virtual batch of {chunk}");
            call.refused::<T, B>(on, method, &message);
        }
        // Inference has no batches to cut.
        for method in methods(&[Batch], &[ForwardEval, InPlaceEval, BackwardEval]) {
            call.accepted::<T, B>(on, method);
        }
    }
}

fn a_virtual_batch_of_other_statistics_is_refused<T: Element, B: Sliced>(on: &B) {
    for statistics in [Statistics::WholeBatch, Statistics::PerTimeStep { steps: 3 }] {
        for method in Batch.methods() {
            let mut call = Call::new(Batch);
            call.batch = call.batch.statistics(statistics).virtual_batch(3);
            call.refused::<T, B>(on, method, "a virtual batch needs statistics per channel");
        }
    }
}

fn time_steps_that_the_tensor_does_not_have_are_refused<T: Element, B: Sliced>(on: &B) {
    for method in Batch.methods() {
        for steps in [0, 2, 4] {
            // The channels are the third of four dimensions, after time and batch.
            let mut call = Call::shaped(Batch, &[3, 4, 2, 5]).with_statistics(6);
            call.batch = call.batch.statistics(Statistics::PerTimeStep { steps });
            let message = format!("`x` has 3 time steps, this BatchNorm has {steps}");
            call.refused::<T, B>(on, method, &message);
        }
        for dims in [&[3][..], &[3, 2], &[3, 4, 2, 1, 1, 1]] {
            let mut call = Call::shaped(Batch, dims).with_statistics(6);
            call.batch = call.batch.statistics(Statistics::PerTimeStep { steps: 3 });
            let message = format!(
                "`x` has {} dimensions, BatchNorm takes 3 to 5 where statistics are per time step",
                dims.len()
            );
            call.refused::<T, B>(on, method, &message);
        }
        let mut call = Call::shaped(Batch, &[3, 2, 4, 5]).with_statistics(6);
        call.batch = call.batch.statistics(Statistics::PerTimeStep { steps: 3 });
        call.refused::<T, B>(on, method, "`x` has 4 channels, this BatchNorm has 2");
    }
}

fn training_on_one_value_is_refused<T: Element, B: Sliced>(on: &B) {
    let refused = |call: &Call, per: &str| {
        let op = if per == "channel and sample" { Instance } else { Batch };
        for method in methods(&[op], &[Forward, InPlace, Backward]) {
            let message = format!("`x` holds one value per {per}, training needs more than one");
            call.refused::<T, B>(on, method, &message);
        }
    };
    for dims in [&[1, 2][..], &[1, 2, 1], &[1, 2, 1, 1, 1]] {
        refused(&Call::shaped(Batch, dims), "channel");
    }
    for dims in [&[3, 2, 1][..], &[1, 2, 1], &[3, 2, 1, 1, 1]] {
        let saved = 2 * dims[0];
        let call = Call { mean: saved, rstd: saved, ..Call::shaped(Instance, dims) };
        refused(&call, "channel and sample");
    }

    let mut chunks = Call { mean: 6, rstd: 6, ..Call::shaped(Batch, &[3, 2, 1]) };
    chunks.batch = chunks.batch.virtual_batch(1);
    refused(&chunks, "channel and virtual batch");

    let mut steps = Call::shaped(Batch, &[3, 1, 2]).with_statistics(6);
    steps.batch = steps.batch.statistics(Statistics::PerTimeStep { steps: 3 });
    refused(&steps, "channel and time step");

    let one = Call { weight: 1, bias: 1, dweight: 1, dbias: 1, ..Call::shaped(Batch, &[1, 1]) };
    let mut one = one.with_statistics(1);
    one.batch = BatchNorm::new(1).statistics(Statistics::WholeBatch);
    refused(&one, "batch");
    // Two channels are two values.
    let mut two = Call::shaped(Batch, &[1, 2]).with_statistics(1);
    two.batch = two.batch.statistics(Statistics::WholeBatch);
    for method in Batch.methods() {
        two.accepted::<T, B>(on, method);
    }
}

fn one_value_is_enough_where_nothing_is_trained_on<T: Element, B: Sliced>(on: &B) {
    for op in [Batch, Instance] {
        for method in methods(&[op], &[ForwardEval, InPlaceEval, BackwardEval]) {
            Call::shaped(op, &[1, 2, 1]).accepted::<T, B>(on, method);
        }
    }
    for method in Group.methods() {
        let mut call = Call { mean: 2, rstd: 2, ..Call::shaped(Group, &[1, 2]) };
        call.group = GroupNorm::new(2, 2);
        call.accepted::<T, B>(on, method);
    }
    for op in [Layer, Rms] {
        let call = Call::shaped(op, &[3, 1]);
        let call = Call { weight: 1, bias: 1, dweight: 1, dbias: 1, ..call };
        let call = Call { layer: LayerNorm::new(1), rms: RmsNorm::new(1), ..call };
        for method in op.methods() {
            call.accepted::<T, B>(on, method);
        }
    }
}

/// One mean for the batch, for each step, or for each chunk: buffers for one per channel are refused.
fn statistics_of_other_lengths_need_other_buffers<T: Element, B: Sliced>(on: &B) {
    let refused = |call: &Call, methods: &[Method], arg: &str, needed: usize| {
        for &method in methods {
            let message = format!("`{arg}` has 2 elements, the shape needs {needed}");
            call.refused::<T, B>(on, method, &message);
        }
    };
    let own = methods(&[Batch], &[Forward, InPlace, Backward]);
    let given = methods(&[Batch], &[ForwardEval, InPlaceEval, BackwardEval]);

    let mut whole = Call::new(Batch);
    whole.batch = whole.batch.statistics(Statistics::WholeBatch);
    refused(&whole, &own, "mean", 1);
    refused(&whole, &given, "running_mean", 1);

    let mut steps = Call::shaped(Batch, &[3, 4, 2, 5]);
    steps.batch = steps.batch.statistics(Statistics::PerTimeStep { steps: 3 });
    refused(&steps, &own, "mean", 6);
    refused(&steps, &given, "running_mean", 6);
    (steps.mean, steps.rstd) = (6, 6);
    refused(&steps, &methods(&[Batch], &[Forward, InPlace]), "running_mean", 6);

    let mut chunks = Call::shaped(Batch, &[4, 2, 3]);
    chunks.batch = chunks.batch.virtual_batch(2);
    refused(&chunks, &own, "mean", 4);
    chunks.mean = 4;
    refused(&chunks, &own, "rstd", 4);
    chunks.rstd = 4;
    for method in Batch.methods() {
        // The running statistics stay one per channel.
        chunks.accepted::<T, B>(on, method);
    }

    let mut groups = Call { mean: 2, ..Call::new(Group) };
    groups.group = GroupNorm::new(2, 2);
    refused(&groups, &methods(&[Group], &[Forward, InPlace, Backward]), "mean", 6);
}

/// The CPU needs no workspace; a backend that does refuses one that is too small, and says how large it must be.
fn a_workspace_made_for_less_is_refused<T: Element, B: Sliced>(on: &B) {
    let dims = [64, 33, 32];
    let mut methods = methods(&CHANNEL_OPS, &[FORWARD.as_slice(), &[Backward, BackwardEval]].concat());
    methods.retain(|Method(_, pass)| !matches!(pass, ForwardEval | InPlaceEval));
    methods.extend([Method(Layer, Backward), Method(Rms, Backward)]);
    for method in methods {
        let op = method.0;
        let params = if op.is_channel_op() { 33 } else { 32 };
        let (stats, running) = match op {
            Batch => (33, 33),
            Instance => (64 * 33, 33),
            Group => (64 * 3, 0),
            Layer | Rms => (64 * 33, 0),
        };
        let call = Call {
            batch: BatchNorm::new(33),
            instance: InstanceNorm::new(33),
            group: GroupNorm::new(3, 33),
            layer: LayerNorm::new(32),
            rms: RmsNorm::new(32),
            weight: params,
            bias: params,
            dweight: params,
            dbias: params,
            mean: stats,
            rstd: stats,
            running_mean: running,
            running_var: running,
            ..Call::shaped(op, &dims)
        };
        let x = Placed::<T, B>::room(on, 64 * 33 * 32, 0).unwrap();
        let view = || View::<T, B>::new(x.data(), &dims).unwrap();
        let needed = match op {
            Batch => call.batch.workspace_for(on, view()),
            Instance => call.instance.workspace_for(on, view()),
            Group => call.group.workspace_for(on, view()),
            Layer => call.layer.workspace_for(on, view()),
            Rms => call.rms.workspace_for(on, view()),
        };
        let enough = needed.unwrap();
        let most = enough.bytes();
        call.make_with::<T, B>(on, method, enough).unwrap_or_else(|error| panic!("{method:?}: {error}"));

        let tiny = tiny_workspace::<T, B>(on);
        let actual = tiny.bytes();
        match call.make_with::<T, B>(on, method, tiny) {
            // Inference takes other statistics, and may need less than the op's other methods.
            Ok(()) => assert!(actual >= most || method.1 == BackwardEval, "{method:?} needs {most} bytes"),
            Err(Error::Workspace { needed, actual: found }) => {
                // What the method asks for is enough for every other method, too.
                assert!(found == actual && actual < needed && needed <= most, "{needed} of {most} bytes");
                let message = format!(
                    "`workspace` has {actual} bytes, this call needs {needed}: make it with the op's `workspace` method"
                );
                assert_eq!(Error::Workspace { needed, actual }.to_string(), message);
            }
            Err(error) => panic!("{method:?}: {error}"),
        }
    }
}

fn tiny_workspace<T: Element, B: Sliced>(on: &B) -> Workspace<B> {
    let tiny = Placed::<T, B>::room(on, 2, 0).unwrap();
    BatchNorm::new(1).workspace_for(on, View::<T, B>::new(tiny.data(), &[2, 1]).unwrap()).unwrap()
}
