use super::{AffineValues, Cpu, wide};
use crate::{Element, layer_norm::RowNormForward, shape::RowShape};

pub(super) fn forward<T: Element>(shape: RowShape, args: RowNormForward<'_, T, Cpu>) {
    let RowNormForward { x, y, affine, eps, mut mean, mut rstd } = args;
    let affine = AffineValues::of(&affine, shape.cols());
    let n = shape.cols() as f64;
    let rows = x.chunks_exact(shape.cols()).zip(y.chunks_exact_mut(shape.cols()));
    for (row, (x, y)) in rows.enumerate() {
        let row_mean = x.iter().map(|v| wide(*v)).sum::<f64>() / n;
        let var = x.iter().map(|v| (wide(*v) - row_mean).powi(2)).sum::<f64>() / n;
        let row_rstd = (var + f64::from(eps)).sqrt().recip();
        for (((x, y), weight), bias) in x.iter().zip(y).zip(&affine.weight).zip(&affine.bias) {
            *y = T::from_f64((wide(*x) - row_mean) * row_rstd * weight + bias);
        }
        if let Some(mean) = &mut mean {
            mean[row] = row_mean as f32;
        }
        if let Some(rstd) = &mut rstd {
            rstd[row] = row_rstd as f32;
        }
    }
}
