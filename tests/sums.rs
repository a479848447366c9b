//! Sums of many values that are not random: a chain of equal ones rounds the same way at each step, and the gradient of
//! a mean is such a chain.

use warpnorm::{Element, Layout, Statistics};

use crate::support::{
    check,
    data::{
        ROUNDS_ONE_WAY, batch_norm_eval, batch_norm_train, group_norm, instance_norm, layer_norm, rms_norm,
        running,
    },
    on_every_backend,
    problem::Problem,
    run::{Options, Sliced},
    small,
};

on_every_backend!(
    a_constant_gradient_is_summed_within_the_rule,
    equal_values_are_averaged_within_the_rule,
    values_of_one_sign_are_summed_within_the_rule,
);

/// With long chains in every kernel that sums.
fn problems() -> Vec<Problem> {
    use Layout::{ChannelsFirst as First, ChannelsLast as Last};
    let long: &[usize] = if small() { &[4, 2, 4096] } else { &[8, 2, 90_000] };
    let columns: &[usize] = if small() { &[2000, 8] } else { &[40_000, 8] };
    let whole = batch_norm_train(&[9, 700, 3], First, 3);
    vec![
        batch_norm_train(long, First, 1),
        batch_norm_train(columns, First, 2),
        batch_norm_eval(&[64, 3, 33], First, 4),
        Problem { statistics: Statistics::WholeBatch, running: Some(running(1, 3)), ..whole },
        group_norm(&[33, 40, 9], First, 2, 5),
        instance_norm(&[3, 50, 4], Last, 6),
        instance_norm(if small() { &[300, 2, 3] } else { &[3000, 2, 3] }, First, 7),
        layer_norm(if small() { &[700, 5] } else { &[5000, 33] }, 1, 8),
        layer_norm(if small() { &[40, 1025] } else { &[2100, 1025] }, 1, 9),
        rms_norm(if small() { &[700, 4] } else { &[5000, 32] }, 1, 10),
        rms_norm(if small() { &[2, 9000] } else { &[3, 70_001] }, 1, 11),
    ]
}

fn a_constant_gradient_is_summed_within_the_rule<T: Element, B: Sliced>(on: &B) {
    for problem in problems() {
        let len = problem.dy.len();
        check::<T, B>(on, &Problem { dy: vec![ROUNDS_ONE_WAY; len], ..problem }, &Options::default());
    }
}

fn equal_values_are_averaged_within_the_rule<T: Element, B: Sliced>(on: &B) {
    for problem in problems() {
        let len = problem.dy.len();
        // All but one, so that there is a spread.
        let mut x = vec![ROUNDS_ONE_WAY; len];
        x[len / 2] = 0.5;
        check::<T, B>(on, &Problem { x: vec![x], ..problem }, &Options::default());
    }
}

fn values_of_one_sign_are_summed_within_the_rule<T: Element, B: Sliced>(on: &B) {
    for mut problem in problems() {
        problem.dy.iter_mut().for_each(|dy| *dy = dy.abs());
        problem.x[0].iter_mut().for_each(|x| *x = x.abs());
        check::<T, B>(on, &problem, &Options::default());
    }
}
