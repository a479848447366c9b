//! NaN, infinity and variances of zero, as PyTorch answers them.

use warpnorm::{DType, Element};

use crate::{
    pytorch::{blank, check_both_layouts, filled, with_channels_last},
    support::{
        bits, check,
        data::Rng,
        on_every_backend, outputs,
        problem::{Op, Problem},
        run::{Options, Sliced},
    },
};

on_every_backend!(
    nan_and_infinity_poison_only_their_own_group,
    nan_poisons_only_its_own_row_of_rms_norm,
    infinity_leaves_zeros_in_its_row_of_rms_norm,
    a_variance_of_zero_without_eps_is_nan,
    rms_norm_of_zeros_is_zero_with_eps_and_nan_without,
);

const POISONS: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

fn nan_and_infinity_poison_only_their_own_group<T: Element, B: Sliced>(on: &B) {
    for op in [Op::GroupNorm, Op::InstanceNorm] {
        for (dims, groups) in [(&[3, 6, 5][..], 2), (&[2, 8, 3, 4], 4), (&[2, 4, 65], 1)] {
            let first = filled(Problem { groups, ..blank(op, dims) }, 1).rounded(T::DTYPE, DType::F32);
            for healthy in [with_channels_last(&first), first] {
                let group = healthy.geometry().group;
                let clean = bits(&outputs::<T, B>(on, &healthy, &Options::default()));
                for poison in POISONS {
                    let mut problem = healthy.clone();
                    let at = problem.dy.len() / 2;
                    problem.x[0][at] = poison;
                    let got = outputs::<T, B>(on, &problem, &Options::default());
                    let got_bits = bits(&got);
                    for (i, &of) in group.iter().enumerate() {
                        for name in ["y", "dx"] {
                            let sick = of == group[at];
                            let right = if sick {
                                got[name][i].is_nan()
                            } else {
                                got_bits[name][i] == clean[name][i]
                            };
                            assert!(right, "{op:?} {name}[{i}] with {poison} in group {}", group[at]);
                        }
                    }
                    let [mean, _, rstd] = op.statistics().unwrap();
                    for name in [mean, rstd] {
                        for (of, (got, clean)) in got_bits[name].iter().zip(&clean[name]).enumerate() {
                            assert!(of == group[at] || got == clean, "{op:?} {name}[{of}]");
                        }
                        assert!(!got[name][group[at]].is_finite(), "{op:?} {name} of a poisoned group");
                    }
                }
            }
        }
    }
}

/// A problem of three rows, and where the middle of its middle row is.
fn rows(cols: usize) -> (Problem, usize) {
    let problem = Problem { norm_dims: 1, ..blank(Op::RmsNorm, &[3, cols]) };
    let x = vec![Rng(2).normals(3 * cols, 0.5, 2.0)];
    (Problem { x, ..problem }, cols + cols / 2)
}

fn nan_poisons_only_its_own_row_of_rms_norm<T: Element, B: Sliced>(on: &B) {
    for cols in [7, 64, 1025, 4096] {
        let (healthy, at) = rows(cols);
        let healthy = healthy.rounded(T::DTYPE, DType::F32);
        let clean = bits(&outputs::<T, B>(on, &healthy, &Options::default()));
        let mut problem = healthy.clone();
        problem.x[0][at] = f64::NAN;
        let got = outputs::<T, B>(on, &problem, &Options::default());
        let got_bits = bits(&got);
        for name in ["y", "dx"] {
            for i in 0..3 * cols {
                let right = match i / cols {
                    1 => got[name][i].is_nan(),
                    _ => got_bits[name][i] == clean[name][i],
                };
                assert!(right, "{name}[{i}] of rows of {cols}");
            }
        }
        assert!(got["rstd"][1].is_nan());
    }
}

/// The mean square is infinite, its reciprocal root 0, and so is every other element. Its sign is not promised: adding the
/// 0 of a missing bias turns -0 into 0.
fn infinity_leaves_zeros_in_its_row_of_rms_norm<T: Element, B: Sliced>(on: &B) {
    for cols in [7, 64, 1025, 4096] {
        for poison in [f64::INFINITY, f64::NEG_INFINITY] {
            let (mut problem, at) = rows(cols);
            problem.x[0][at] = poison;
            let problem = problem.rounded(T::DTYPE, DType::F32);
            let y = &outputs::<T, B>(on, &problem, &Options::default())["y"];
            for (i, &y) in y.iter().enumerate().skip(cols).take(cols) {
                let right = if i == at { y.is_nan() } else { y == 0.0 };
                assert!(right, "y[{i}] of rows of {cols} is {y}");
            }
        }
    }
}

fn a_variance_of_zero_without_eps_is_nan<T: Element, B: Sliced>(on: &B) {
    for op in [Op::BatchNormTrain, Op::GroupNorm, Op::InstanceNorm] {
        let problem = filled(Problem { groups: 2, eps: 0.0, ..blank(op, &[2, 4, 9]) }, 3);
        let problem = Problem { x: vec![vec![3.0; 72]], ..problem };
        for got in check_both_layouts::<T, B>(on, &problem, &Options::default()) {
            assert!(got["y"].iter().all(|y| y.is_nan()), "{op:?}");
        }
    }
    let problem = filled(Problem { norm_dims: 1, eps: 0.0, ..blank(Op::LayerNorm, &[4, 9]) }, 3);
    let problem = Problem { x: vec![vec![3.0; 36]], ..problem };
    let got = check::<T, B>(on, &problem, &Options::default());
    assert!(got["y"].iter().all(|y| y.is_nan()));
}

fn rms_norm_of_zeros_is_zero_with_eps_and_nan_without<T: Element, B: Sliced>(on: &B) {
    for cols in [5, 64, 1025] {
        let mut problem = Problem { norm_dims: 1, ..blank(Op::RmsNorm, &[3, cols]) };
        problem.weight = Some(vec![2.0; cols]);
        let got = check::<T, B>(on, &problem, &Options::default());
        assert!(got["y"].iter().all(|&y| y == 0.0));
        problem.eps = 0.0;
        let got = check::<T, B>(on, &problem, &Options::default());
        assert!(got["y"].iter().all(|y| y.is_nan()));
    }
}
