//! What is LayerNorm's own; the rest is in `row_norm`.

use warpnorm::{Affine, DType, Element, LayerNorm};

use crate::support::{
    check,
    data::{Rng, layer_norm, tensor_of, values_of, with_residual},
    judge::Format,
    on_every_backend, outputs,
    problem::Problem,
    run::{Options, Params, Sliced},
};

on_every_backend!(
    a_constant_row_gives_exactly_the_bias,
    subnormal_rows_are_not_flushed,
    the_allocating_methods_return_what_the_others_write,
);

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

fn subnormal_rows_are_not_flushed<T: Element, B: Sliced>(on: &B) {
    let sd = if T::DTYPE == DType::F16 { 2e-5 } else { 1e-40 };
    for dims in [[3, 31], [2, 1025]] {
        let problem = layer_norm(&dims, 1, 3);
        let x = vec![Rng(5).normals(problem.dy.len(), 0.0, sd)];
        // Without a bias, beside which y would not be seen.
        check::<T, B>(on, &Problem { x, bias: None, ..problem }, &Options::default());
    }
}

fn the_allocating_methods_return_what_the_others_write<T: Element, B: Sliced>(on: &B) {
    let plain = layer_norm(&[3, 2, 9], 2, 21).rounded(T::DTYPE, T::DTYPE);
    let options = Options { params: Params::Same, ..Options::default() };
    let dims = &plain.dims;
    let (x, dy) = (tensor_of::<T, B>(on, plain.last_x(), dims), tensor_of::<T, B>(on, &plain.dy, dims));
    let weight = tensor_of(on, plain.weight.as_ref().unwrap(), &[2, 9]);
    let bias = tensor_of(on, plain.bias.as_ref().unwrap(), &[18]);
    let affine = || Affine::same(&weight, &bias);
    let norm = LayerNorm::new(18);

    let expected = outputs::<T, B>(on, &plain, &options);
    let out = norm.forward(on, &x, affine()).unwrap();
    assert_eq!(out.y.dims(), x.dims());
    assert_eq!(values_of(on, &out.y), expected["y"]);
    assert_eq!(
        (values_of(on, &out.mean), values_of(on, &out.rstd)),
        (expected["mean"].clone(), expected["rstd"].clone())
    );
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
