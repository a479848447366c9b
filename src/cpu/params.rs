use std::borrow::Cow;

use super::{
    Cpu,
    memory::{Source, Target, for_spans},
    simd::{Kernel, Lanes, Simd, dispatch},
};
use crate::{Affine, AffineGrad, DType, Element};

/// Weights and biases in `f32`, ones and zeros where there are none.
pub(super) struct Params<'a> {
    pub(super) weight: Cow<'a, [f32]>,
    pub(super) bias: Cow<'a, [f32]>,
}

impl<'a> Params<'a> {
    pub(super) fn of<T: Element>(affine: &'a Affine<'_, T, Cpu>, len: usize) -> Self {
        let widened = |values: Option<&[T]>, missing: f32| match values {
            Some(values) => widened(values),
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

    /// The same, borrowed.
    pub(super) fn borrowed(&self) -> Params<'_> {
        Params { weight: Cow::Borrowed(&self.weight), bias: Cow::Borrowed(&self.bias) }
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
    dweight: &[f64],
    dbias: &[f64],
    accumulate: bool,
) {
    fn put<P: Element>(out: Option<&mut [P]>, values: &[f64], accumulate: bool) {
        let Some(out) = out else { return };
        dispatch(Round { values, to: Target::new(out), accumulate });
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

/// Rounds values once, a vector at a time.
struct Round<'a, P> {
    values: &'a [f64],
    to: Target<'a, P>,
    /// Adds what is there.
    accumulate: bool,
}

impl<P: Element> Kernel for Round<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { values, to, accumulate } = self;
        for_spans!(to.len(), 0, |span| {
            let mut new = [0.0; LANES]; // which the macro brings along
            new[..span.n()].copy_from_slice(&values[span.at()..span.at() + span.n()]);
            if accumulate {
                let old = to.source().load::<S>(span).to_array();
                for i in 0..LANES {
                    new[i] += f64::from(old[i]);
                }
            }
            let mut rounded = [0.0; LANES];
            for i in 0..LANES {
                rounded[i] = if P::DTYPE == DType::F32 { new[i] as f32 } else { to_odd(new[i]) };
            }
            to.store(span, Lanes::<S>::from_array(rounded), false);
        });
    }
}

fn widened<T: Element>(values: &[T]) -> Vec<f32> {
    let mut wide = vec![0.0; values.len()];
    dispatch(Convert { from: Source::new(values), to: Target::new(&mut wide) });
    wide
}

/// Rounds to the neighbor whose last bit is 1, unless the value is a `f32`: rounded again to fewer digits, to nearest, it is
/// what the value itself would be (S. Boldo and G. Melquiond, "When double rounding is odd", 2005).
#[inline(always)]
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    let back = f64::from(near);
    let toward_zero = near.to_bits().wrapping_sub(u32::from(back.abs() > v.abs()));
    // Without a branch, so that it is computed as a vector.
    if (back == v) | v.is_nan() { near } else { f32::from_bits(toward_zero | 1) }
}

/// One type from another, a vector at a time: one by one, halves take longer than the norm.
struct Convert<'a, T, U> {
    from: Source<'a, T>,
    to: Target<'a, U>,
}

impl<T: Element, U: Element> Kernel for Convert<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for_spans!(self.to.len(), 0, |span| {
            self.to.store(span, self.from.load::<S>(span), false);
        });
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Values near all those of 16 bits, and near the middles between them.
    fn values() -> Vec<f64> {
        let mut values =
            vec![0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e300, -1e300, 1e-300, 3.5e38];
        for bits in 0..=u16::MAX {
            for v in [f64::from(f16::from_bits(bits)), f64::from(bf16::from_bits(bits))] {
                for scale in [1.0, 1.0 + 2f64.powi(-9), 1.0 + 2f64.powi(-12), 1.0 + 2f64.powi(-30)] {
                    values.extend([
                        v * scale,
                        v * scale * (1.0 + f64::EPSILON),
                        v * scale * (1.0 - f64::EPSILON),
                    ]);
                }
            }
        }
        values
    }

    fn check<P: Element>() {
        let values = values();
        let mut got = vec![P::default(); values.len()];
        let (dweight, dbias) = (Some(&mut got[..]), None);
        store_grads::<P>(AffineGrad::Same { dweight, dbias }, &values, &[], false);
        for (v, got) in values.iter().zip(got) {
            let (got, want) = (got.to_f32(), P::from_f64(*v).to_f32());
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{v:e}: {got:e}, not {want:e}"
            );
        }
    }

    #[test]
    fn gradients_are_rounded_once() {
        check::<f32>();
        check::<f16>();
        check::<bf16>();
    }
}
