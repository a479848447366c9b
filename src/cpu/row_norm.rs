use core::ops::Range;

use super::{AffineValues, Cpu, store_grads, wide};
use crate::{
    Element,
    row_norm::{RowNormBackward, RowNormForward, RowSum},
    shape::RowShape,
};

/// The elements of a row in a tensor whose blocks of rows start `stride` apart.
fn row_of(shape: RowShape, stride: usize, row: usize) -> Range<usize> {
    let start = row / shape.block() * stride + row % shape.block() * shape.cols();
    start..start + shape.cols()
}

/// What weights are multiplied by: a missing one is a factor of one, whatever the offset.
fn factors(affine: AffineValues, weight_offset: f32, has_weight: bool) -> AffineValues {
    let offset = if has_weight { f64::from(weight_offset) } else { 0.0 };
    AffineValues { weight: affine.weight.iter().map(|w| offset + w).collect(), ..affine }
}

pub(super) fn forward<T: Element>(shape: RowShape, args: RowNormForward<'_, T, Cpu>) {
    let RowNormForward { x, y, mut sum, affine, eps, weight_offset, rms, mut mean, mut rstd } = args;
    let has_weight = affine.lens().0.is_some();
    let affine = factors(AffineValues::of(&affine, shape.cols()), weight_offset, has_weight);
    let n = shape.cols() as f64;
    for row in 0..shape.rows() {
        let y = &mut y.data[row_of(shape, y.stride, row)];
        if let Some(x) = &x {
            y.copy_from_slice(&x.data[row_of(shape, x.stride, row)]);
        }
        if let Some(RowSum { residual, h }) = &mut sum {
            let h = &mut h.data[row_of(shape, h.stride, row)];
            if let Some(residual) = residual {
                h.copy_from_slice(&residual.data[row_of(shape, residual.stride, row)]);
            }
            for (y, h) in y.iter_mut().zip(h) {
                *h = T::from_f64(wide(*y) + wide(*h));
                *y = *h;
            }
        }
        let row_mean = if rms { 0.0 } else { y.iter().map(|v| wide(*v)).sum::<f64>() / n };
        let var = y.iter().map(|v| (wide(*v) - row_mean).powi(2)).sum::<f64>() / n;
        let row_rstd = (var + f64::from(eps)).sqrt().recip();
        for ((y, weight), bias) in y.iter_mut().zip(&affine.weight).zip(&affine.bias) {
            *y = T::from_f64((wide(*y) - row_mean) * row_rstd * weight + bias);
        }
        if let Some(mean) = &mut mean {
            mean[row] = row_mean as f32;
        }
        if let Some(rstd) = &mut rstd {
            rstd[row] = row_rstd as f32;
        }
    }
}

pub(super) fn backward<T: Element>(shape: RowShape, args: RowNormBackward<'_, T, Cpu>) {
    let RowNormBackward {
        x,
        dy,
        dh,
        affine,
        weight_offset,
        mean,
        rstd,
        mut dx,
        grads,
        accumulate,
        workspace: _,
    } = args;
    let has_weight = affine.lens().0.is_some();
    let weight = factors(AffineValues::of(&affine, shape.cols()), weight_offset, has_weight).weight;
    let n = shape.cols() as f64;
    let (mut dweight, mut dbias) = (vec![0.0; shape.cols()], vec![0.0; shape.cols()]);
    // No rows are no reason to look for the first one's elements.
    let rows = if shape.is_empty() { 0 } else { shape.rows() };
    for row in 0..rows {
        let x = &x.data[row_of(shape, x.stride, row)];
        let dy = &dy.data[row_of(shape, dy.stride, row)];
        let row_mean = mean.map_or(0.0, |mean| f64::from(mean[row]));
        let row_rstd = f64::from(rstd[row]);
        let x_hat = |col: usize| (wide(x[col]) - row_mean) * row_rstd;
        let (mut mean_g, mut mean_gx) = (0.0, 0.0);
        for col in 0..shape.cols() {
            let (dy, x_hat) = (wide(dy[col]), x_hat(col));
            dweight[col] += dy * x_hat;
            dbias[col] += dy;
            mean_g += dy * weight[col] / n;
            mean_gx += dy * weight[col] * x_hat / n;
        }
        if mean.is_none() {
            // RMSNorm subtracts no mean, so there is none to differentiate.
            mean_g = 0.0;
        }
        if let Some(dx) = &mut dx {
            let dh = dh.as_ref().map(|dh| &dh.data[row_of(shape, dh.stride, row)]);
            for (col, dx) in dx.data[row_of(shape, dx.stride, row)].iter_mut().enumerate() {
                let g = wide(dy[col]) * weight[col];
                let dh = dh.map_or(0.0, |dh| wide(dh[col]));
                *dx = T::from_f64(row_rstd * (g - mean_g - x_hat(col) * mean_gx) + dh);
            }
        }
    }
    store_grads(grads, &dweight, &dbias, accumulate);
}
