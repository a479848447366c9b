//! Passes over the runs of a statistic or a slab.

use super::{
    geometry::{Geometry, Part},
    slab::{Scale, Slab, activate, write_exact},
};
use crate::{
    Activation, Element,
    cpu::{
        memory::{AHEAD_OF_STREAM, Source, Span, Target, for_spans},
        moments::{CHAIN, Chains, Moments, Sums},
        simd::{Kernel, LANES, Lanes, Simd, dispatch},
    },
};

/// Adds up differences from a shift over many runs.
struct Adder<S: Simd> {
    shift: Lanes<S>,
    chains: Chains<S>,
    /// Vectors in them.
    used: usize,
    sums: Sums,
}

impl<S: Simd> Adder<S> {
    #[inline(always)]
    fn add<T: Element>(&mut self, x: Source<'_, T>) {
        let len = x.len();
        let mut at = 0;
        while at < len {
            let end = (at + 2 * CHAIN * LANES).min(len);
            let vectors = (end - at).div_ceil(LANES);
            if end - at == 2 * CHAIN * LANES {
                x.run(at, end - at).prefetch_pages::<S>();
            }
            if self.used + vectors > 2 * CHAIN {
                self.flush();
            }
            self.used += vectors.next_multiple_of(2);
            while at + 2 * LANES <= end {
                self.push(0, x, Span::new(at, LANES, len));
                self.push(1, x, Span::new(at + LANES, LANES, len));
                at += 2 * LANES;
            }
            if at + LANES <= end {
                self.push(0, x, Span::new(at, LANES, len));
                at += LANES;
            }
            if at < end {
                self.push(1, x, Span::new(at, end - at, len));
                at = end;
            }
        }
    }

    #[inline(always)]
    fn push<T: Element>(&mut self, chain: usize, x: Source<'_, T>, span: Span) {
        let d = (x.load(span) - self.shift).first(span.n());
        self.chains.push(chain, d);
    }

    #[inline(always)]
    fn flush(&mut self) {
        self.sums.add(self.chains.sums());
        self.chains = Chains::new();
        self.used = 0;
    }
}

/// The sums of a part of a statistic.
#[inline(always)]
fn part_sums<S: Simd, T: Element>(
    geometry: &Geometry,
    x: Source<'_, T>,
    statistic: usize,
    part: Part,
    shift: f32,
) -> Sums {
    let mut adder =
        Adder::<S> { shift: Lanes::splat(shift), chains: Chains::new(), used: 0, sums: Sums::default() };
    for outer in part.runs {
        let start = geometry.start(statistic, outer);
        adder.add(x.run(start + part.piece.start, part.piece.len()));
    }
    adder.flush();
    adder.sums
}

/// A value near the mean: that of some elements. It is theirs where they are equal.
#[inline(always)]
pub(super) fn first_shift<S: Simd, T: Element>(
    geometry: &Geometry,
    x: Source<'_, T>,
    statistic: usize,
) -> f32 {
    let (runs, n) = (geometry.shape.outer(), geometry.run.min(LANES));
    let first = x.one(geometry.start(statistic, 0));
    let mut sum = Lanes::<S>::splat(0.0);
    let samples = runs.min(4);
    for sample in 0..samples {
        let run = x.run(geometry.start(statistic, sample * runs / samples), n);
        sum = sum + (run.load(Span::new(0, n, n)) - Lanes::splat(first)).first(n);
    }
    let shift = first + sum.sum() / (samples * n) as f32;
    if shift.is_finite() { shift } else { first }
}

/// The sums of one part.
pub(super) struct PartSums<'a, T> {
    pub(super) geometry: Geometry,
    pub(super) x: Source<'a, T>,
    pub(super) statistic: usize,
    pub(super) part: usize,
    /// `None`: as [`first_shift`] has it.
    pub(super) shift: Option<f32>,
}

