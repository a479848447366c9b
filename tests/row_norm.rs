//! LayerNorm and RMSNorm, which share their kernels.

use warpnorm::{DType, Element};

use crate::support::{
    check,
    data::{Rng, layer_norm, rms_norm, vary_params},
    expect_same_bits, expect_the_same_alone, on_every_backend, outputs,
    problem::{Op, Problem},
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    every_size_and_option_is_within_the_rule,
    long_rows_stay_within_the_rule,
    many_rows_stay_within_the_rule,
    any_number_of_trailing_dimensions_may_be_a_row,
    views_may_start_at_any_element,
    rows_may_have_gaps_between_them,
    a_mean_ten_thousand_times_the_spread_does_no_harm,
    eps_may_be_zero,
    nan_and_infinity_poison_only_their_own_row,
    no_rows_give_no_output,
    outputs_that_are_not_asked_for_do_not_change_the_others,
    a_row_alone_gives_the_bits_it_gives_among_others,
    the_same_input_gives_the_same_bits,
);

const COLS: [usize; 8] = [1, 2, 3, 7, 31, 33, 1023, 1025];
const ROWS: [usize; 3] = [1, 3, 65];

fn both(dims: &[usize], norm_dims: usize, seed: u64) -> [Problem; 2] {
    [layer_norm(dims, norm_dims, seed), rms_norm(dims, norm_dims, seed)]
}

/// Turns the problem's and the run's options by a seed, so that a list of shapes sees all of them.
fn vary(problem: &mut Problem, seed: u64) -> Options {
    let mut rng = Rng(seed ^ 0xc0ffee);
    let options = vary_params(problem, &mut rng);
    if problem.op == Op::RmsNorm && rng.flip() {
        problem.weight_offset = 1.0;
    }
    Options { max_start: (rng.bits() % 4) as usize, ..options }
}

fn every_size_and_option_is_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let mut seed = 0;
    for cols in COLS {
        for rows in ROWS.into_iter().filter(|rows| !small() || rows * cols < 4000) {
            for _ in 0..3 {
                for mut problem in both(&[rows, cols], 1, seed) {
                    seed += 1;
                    let options = vary(&mut problem, seed);
                    check::<T, B>(on, &problem, &options);
                }
            }
        }
    }
}

