//! What an op does in one pass is what its parts do one after another, and some ops are special cases of others.

use warpnorm::{Activation, DType, Element, Layout};

use crate::support::{
    bits, check,
    data::{
        accumulating, batch_norm_train, dims, every_channel_norm, group_norm, instance_norm, layer_norm,
        rms_norm, with_residual,
    },
    describe, expect_same_bits,
    judge::{Format, tolerances},
    on_every_backend, outputs,
    problem::Problem,
    reference::activate,
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    an_activation_after_a_sum_is_composed_but_for_rounding,
    long_reductions_through_activations_stay_within_the_rule,
    outputs_that_are_not_asked_for_do_not_change_the_others,
    without_an_activation_a_residual_changes_no_other_gradient,
    the_gradient_of_a_sum_is_that_of_the_norm_and_what_reaches_it_elsewhere,
    as_many_groups_as_channels_are_instance_norm,
);

const LAYOUTS: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];
const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Relu, Activation::Silu, Activation::Gelu, Activation::GeluTanh];

/// Every op that takes an activation, and every way to share statistics.
fn every_op(inner: usize, seed: u64) -> Vec<Problem> {
    LAYOUTS.into_iter().flat_map(|layout| every_channel_norm(inner, layout, seed)).collect()
}

/// The norm alone, then the addition and the activation in `f64`; backward the activation's slope, then the norm.
fn an_activation_after_a_sum_is_composed_but_for_rounding<T: Element, B: Sliced>(on: &B) {
    let format = Format::of(T::DTYPE);
    for (seed, plain) in every_op(9, 5).into_iter().enumerate() {
        for activation in ACTIVATIONS {
            let fused = with_residual(Problem { activation, ..plain.clone() }, seed as u64);
            let fused = fused.rounded(T::DTYPE, DType::F32);
            let what = describe(&fused);
            let (got, allowed) = (outputs::<T, B>(on, &fused, &Options::default()), tolerances(&fused));
            let norm = Problem { activation: Activation::None, residual: None, ..fused.clone() };
            let apart = outputs::<T, B>(on, &norm, &Options::default());
            let residual = fused.residual.as_ref().unwrap();
            for (i, y) in apart["y"].iter().enumerate() {
                // Apart, what the activation is given has been rounded.
                let (act, slope) = activate(activation, y + residual[i]);
                let off = format.step(*y) + allowed["z"][i];
                let (d, got_y, got_d) = (fused.dy[i] * slope, got["y"][i], got["dresidual"][i]);
                let room = allowed["y"][i] + 1.2 * off + format.step(got_y);
                assert!((got_y - act).abs() <= room, "{what}: y[{i}] is {got_y}, composed {act}");
                let room = allowed["dresidual"][i] + off * fused.dy[i].abs() + format.step(got_d);
                // Where rounding may decide about the kink, it may.
                let kink = activation == Activation::Relu && (y + residual[i]).abs() <= off;
                assert!(kink || (got_d - d).abs() <= room, "{what}: dresidual[{i}] is {got_d}, composed {d}");
            }

            // The rule's own constant is 8 roundings to f32; here `d` is rounded to the tensor's type, too.
            let norm = Problem { dy: got["dresidual"].clone(), ..norm };
            let (apart, own) = (outputs::<T, B>(on, &norm, &Options::default()), tolerances(&norm));
            let roundings = 1.0 + format.step(1.0) * f64::from(1 << 20);
            for name in ["dx", "dgamma", "dbeta"] {
                let format = Format::of(Options::default().types(T::DTYPE).of(name));
                for (i, (&got, &apart)) in got[name].iter().zip(&apart[name]).enumerate() {
                    let room = allowed[name][i] + roundings * own[name][i] + 2.0 * format.step(apart) + 1e-6;
                    assert!((got - apart).abs() <= room, "{what}: {name}[{i}] is {got}, composed {apart}");
                }
            }
        }
    }
}

fn long_reductions_through_activations_stay_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let positions = if small() { 4200 } else { 70_001 };
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        for activation in [Activation::Relu, Activation::Gelu] {
            let dims = dims([1, 2, positions], layout);
            for plain in [batch_norm_train(&dims, layout, 1), group_norm(&dims, layout, 1, 1)] {
                let mut problem = with_residual(Problem { activation, ..plain }, 2);
                problem.dy.iter_mut().for_each(|dy| *dy = dy.abs() + 0.5);
                check::<T, B>(on, &problem, &Options::default());
            }
        }
    }
}

