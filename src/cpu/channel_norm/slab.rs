use crate::{
    Activation, Element,
    cpu::{
        memory::{Source, Target},
        simd::{Lanes, Simd},
    },
};

/// What normalizes a slab, and scales and shifts it.
#[derive(Clone, Copy)]
pub(super) struct Slab {
    pub(super) mean: f64,
    pub(super) rstd: f64,
    pub(super) weight: f32,
    pub(super) bias: f32,
}

/// The same in `f32`: `(x - high) * factor + term`.
///
/// `term` makes up for what the mean loses as an `f32`; it is the bias where all elements are equal.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) high: f32,
    pub(super) factor: f32,
    pub(super) term: f32,
}

impl Slab {
    /// `None` where `f32` has too few digits for the factor; [`write_exact`] does without.
    #[inline(always)]
    pub(super) fn scale(&self) -> Option<Scale> {
        let (scale, fits) = self.scale_if_fits();
        fits.then_some(scale)
    }

    /// Without a branch, so that several are computed as vectors; and whether `f32` has digits enough.
    #[inline(always)]
    pub(super) fn scale_if_fits(&self) -> (Scale, bool) {
        let factor = self.rstd * f64::from(self.weight);
        let high = self.mean as f32;
        // Nothing to make up for stays nothing where the factor is infinite, and where the mean is.
        let low = if f64::from(high) == self.mean { 0.0 } else { (f64::from(high) - self.mean) * factor };
        let term = f64::from(self.bias) + low;
        let size = factor.abs();
        let fits = (size == 0.0) | !size.is_finite() | (1e-30..1e30).contains(&size);
        (Scale { high, factor: factor as f32, term: term as f32 }, fits)
    }
}

/// Normalizes a run of one slab in `f64`.
#[cold]
#[inline(never)]
pub(super) fn write_exact<T: Element>(
    slab: &Slab,
    activation: Activation,
    x: Source<'_, T>,
    residual: Option<Source<'_, T>>,
    y: Target<'_, T>,
) {
    for at in 0..y.len() {
        let x_hat = (f64::from(x.one(at)) - slab.mean) * slab.rstd;
        let z = x_hat * f64::from(slab.weight) + f64::from(slab.bias);
        let added = residual.map_or(0.0, |v| f64::from(v.one(at)));
        y.set(at, T::from_f64(activation.apply(z + added)));
    }
}

#[inline(always)]
pub(super) fn activate<S: Simd>(activation: Activation, z: Lanes<S>) -> Lanes<S> {
    match activation {
        Activation::None => z,
        Activation::Relu => Lanes(S::relu(z.0)),
        other => Lanes::from_array(other.apply_each(z.to_array())),
    }
}

/// `dy` times the derivative at `z`.
#[inline(always)]
pub(super) fn through<S: Simd>(activation: Activation, dy: Lanes<S>, z: Lanes<S>) -> Lanes<S> {
    match activation {
        Activation::None => dy,
        Activation::Relu => Lanes(S::where_positive(dy.0, z.0)),
        other => dy * Lanes::from_array(other.derivative_each(z.to_array())),
    }
}
