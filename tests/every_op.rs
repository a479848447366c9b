//! What holds of every op alike.

use warpnorm::{DType, Element, Layout};

use crate::support::{
    check,
    data::{Rng, accumulating, every_op, with_residual},
    expect_same_bits, on_every_backend, outputs,
    problem::Problem,
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    views_may_start_at_any_element,
    eps_may_be_zero,
    subnormal_values_are_not_flushed,
    gradients_may_be_added_to_those_there_are,
    outputs_that_are_not_asked_for_do_not_change_the_others,
    the_same_input_gives_the_same_bits,
    the_output_may_replace_the_input,
);

const BOTH: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

/// The problem with all that an op can do besides.
fn fused(problem: Problem, seed: u64) -> Problem {
    accumulating(with_residual(problem, seed), seed)
}

fn views_may_start_at_any_element<T: Element, B: Sliced>(on: &B) {
    // Sizes that full vectors divide, so that the starts alone decide whether they may be used.
    for (inner, layout) in [(32, Layout::ChannelsFirst), (8, Layout::ChannelsLast)] {
        for max_start in [0, 1, 2, 4, 5, 8] {
            for (i, problem) in every_op(inner, layout, max_start as u64).into_iter().enumerate() {
                let params = if (i + max_start) % 2 == 0 { Params::Same } else { Params::F32 };
                let options = Options { max_start, params, grads: params, ..Options::default() };
                check::<T, B>(on, &fused(problem, i as u64), &options);
            }
        }
    }
}

fn eps_may_be_zero<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        for problem in every_op(9, layout, 5) {
            check::<T, B>(on, &Problem { eps: 0.0, ..problem }, &Options::default());
        }
    }
}

fn subnormal_values_are_not_flushed<T: Element, B: Sliced>(on: &B) {
    let sd = if T::DTYPE == DType::F16 { 2e-5 } else { 1e-40 };
    for layout in BOTH {
        for mut problem in every_op(9, layout, 6) {
            problem.x = vec![Rng(7).normals(problem.dy.len(), 0.0, sd)];
            problem.bias = None; // beside it the rest would not be seen
            let mut options = Options::default();
            if let Some(running) = problem.running.as_mut().filter(|_| problem.op.statistics().is_none()) {
                running.mean.fill(0.0);
                // x_hat stays subnormal, and the digits that it lacks are missing from the sum of its products, too: more
                // than the rule, which knows no subnormals there, gives room for.
                options.without = &["dgamma"];
            }
            check::<T, B>(on, &problem, &options);
        }
    }
}

fn gradients_may_be_added_to_those_there_are<T: Element, B: Sliced>(on: &B) {
    for inner in [1, 33] {
        for layout in BOTH {
            for (i, problem) in every_op(inner, layout, 8).into_iter().enumerate() {
                for grads in [Params::F32, Params::Same] {
                    let problem = accumulating(problem.clone(), i as u64);
                    check::<T, B>(on, &problem, &Options { grads, ..Options::default() });
                }
            }
        }
    }
    // Without rows or samples nothing is added.
    for layout in BOTH {
        for problem in every_op(9, layout, 9) {
            let mut empty = Problem { virtual_batch: None, ..accumulating(problem, 10) };
            if let warpnorm::Statistics::PerTimeStep { .. } = empty.statistics {
                empty.dims[1] = 0;
            } else {
                empty.dims[0] = 0;
            }
            (empty.x, empty.dy) = (vec![vec![]], vec![]);
            let empty = empty.rounded(T::DTYPE, DType::F32);
            let got = outputs::<T, B>(on, &empty, &Options::default());
            let [dweight, dbias] = empty.old_grads.unwrap();
            assert_eq!((&got["dgamma"], &got["dbeta"]), (&dweight, &dbias), "{:?}", empty.op);
        }
    }
}

fn outputs_that_are_not_asked_for_do_not_change_the_others<T: Element, B: Sliced>(on: &B) {
    let without: [&'static [&'static str]; 6] = [
        &["dx"],
        &["dresidual"],
        &["dx", "dresidual"],
        &["dgamma", "dbeta"],
        &["dx", "dgamma", "dbeta"],
        &["mean", "batch_mean", "dresidual"],
    ];
    for (inner, layout) in [(33, Layout::ChannelsFirst), (3, Layout::ChannelsLast)] {
        for (i, problem) in every_op(inner, layout, 11).into_iter().enumerate() {
            let problem = fused(problem, i as u64).rounded(T::DTYPE, DType::F32);
            let all = outputs::<T, B>(on, &problem, &Options::default());
            for without in without {
                let got = outputs::<T, B>(on, &problem, &Options { without, ..Options::default() });
                assert!(without.iter().all(|name| !got.contains_key(name)));
                expect_same_bits(&format!("{:?} without {without:?}", problem.op), &got, &all);
            }
        }
    }
}

fn the_same_input_gives_the_same_bits<T: Element, B: Sliced>(on: &B) {
    for inner in if small() { [1, 65] } else { [1, 1025] } {
        for layout in BOTH {
            for problem in every_op(inner, layout, 12) {
                let problem = fused(problem, 13).rounded(T::DTYPE, DType::F32);
                let first = outputs::<T, B>(on, &problem, &Options::default());
                let again = outputs::<T, B>(on, &problem, &Options::default());
                expect_same_bits(&format!("{:?} again", problem.op), &again, &first);
            }
        }
    }
}

fn the_output_may_replace_the_input<T: Element, B: Sliced>(on: &B) {
    for (inner, max_start) in [(1, 0), (8, 0), (33, 3)] {
        for layout in BOTH {
            for (i, problem) in every_op(inner, layout, 14).into_iter().enumerate() {
                let plain = problem.rounded(T::DTYPE, DType::F32);
                for problem in [with_residual(plain.clone(), i as u64).rounded(T::DTYPE, DType::F32), plain] {
                    let options = Options { max_start, ..Options::default() };
                    let want = outputs::<T, B>(on, &problem, &options);
                    let got = outputs::<T, B>(on, &problem, &Options { in_place: true, ..options });
                    expect_same_bits(&format!("{:?} in place", problem.op), &got, &want);
                }
            }
        }
    }
}
