//! LayerNorm.

use warpnorm::{Affine, DType, Element, LayerNorm, Tensor};

use crate::support::{
    bits, check,
    data::{Rng, layer_norm},
    judge::Format,
    on_every_backend, outputs,
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    every_size_and_option_is_within_the_rule,
    long_rows_stay_within_the_rule,
    any_number_of_trailing_dimensions_may_be_a_row,
    views_may_start_at_any_element,
    a_mean_ten_thousand_times_the_spread_does_no_harm,
    eps_may_be_zero,
    a_constant_row_gives_exactly_the_bias,
    nan_and_infinity_poison_only_their_own_row,
    no_rows_give_no_output,
    outputs_that_are_not_asked_for_do_not_change_the_others,
    a_row_alone_gives_the_bits_it_gives_among_others,
    the_same_input_gives_the_same_bits,
    the_allocating_method_returns_what_the_other_writes,
);

const COLS: [usize; 8] = [1, 2, 3, 7, 31, 33, 1023, 1025];
const ROWS: [usize; 3] = [1, 3, 65];

fn every_size_and_option_is_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let mut seed = 0;
    for cols in COLS {
        for rows in ROWS.into_iter().filter(|rows| !small() || rows * cols < 4000) {
            for weight in [true, false] {
                for bias in [true, false] {
                    seed += 1;
                    let mut problem = layer_norm(&[rows, cols], 1, seed);
                    problem.weight = problem.weight.filter(|_| weight);
                    problem.bias = problem.bias.filter(|_| bias);
                    let params = if seed % 3 == 0 { Params::F32 } else { Params::Same };
                    let max_start = (seed % 4) as usize;
                    check::<T, B>(on, &problem, &Options { params, max_start, ..Options::default() });
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
        check::<T, B>(on, &layer_norm(dims, 1, seed as u64), &Options::default());
    }
}

fn any_number_of_trailing_dimensions_may_be_a_row<T: Element, B: Sliced>(on: &B) {
    for norm_dims in 1..=5 {
        check::<T, B>(on, &layer_norm(&[2, 3, 2, 4, 3], norm_dims, norm_dims as u64), &Options::default());
    }
    check::<T, B>(on, &layer_norm(&[2, 2, 2, 2, 2, 2, 2, 3], 3, 1), &Options::default());
    check::<T, B>(on, &layer_norm(&[31], 1, 2), &Options::default());
}

fn views_may_start_at_any_element<T: Element, B: Sliced>(on: &B) {
    for dims in [[3, 64], [2, 1024], [5, 35], [2, 4096]] {
        for max_start in 0..9 {
            for params in [Params::F32, Params::Same] {
                let options = Options { max_start, params, ..Options::default() };
                check::<T, B>(on, &layer_norm(&dims, 1, max_start as u64), &options);
            }
        }
    }
}

fn a_mean_ten_thousand_times_the_spread_does_no_harm<T: Element, B: Sliced>(on: &B) {
    for (seed, dims) in [[3, 77], [2, 1025], [33, 8], [1, 5000]].into_iter().enumerate() {
        let mut problem = layer_norm(&dims, 1, seed as u64);
        let len = problem.dy.len();
        problem.x = vec![Rng(seed as u64).normals(len, 1e4, 1.0)];
        check::<T, B>(on, &problem, &Options::default());
    }
}

fn eps_may_be_zero<T: Element, B: Sliced>(on: &B) {
    for dims in [[4, 10], [2, 1023]] {
        let mut problem = layer_norm(&dims, 1, 9);
        problem.eps = 0.0;
        check::<T, B>(on, &problem, &Options::default());
    }
}

/// Half of all constants are not the rounded quotient of their rounded sum and their number.
fn a_constant_row_gives_exactly_the_bias<T: Element, B: Sliced>(on: &B) {
    for (seed, [rows, cols]) in [[65, 1], [65, 7], [65, 8], [33, 33], [17, 1025]].into_iter().enumerate() {
        let mut problem = layer_norm(&[rows, cols], 1, seed as u64);
        let constants = Rng(seed as u64).normals(rows, 0.0, 30.0);
        problem.x = vec![(0..rows * cols).map(|i| constants[i / cols]).collect()];
        let got = check::<T, B>(on, &problem, &Options::default());
        let bias = problem.rounded(T::DTYPE, DType::F32).bias.unwrap();
        for (i, &y) in got["y"].iter().enumerate() {
            assert_eq!(y, Format::of(T::DTYPE).round(bias[i % cols]), "[{rows}, {cols}], element {i}");
        }
    }
}

fn nan_and_infinity_poison_only_their_own_row<T: Element, B: Sliced>(on: &B) {
    for [rows, cols] in [[5, 7], [9, 64], [3, 1025], [3, 4096]] {
        let healthy = layer_norm(&[rows, cols], 1, 4).rounded(T::DTYPE, DType::F32);
        let clean = bits(&outputs::<T, B>(on, &healthy, &Options::default()));
        for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut problem = healthy.clone();
            let sick = rows / 2;
            problem.x[0][sick * cols + cols / 2] = poison;
            let got = outputs::<T, B>(on, &problem, &Options::default());
            assert!(got["y"][sick * cols..(sick + 1) * cols].iter().all(|y| y.is_nan()));
            assert!(!got["mean"][sick].is_finite() && !got["rstd"][sick].is_finite());
            // The gradients of weight and bias are sums over all rows.
            for (name, got) in bits(&got).into_iter().filter(|(name, _)| !["dgamma", "dbeta"].contains(name))
            {
                for (i, (got, clean)) in got.iter().zip(&clean[name]).enumerate() {
                    let row = if ["y", "dx"].contains(&name) { i / cols } else { i };
                    assert!(row == sick || got == clean, "{name}[{i}] of row {row} changed with row {sick}");
                }
            }
        }
    }
}

fn no_rows_give_no_output<T: Element, B: Sliced>(on: &B) {
    for dims in [&[0, 5][..], &[3, 0, 5], &[0, 1025]] {
        let got =
            outputs::<T, B>(on, &layer_norm(dims, 1, 1).rounded(T::DTYPE, DType::F32), &Options::default());
        for (name, values) in got {
            // Sums over nothing.
            let zeros = vec![0.0; if ["dgamma", "dbeta"].contains(&name) { dims[dims.len() - 1] } else { 0 }];
            assert_eq!(values, zeros, "{name}");
        }
    }
}

fn outputs_that_are_not_asked_for_do_not_change_the_others<T: Element, B: Sliced>(on: &B) {
    for dims in [[3, 33], [5, 1024]] {
        let problem = layer_norm(&dims, 1, 6).rounded(T::DTYPE, DType::F32);
        let all = bits(&outputs::<T, B>(on, &problem, &Options::default()));
        let without: [&'static [&'static str]; 8] = [
            &["mean"],
            &["rstd"],
            &["mean", "rstd"],
            &["dx"],
            &["dgamma"],
            &["dbeta"],
            &["dgamma", "dbeta"],
            &["dx", "dbeta"],
        ];
        for without in without {
            let got = bits(&outputs::<T, B>(on, &problem, &Options { without, ..Options::default() }));
            // Without the saved statistics there is no backward pass.
            let backward = if without.contains(&"mean") || without.contains(&"rstd") { 3 } else { 0 };
            assert_eq!(got.len() + without.len() + backward, all.len());
            for (name, got) in &got {
                assert_eq!(got, &all[name], "{name} without {without:?}");
            }
        }
    }
}