fn outputs_that_are_not_asked_for_do_not_change_the_others<T: Element, B: Sliced>(on: &B) {
    let without: [&'static [&'static str]; 8] = [
        &["dx"],
        &["dresidual"],
        &["dgamma"],
        &["dbeta"],
        &["dx", "dresidual"],
        &["dgamma", "dbeta"],
        &["dresidual", "dgamma", "dbeta"],
        &["dx", "dgamma", "dbeta"],
    ];
    for (seed, plain) in every_op(16, 5).into_iter().enumerate() {
        let activation = ACTIVATIONS[seed % 5];
        let problem = accumulating(with_residual(Problem { activation, ..plain }, 1), 1);
        let problem = problem.rounded(T::DTYPE, DType::F32);
        let all = bits(&outputs::<T, B>(on, &problem, &Options::default()));
        for without in without {
            let got = bits(&outputs::<T, B>(on, &problem, &Options { without, ..Options::default() }));
            assert!(without.iter().all(|name| !got.contains_key(name)));
            for (name, got) in &got {
                assert_eq!(got, &all[name], "{}: {name} without {without:?}", describe(&problem));
            }
        }
    }
}

fn without_an_activation_a_residual_changes_no_other_gradient<T: Element, B: Sliced>(on: &B) {
    for plain in every_op(33, 6) {
        let plain = plain.rounded(T::DTYPE, DType::F32);
        let fused = with_residual(plain.clone(), 6).rounded(T::DTYPE, DType::F32);
        let [plain_bits, fused_bits] =
            [&plain, &fused].map(|problem| bits(&outputs::<T, B>(on, problem, &Options::default())));
        for (name, plain) in plain_bits.iter().filter(|(name, _)| **name != "y") {
            assert_eq!(plain, &fused_bits[name], "{}: {name}", describe(&fused));
        }
        let dy: Vec<u64> = plain.dy.iter().map(|dy| dy.to_bits()).collect();
        assert_eq!(fused_bits["dresidual"], dy, "{}", describe(&fused));
    }
}

/// The fused op gives the bits of an addition and a norm after another, but where `dh` is added.
fn the_gradient_of_a_sum_is_that_of_the_norm_and_what_reaches_it_elsewhere<T: Element, B: Sliced>(on: &B) {
    for (seed, dims) in [[5, 33], [9, 64], [3, 1025], [2, 2048], [40, 8]].into_iter().enumerate() {
        for plain in [layer_norm(&dims, 1, seed as u64), rms_norm(&dims, 1, seed as u64)] {
            let fused = with_residual(plain, 3).rounded(T::DTYPE, T::DTYPE);
            let (sum, dh) = (fused.sum().unwrap(), fused.dh.clone().unwrap());
            let plain = Problem { x: vec![sum], residual: None, dh: None, ..fused.clone() };
            let options = Options { params: Params::Same, ..Options::default() };
            let mut got = outputs::<T, B>(on, &fused, &options);
            let apart = outputs::<T, B>(on, &plain, &options);
            let (format, allowed) = (Format::of(T::DTYPE), &tolerances(&fused)["dx"]);
            for (i, (dx, apart)) in got["dx"].iter().zip(&apart["dx"]).enumerate() {
                // Apart, the norm's gradient is rounded before the addition, too.
                let room = 2.0 * allowed[i] + format.step(*apart) + format.step(*dx);
                let (what, composed) = (describe(&fused), apart + dh[i]);
                assert!((dx - composed).abs() <= room, "{what}: dx[{i}] is {dx}, composed {composed}");
            }
            got.retain(|name, _| *name != "dx" && *name != "h");
            expect_same_bits(&describe(&fused), &got, &apart);
            let mut got = outputs::<T, B>(on, &Problem { dh: None, ..fused.clone() }, &options);
            got.remove("h");
            expect_same_bits(&format!("{} without dh", describe(&fused)), &got, &apart);
        }
    }
}

fn as_many_groups_as_channels_are_instance_norm<T: Element, B: Sliced>(on: &B) {
    for shape in [[3, 8, 33], [2, 24, 16], [1, 2, 1025]] {
        for layout in LAYOUTS {
            let dims = dims(shape, layout);
            let groups = group_norm(&dims, layout, shape[1], 3).rounded(T::DTYPE, DType::F32);
            let instances = Problem { running: None, ..instance_norm(&dims, layout, 3) };
            let instances = instances.rounded(T::DTYPE, DType::F32);
            let [groups, instances] =
                [groups, instances].map(|problem| outputs::<T, B>(on, &problem, &Options::default()));
            expect_same_bits(&format!("{shape:?} {layout:?}"), &groups, &instances);
        }
    }
}