impl<T: Element> Kernel for PartSums<'_, T> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self) -> Sums {
        let Self { geometry, x, statistic, part, shift } = self;
        let shift = match shift {
            Some(shift) => shift,
            None => first_shift::<S, T>(&geometry, x, statistic),
        };
        part_sums::<S, T>(&geometry, x, statistic, geometry.part(part), shift)
    }
}

/// The first shift of a statistic.
pub(super) struct FirstShift<'a, T> {
    pub(super) geometry: Geometry,
    pub(super) x: Source<'a, T>,
    pub(super) statistic: usize,
}

impl<T: Element> Kernel for FirstShift<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        first_shift::<S, T>(&self.geometry, self.x, self.statistic)
    }
}

/// Mean and variance of a statistic.
#[inline(always)]
pub(super) fn moments<S: Simd, T: Element>(
    geometry: &Geometry,
    x: Source<'_, T>,
    statistic: usize,
    eps: f32,
) -> Moments {
    let shift = first_shift::<S, T>(geometry, x, statistic);
    let mut sums = Sums::default();
    for part in 0..geometry.parts() {
        sums.add(part_sums::<S, T>(geometry, x, statistic, geometry.part(part), shift));
    }
    moments_of(geometry, x, statistic, shift, sums, eps)
}

/// The same from its sums, or where these do not do, once more.
#[inline(always)]
pub(super) fn moments_of<T: Element>(
    geometry: &Geometry,
    x: Source<'_, T>,
    statistic: usize,
    shift: f32,
    sums: Sums,
    eps: f32,
) -> Moments {
    let n = geometry.shape.per_statistic() as f64;
    match Moments::of(sums, shift, n, eps) {
        Some(moments) => moments,
        None => moments_again(geometry, x, statistic, (f64::from(shift) + sums.sum / n) as f32, eps),
    }
}

#[cold]
#[inline(never)]
fn moments_again<T: Element>(
    geometry: &Geometry,
    x: Source<'_, T>,
    statistic: usize,
    shift: f32,
    eps: f32,
) -> Moments {
    let n = geometry.shape.per_statistic() as f64;
    let mut sums = Sums::default();
    for part in 0..geometry.parts() {
        sums.add(dispatch(PartSums { geometry: *geometry, x, statistic, part, shift: Some(shift) }));
    }
    Moments::of(sums, shift, n, eps).unwrap_or_else(|| {
        let run = |outer| geometry.start(statistic, outer)..geometry.start(statistic, outer) + geometry.run;
        Moments::exact(n, (0..geometry.shape.outer()).flat_map(run).map(|i| x.one(i)))
    })
}

/// How the elements of a run are written.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    pub(super) activation: Activation,
    /// Past the caches.
    pub(super) past: bool,
}

/// Normalizes a run of one slab.
#[inline(always)]
pub(super) fn write<S: Simd, T: Element>(
    slab: &Slab,
    scale: Option<Scale>,
    finish: Finish,
    x: Source<'_, T>,
    residual: Option<Source<'_, T>>,
    y: Target<'_, T>,
) {
    let Finish { activation, past } = finish;
    let Some(Scale { high, factor, term }) = scale else {
        return write_exact(slab, activation, x, residual, y);
    };
    let (high, factor, term) = (Lanes::<S>::splat(high), Lanes::splat(factor), Lanes::splat(term));
    let head = y.head::<S>(past);
    if activation == Activation::None && residual.is_none() {
        // Loops of their own, since registers and time are short where runs are.
        if past {
            for_spans!(S, 1, y.len(), head, |span| v = x.load(span), {
                x.prefetch::<S>(span, AHEAD_OF_STREAM);
                y.store(span, (v - high).mul_add(factor, term), true);
            });
        } else {
            for_spans!(S, 1, y.len(), 0, |span| v = x.load(span), {
                y.store(span, (v - high).mul_add(factor, term), false);
            });
        }
        return;
    }
    for_spans!(S, 1, y.len(), head, |span| v = x.load(span), {
        let z = (v - high).mul_add(factor, term);
        let z = match residual {
            Some(residual) => z + residual.load(span),
            None => z,
        };
        y.store(span, activate(activation, z), past);
    });
}
