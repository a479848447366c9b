use std::borrow::Cow;

use super::Cpu;
use crate::{Affine, AffineGrad, Element};

/// Weights and biases in `f32`, ones and zeros where there are none.
pub(super) struct Params<'a> {
    pub(super) weight: Cow<'a, [f32]>,
    pub(super) bias: Cow<'a, [f32]>,
}

impl<'a> Params<'a> {
    pub(super) fn of<T: Element>(affine: &'a Affine<'_, T, Cpu>, len: usize) -> Self {
        let widened = |values: Option<&[T]>, missing: f32| match values {
            Some(values) => values.iter().map(|v| v.to_f32()).collect(),
            None => vec![missing; len],
        };
        let borrowed = |values: Option<&'a [f32]>, missing: f32| match values {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(vec![missing; len]),
        };
        match affine {
            Affine::None => Self { weight: borrowed(None, 1.0), bias: borrowed(None, 0.0) },
            Affine::Same { weight, bias } => {
                Self { weight: widened(*weight, 1.0).into(), bias: widened(*bias, 0.0).into() }
            }
            Affine::F32 { weight, bias } => {
                Self { weight: borrowed(*weight, 1.0), bias: borrowed(*bias, 0.0) }
            }
        }
    }

    /// The same with `offset` added to weights; a missing one is a factor of one, whatever the offset.
    pub(super) fn offset<T: Element>(self, offset: f32, affine: &Affine<'_, T, Cpu>) -> Self {
        if offset == 0.0 || affine.lens().0.is_none() {
            return self;
        }
        Self { weight: self.weight.iter().map(|w| offset + w).collect(), ..self }
    }
}

/// Rounds gradients of weight and bias to where they are wanted, or adds them to what is there.
pub(super) fn store_grads<T: Element>(
    grads: AffineGrad<'_, T, Cpu>,
    dweight: impl Fn(usize) -> f64,
    dbias: impl Fn(usize) -> f64,
    accumulate: bool,
) {
    fn put<P: Element>(out: Option<&mut [P]>, value: impl Fn(usize) -> f64, accumulate: bool) {
        for (i, out) in out.into_iter().flatten().enumerate() {
            let old = if accumulate { f64::from(out.to_f32()) } else { 0.0 };
            *out = P::from_f64(if accumulate { old + value(i) } else { value(i) });
        }
    }
    match grads {
        AffineGrad::None => {}
        AffineGrad::Same { dweight: w, dbias: b } => {
            put(w, dweight, accumulate);
            put(b, dbias, accumulate);
        }
        AffineGrad::F32 { dweight: w, dbias: b } => {
            put(w, dweight, accumulate);
            put(b, dbias, accumulate);
        }
    }
}