/// One thread cannot hold such rows in registers, one block not all of them in shared memory.
fn long_rows_stay_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let all: &[[usize; 2]] = match small() {
        true => &[[1, 4096], [2, 4099]],
        false => &[[3, 4096], [2, 4099], [2, 8192], [1, 16_385], [2, 65_536], [1, 100_003]],
    };
    for (seed, dims) in all.iter().enumerate() {
        for problem in both(dims, 1, seed as u64) {
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

/// The gradients of weight and bias are sums over the rows.
fn many_rows_stay_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let all: &[[usize; 2]] = match small() {
        true => &[[2001, 3], [517, 33]],
        false => &[[20_001, 3], [4001, 8], [1025, 35], [700, 64]],
    };
    for (seed, dims) in all.iter().enumerate() {
        for mut problem in both(dims, 1, seed as u64) {
            // All of one sign and following x, so that neither the sums nor their roundings cancel.
            problem.dy = problem.x[0].iter().map(|x| x.abs() + 0.1).collect();
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

fn any_number_of_trailing_dimensions_may_be_a_row<T: Element, B: Sliced>(on: &B) {
    for norm_dims in 1..=5 {
        for problem in both(&[2, 3, 2, 4, 3], norm_dims, norm_dims as u64) {
            check::<T, B>(on, &problem, &Options::default());
        }
    }
    for problem in [both(&[2, 2, 2, 2, 2, 2, 2, 3], 3, 1), both(&[31], 1, 2)].as_flattened() {
        check::<T, B>(on, problem, &Options::default());
    }
}

fn views_may_start_at_any_element<T: Element, B: Sliced>(on: &B) {
    for dims in [[3, 64], [2, 1024], [5, 35], [2, 4096]] {
        for max_start in 0..9 {
            // Weight and bias of each type meet every start of one op or the other.
            let [layer, rms] = both(&dims, 1, max_start as u64);
            for (i, problem) in [layer, rms].iter().enumerate() {
                let params = if (max_start + i) % 2 == 0 { Params::F32 } else { Params::Same };
                check::<T, B>(
                    on,
                    problem,
                    &Options { max_start, params, grads: params, ..Options::default() },
                );
            }
        }
    }
}

/// The gaps hold guards, which nothing may write to.
fn rows_may_have_gaps_between_them<T: Element, B: Sliced>(on: &B) {
    let shapes: [(&[usize], usize); 6] =
        [(&[5, 7], 1), (&[3, 64], 1), (&[3, 2, 32], 1), (&[4, 3, 5], 2), (&[2, 1025], 1), (&[3, 4096], 1)];
    for (dims, norm_dims) in shapes {
        let all = [(1, 0), (16, 3), (8, 0), (63, 7)];
        for (gap, max_start) in all.into_iter().take(if small() { 2 } else { 4 }) {
            for problem in both(dims, norm_dims, gap as u64) {
                for in_place in [false, true] {
                    check::<T, B>(on, &problem, &Options { gap, max_start, in_place, ..Options::default() });
                }
            }
        }
    }
}

fn a_mean_ten_thousand_times_the_spread_does_no_harm<T: Element, B: Sliced>(on: &B) {
    for (seed, dims) in [[3, 77], [2, 1025], [33, 8], [1, 5000]].into_iter().enumerate() {
        for mut problem in both(&dims, 1, seed as u64) {
            let len = problem.dy.len();
            problem.x = vec![Rng(seed as u64).normals(len, 1e4, 1.0)];
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

fn eps_may_be_zero<T: Element, B: Sliced>(on: &B) {
    for dims in [[4, 10], [2, 1023]] {
        for problem in both(&dims, 1, 9) {
            check::<T, B>(on, &Problem { eps: 0.0, ..problem }, &Options::default());
        }
    }
}

fn nan_and_infinity_poison_only_their_own_row<T: Element, B: Sliced>(on: &B) {
    for [rows, cols] in [[5, 7], [9, 64], [3, 1025], [3, 4096]] {
        for healthy in both(&[rows, cols], 1, 4) {
            let healthy = healthy.rounded(T::DTYPE, DType::F32);
            let clean = outputs::<T, B>(on, &healthy, &Options::default());
            for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut problem = healthy.clone();
                let sick = rows / 2;
                problem.x[0][sick * cols + cols / 2] = poison;
                let mut got = outputs::<T, B>(on, &problem, &Options::default());
                let row = &got["y"][sick * cols..(sick + 1) * cols];
                // The reciprocal root of an infinite mean square is 0.
                let is_zero = problem.op == Op::RmsNorm && !poison.is_nan();
                if is_zero {
                    assert!(row[cols / 2].is_nan() && got["rstd"][sick] == 0.0);
                } else {
                    assert!(row.iter().all(|y| y.is_nan()) && !got["rstd"][sick].is_finite());
                }
                // The column sums take the row in.
                got.retain(|name, _| *name != "dgamma" && *name != "dbeta");
                for (name, values) in &mut got {
                    let width = values.len() / rows;
                    values[sick * width..(sick + 1) * width]
                        .copy_from_slice(&clean[name][sick * width..(sick + 1) * width]);
                }
                expect_same_bits("the other rows", &got, &clean);
            }
        }
    }
}

fn no_rows_give_no_output<T: Element, B: Sliced>(on: &B) {
    for dims in [&[0, 5][..], &[3, 0, 5], &[0, 1025]] {
        for problem in both(dims, 1, 1) {
            let got = outputs::<T, B>(on, &problem.rounded(T::DTYPE, DType::F32), &Options::default());
            for (name, values) in got {
                if name == "dgamma" || name == "dbeta" {
                    assert!(values.len() == problem.cols() && values.iter().all(|&v| v == 0.0), "{name}");
                } else {
                    assert!(values.is_empty(), "{name}");
                }
            }
        }
    }
}

fn outputs_that_are_not_asked_for_do_not_change_the_others<T: Element, B: Sliced>(on: &B) {
    let without: [&'static [&'static str]; 9] = [
        &["dx"],
        &["dgamma"],
        &["dbeta"],
        &["dgamma", "dbeta"],
        &["dx", "dbeta"],
        &["dx", "dgamma", "dbeta"],
        &["mean"],
        &["rstd"],
        &["mean", "rstd"],
    ];
    for dims in [[3, 33], [5, 1024]] {
        for problem in both(&dims, 1, 6) {
            let problem = problem.rounded(T::DTYPE, DType::F32);
            let all = outputs::<T, B>(on, &problem, &Options::default());
            for without in without {
                let got = outputs::<T, B>(on, &problem, &Options { without, ..Options::default() });
                assert!(without.iter().all(|name| !got.contains_key(name)));
                expect_same_bits(&format!("without {without:?}"), &got, &all);
            }
        }
    }
}

fn a_row_alone_gives_the_bits_it_gives_among_others<T: Element, B: Sliced>(on: &B) {
    for [rows, cols] in [[65, 7], [33, 64], [9, 1025], [5, 4096]] {
        for problem in both(&[rows, cols], 1, 8) {
            let problem = problem.rounded(T::DTYPE, DType::F32);
            expect_the_same_alone::<T, B>(on, &problem, &[0, rows / 2, rows - 1]);
        }
    }
}

fn the_same_input_gives_the_same_bits<T: Element, B: Sliced>(on: &B) {
    for dims in [[65, 33], [3, 1025], [2, 5000], [700, 9]] {
        for problem in both(&dims, 1, 12) {
            let problem = problem.rounded(T::DTYPE, DType::F32);
            let first = outputs::<T, B>(on, &problem, &Options::default());
            for _ in 0..2 {
                let again = outputs::<T, B>(on, &problem, &Options::default());
                expect_same_bits("again", &again, &first);
            }
        }
    }
}
