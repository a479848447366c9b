//! What is RMSNorm's own; the rest is in `row_norm`.

use warpnorm::{Affine, DType, Element, RmsNorm};

use crate::support::{
    check,
    data::{Rng, rms_norm, tensor_of, values_of, with_residual},
    judge::Format,
    on_every_backend, outputs,
    problem::Problem,
    run::{Options, Params, Sliced},
};

on_every_backend!(
    an_offset_of_one_takes_weights_stored_around_zero,
    an_offset_without_a_weight_changes_nothing,
    a_row_of_zeros_gives_exactly_the_bias,
    the_sign_of_a_single_value_is_its_output,
    squares_beyond_f16_do_no_harm,
    subnormal_rows_are_not_flushed,
    the_allocating_methods_return_what_the_others_write,
);

/// In 16 bits a small weight loses nothing by its distance from 1, which is what it is stored around zero for.
fn an_offset_of_one_takes_weights_stored_around_zero<T: Element, B: Sliced>(on: &B) {
    for (seed, dims) in [[5, 33], [3, 64], [2, 1025], [1, 4096]].into_iter().enumerate() {
        for params in [Params::F32, Params::Same] {
            let mut problem = rms_norm(&dims, 1, seed as u64);
            problem.weight_offset = 1.0;
            problem.weight = Some(Rng(seed as u64).normals(dims[1], 0.0, 0.01));
            check::<T, B>(on, &problem, &Options { params, grads: params, ..Options::default() });
        }
    }
}

fn an_offset_without_a_weight_changes_nothing<T: Element, B: Sliced>(on: &B) {
    let plain = Problem { weight: None, ..rms_norm(&[3, 65], 1, 4) }.rounded(T::DTYPE, DType::F32);
    let offset = Problem { weight_offset: 1.0, ..plain.clone() };
    let [plain, offset] = [plain, offset].map(|problem| outputs::<T, B>(on, &problem, &Options::default()));
    assert_eq!(plain, offset);
}

fn a_row_of_zeros_gives_exactly_the_bias<T: Element, B: Sliced>(on: &B) {
    for cols in [1, 7, 64, 1025] {
        let mut problem = rms_norm(&[3, cols], 1, 5);
        problem.x[0][cols..2 * cols].fill(0.0);
        let got = check::<T, B>(on, &problem, &Options::default());
        let bias = problem.rounded(T::DTYPE, DType::F32).bias.unwrap();
        for (y, bias) in got["y"][cols..2 * cols].iter().zip(bias) {
            assert_eq!(*y, Format::of(T::DTYPE).round(bias), "{cols} columns");
        }
    }
}

fn the_sign_of_a_single_value_is_its_output<T: Element, B: Sliced>(on: &B) {
    let mut problem = rms_norm(&[4, 1], 1, 6);
    (problem.weight, problem.bias, problem.eps) = (None, None, 0.0);
    problem.x = vec![vec![0.25, -1024.0, 4.0, -0.5]]; // powers of two, so that nothing rounds
    assert_eq!(check::<T, B>(on, &problem, &Options::default())["y"], [1.0, -1.0, 1.0, -1.0]);
}

fn squares_beyond_f16_do_no_harm<T: Element, B: Sliced>(on: &B) {
    for dims in [[4, 31], [2, 1025]] {
        let mut problem = rms_norm(&dims, 1, 7);
        let mut rng = Rng(8);
        problem.x = vec![(0..dims[0] * dims[1]).map(|_| 65_504.0 * (1.0 - rng.unit() / 2.0)).collect()];
        let got = check::<T, B>(on, &problem, &Options::default());
        assert!(got["y"].iter().all(|y| y.is_finite()));
    }
}

fn subnormal_rows_are_not_flushed<T: Element, B: Sliced>(on: &B) {
    let sd = if T::DTYPE == DType::F16 { 2e-5 } else { 1e-40 };
    for dims in [[3, 31], [2, 1025]] {
        let problem = rms_norm(&dims, 1, 3);
        let x = vec![Rng(5).normals(problem.dy.len(), 0.0, sd)];
        check::<T, B>(on, &Problem { x, bias: None, ..problem }, &Options::default());
    }
}

fn the_allocating_methods_return_what_the_others_write<T: Element, B: Sliced>(on: &B) {
    let plain = rms_norm(&[3, 2, 9], 2, 21).rounded(T::DTYPE, T::DTYPE);
    let plain = Problem { weight_offset: 1.0, ..plain };
    let options = Options { params: Params::Same, ..Options::default() };
    let dims = &plain.dims[..];
    let (x, dy) = (tensor_of::<T, B>(on, plain.last_x(), dims), tensor_of::<T, B>(on, &plain.dy, dims));
    let weight = tensor_of(on, plain.weight.as_ref().unwrap(), &[2, 9]);
    let bias = tensor_of(on, plain.bias.as_ref().unwrap(), &[18]);
    let affine = || Affine::same(&weight, &bias);
    let norm = RmsNorm::new(18).weight_offset(1.0);

    let expected = outputs::<T, B>(on, &plain, &options);
    let out = norm.forward(on, &x, affine()).unwrap();
    assert_eq!(out.y.dims(), x.dims());
    assert_eq!(values_of(on, &out.y), expected["y"]);
    assert_eq!(values_of(on, &out.rstd), expected["rstd"]);
    let grads = norm.backward(on, &x, &dy, affine(), &out).unwrap();
    assert_eq!(values_of(on, &grads.dx), expected["dx"]);
    assert_eq!(values_of(on, &grads.dweight.unwrap()), expected["dgamma"]);
    assert_eq!(values_of(on, &grads.dbias.unwrap()), expected["dbeta"]);
    let grads = norm.backward(on, &x, &dy, Affine::None, &out).unwrap();
    assert!(grads.dweight.is_none() && grads.dbias.is_none(), "gradients of what there is, and no others");
    let mut y = tensor_of::<T, B>(on, plain.last_x(), dims);
    norm.forward_in_place(on, &mut y, affine()).unwrap();
    assert_eq!(values_of(on, &y), expected["y"]);

    let fused = with_residual(plain.clone(), 22).rounded(T::DTYPE, T::DTYPE);
    let expected = outputs::<T, B>(on, &fused, &options);
    let residual = tensor_of(on, fused.residual.as_ref().unwrap(), dims);
    let (h, out) = norm.forward_residual(on, &x, &residual, affine()).unwrap();
    assert_eq!((values_of(on, &h), values_of(on, &out.y)), (expected["h"].clone(), expected["y"].clone()));
}