fn a_row_alone_gives_the_bits_it_gives_among_others<T: Element, B: Sliced>(on: &B) {
    for [rows, cols] in [[65, 7], [33, 64], [9, 1025], [5, 4096]] {
        let problem = layer_norm(&[rows, cols], 1, 8).rounded(T::DTYPE, DType::F32);
        let all = bits(&outputs::<T, B>(on, &problem, &Options::default()));
        for row in [0, rows / 2, rows - 1] {
            let mut alone = problem.clone();
            alone.dims[0] = 1;
            let of_row = |values: &[f64]| values[row * cols..(row + 1) * cols].to_vec();
            alone.x = vec![of_row(&problem.x[0])];
            alone.dy = of_row(&problem.dy);
            let alone = bits(&outputs::<T, B>(on, &alone, &Options::default()));
            for name in ["y", "dx"] {
                assert_eq!(
                    alone[name],
                    all[name][row * cols..(row + 1) * cols],
                    "{name} {row} of [{rows}, {cols}]"
                );
            }
            assert_eq!((alone["mean"][0], alone["rstd"][0]), (all["mean"][row], all["rstd"][row]));
        }
    }
}

fn the_same_input_gives_the_same_bits<T: Element, B: Sliced>(on: &B) {
    for dims in [[65, 33], [3, 1025], [2, 5000]] {
        let problem = layer_norm(&dims, 1, 12).rounded(T::DTYPE, DType::F32);
        let first = bits(&outputs::<T, B>(on, &problem, &Options::default()));
        for _ in 0..3 {
            assert_eq!(bits(&outputs::<T, B>(on, &problem, &Options::default())), first);
        }
    }
}

fn the_allocating_method_returns_what_the_other_writes<T: Element, B: Sliced>(on: &B) {
    let problem = layer_norm(&[3, 2, 9], 2, 21).rounded(T::DTYPE, T::DTYPE);
    let tensor = |values: &[f64], dims: &[usize]| {
        let values: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
        Tensor::from_slice(on, &values, dims).unwrap()
    };
    let x = tensor(problem.last_x(), &problem.dims);
    let weight = tensor(problem.weight.as_ref().unwrap(), &[2, 9]);
    let bias = tensor(problem.bias.as_ref().unwrap(), &[18]);
    let out = LayerNorm::new(18).forward(on, &x, Affine::same(&weight, &bias)).unwrap();

    let expected = outputs::<T, B>(on, &problem, &Options { params: Params::Same, ..Options::default() });
    assert_eq!(out.y.dims(), x.dims());
    let y: Vec<f64> = out.y.to_vec(on).unwrap().iter().map(|v| v.to_f32().into()).collect();
    assert_eq!(y, expected["y"]);
    let wide =
        |v: &Tensor<f32, B>| -> Vec<f64> { v.to_vec(on).unwrap().into_iter().map(f64::from).collect() };
    assert_eq!((wide(&out.mean), wide(&out.rstd)), (expected["mean"].clone(), expected["rstd"].clone()));
}
