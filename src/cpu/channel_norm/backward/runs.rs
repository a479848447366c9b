//! The backward pass channel by channel.

use super::{
    super::geometry::{Geometry, Pieces},
    Call, Constants, Either, Slab, Specialized, Tensors,
};
use crate::{
    Element,
    cpu::{
        memory::{AHEAD_OF_STREAM, Run, SHORT_RUN, Shared, Span, for_spans},
        moments::{CHAIN, Sums},
        parallel,
        simd::{LANES, Lanes, Simd, dispatch},
    },
};

/// Elements of a unit of work, at least.
const UNIT: usize = 16 << 10;

impl Slab {
    #[inline(always)]
    fn splat<S: Simd>(&self) -> Constants<S> {
        Constants {
            mean: Lanes::splat(self.mean),
            rstd: Lanes::splat(self.rstd),
            weight: Lanes::splat(self.weight),
            bias: Lanes::splat(self.bias),
            minus_mean_g: Lanes::splat(self.minus_mean_g),
            slope: Lanes::splat(self.slope),
        }
    }
}

impl<T> Tensors<'_, T> {
    /// For a slab: those of a unit may be of several segments.
    #[inline(always)]
    fn of(self, slab: &Slab) -> Self {
        Self { folds: slab.folds, ..self }
    }
}

/// Writes what is wanted, and gives the sums over each slab where they are.
pub(super) fn backward<T: Element>(call: &Call<'_, T>, geometry: Geometry, sums_wanted: bool) -> Vec<Sums> {
    let shape = call.shape;
    let written = call.dx.is_some() || call.dresidual.is_some();
    let summed = sums_wanted || call.training && call.dx.is_some();
    let mut sums = vec![Sums::default(); shape.slabs()];
    let threads = parallel::threads(call.bytes);
    let one_by_one = shape.group() == 1 || shape.outer() == 1;
    let in_parts = summed && !(one_by_one && (threads == 1 || shape.statistics() >= 2 * threads));
    if in_parts {
        sum_parts(call, geometry, &mut sums);
        if !written {
            return sums;
        }
    }
    let mut slabs = call.slabs();
    let share = (shape.per_statistic() as f64).recip();
    if in_parts || !summed {
        for (slabs, sums) in slabs.chunks_mut(shape.group()).zip(sums.chunks(shape.group())) {
            call.complete(share, slabs, sums);
        }
        write_pieces(call, &slabs);
        return sums;
    }
    let per_unit = UNIT.div_ceil(shape.per_statistic());
    let (slabs, out) = (Shared::new(&mut slabs), Shared::new(&mut sums));
    parallel::for_each(shape.statistics().div_ceil(per_unit), call.bytes, |unit| {
        let first = unit * per_unit;
        let len = per_unit.min(shape.statistics() - first);
        let group = shape.group();
        // SAFETY: a unit touches its own statistics and their elements only, which no other statistic shares.
        let (tensors, slabs, sums) = unsafe {
            (
                Tensors::written(call, call.all_fold()),
                slabs.target().slice(first * group, len * group),
                out.target().slice(first * group, len * group),
            )
        };
        let work = Fused { call, geometry, first: first * group, tensors, slabs, sums, written };
        dispatch(Either { is_plain: tensors.is_plain(), work });
    });
    sums
}

/// Some of the statistics, one at a time, so that their elements are read again while they are in a cache.
struct Fused<'a, T> {
    call: &'a Call<'a, T>,
    geometry: Geometry,
    /// The first slab.
    first: usize,
    tensors: Tensors<'a, T>,
    slabs: &'a mut [Slab],
    sums: &'a mut [Sums],
    written: bool,
}

impl<T: Element> Specialized for Fused<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) {
        let Self { call, geometry, first, tensors, slabs, sums, written } = self;
        let group = call.shape.group();
        let share = (call.shape.per_statistic() as f64).recip();
        for start in (0..slabs.len()).step_by(group) {
            let slabs = &mut slabs[start..start + group];
            let sums = &mut sums[start..start + group];
            for (neighbor, (slab, sums)) in slabs.iter().zip(&mut *sums).enumerate() {
                for part in 0..geometry.parts() {
                    let slab_at = first + start + neighbor;
                    sums.add(part_sums::<S, T, PLAIN>(&geometry, tensors, slab_at, part, slab));
                }
            }
            if !written {
                continue;
            }
            call.complete(share, slabs, sums);
            for (neighbor, slab) in slabs.iter().enumerate() {
                let (tensors, constants) = (tensors.of(slab), slab.splat::<S>());
                // The last run is the one that is most likely still in a cache.
                let run = |outer| {
                    let at = geometry.start(first + start + neighbor, outer);
                    Run::new(at, call.shape.inner(), call.shape.len())
                };
                let inner = call.shape.inner();
                for outer in (0..call.shape.outer()).rev() {
                    tensors.prefetch_ends::<S>(run(outer.saturating_sub(1)));
                    if tensors.far && inner * size_of::<T>() <= SHORT_RUN {
                        // Of the next slab.
                        let next = geometry.start(first + start + neighbor, outer) + inner;
                        tensors.x.prefetch_run::<S>(next, inner);
                        tensors.dy.prefetch_run::<S>(next, inner);
                    }
                    write::<S, T, PLAIN>(tensors, constants, run(outer));
                }
            }
        }
    }
}

#[inline(always)]
fn write<S: Simd, T: Element, const PLAIN: bool>(tensors: Tensors<'_, T>, constants: Constants<S>, run: Run) {
    if !tensors.past {
        // A loop of its own, since registers and time are short where runs are.
        let tensors = Tensors { past: false, ..tensors };
        for_spans!(S, 2, run.len(), 0, |span| loaded = tensors.load(run.span(span)), {
            tensors.write::<S, PLAIN>(constants, loaded, run.span(span));
        });
        return;
    }
    for_spans!(S, 2, run.len(), tensors.head::<S>(run), |span| loaded = tensors.load(run.span(span)), {
        // In f32 nothing is gained.
        if size_of::<T>() == 2 {
            tensors.x.prefetch::<S>(run.span(span), AHEAD_OF_STREAM);
            tensors.dy.prefetch::<S>(run.span(span), AHEAD_OF_STREAM);
        }
        tensors.write::<S, PLAIN>(constants, loaded, run.span(span));
    });
}

/// Sums over a part of a slab of `d` and `d * x_hat`.
#[inline(always)]
fn part_sums<S: Simd, T: Element, const PLAIN: bool>(
    geometry: &Geometry,
    tensors: Tensors<'_, T>,
    slab: usize,
    part: usize,
    constants: &Slab,
) -> Sums {
    let (part, tensors) = (geometry.part(part), tensors.of(constants));
    let mut adder = Adder::<S> {
        constants: constants.splat(),
        d: [Lanes::splat(0.0); 2],
        dx_hat: [Lanes::splat(0.0); 2],
        used: 0,
        sums: Sums::default(),
    };
    for outer in part.runs {
        let start = geometry.start(slab, outer) + part.piece.start;
        adder.add::<T, PLAIN>(tensors, Run::new(start, part.piece.len(), geometry.shape.len()));
    }
    adder.flush();
    if PLAIN || tensors.folds {
        adder.sums.squares *= f64::from(constants.rstd);
    }
    adder.sums
}

/// Adds up over many runs.
struct Adder<S: Simd> {
    constants: Constants<S>,
    d: [Lanes<S>; 2],
    dx_hat: [Lanes<S>; 2],
    /// Vectors in them.
    used: usize,
    sums: Sums,
}

impl<S: Simd> Adder<S> {
    #[inline(always)]
    fn add<T: Element, const PLAIN: bool>(&mut self, tensors: Tensors<'_, T>, run: Run) {
        let len = run.len();
        let mut at = 0;
        while at < len {
            let end = (at + 2 * CHAIN * LANES).min(len);
            let vectors = (end - at).div_ceil(LANES);
            if self.used + vectors > 2 * CHAIN {
                self.flush();
            }
            self.used += vectors.next_multiple_of(2);
            while at + 2 * LANES <= end {
                self.push::<T, PLAIN>(0, tensors, run.span(Span::new(at, LANES, len)));
                self.push::<T, PLAIN>(1, tensors, run.span(Span::new(at + LANES, LANES, len)));
                at += 2 * LANES;
            }
            if at + LANES <= end {
                self.push::<T, PLAIN>(0, tensors, run.span(Span::new(at, LANES, len)));
                at += LANES;
            }
            if at < end {
                self.push::<T, PLAIN>(1, tensors, run.span(Span::new(at, end - at, len)));
                at = end;
            }
        }
    }

    #[inline(always)]
    fn push<T: Element, const PLAIN: bool>(&mut self, chain: usize, tensors: Tensors<'_, T>, span: Span) {
        // Behind the end there are zeros, whose product with an infinity would not be one.
        let (d, x_hat) = tensors.gradient::<S, PLAIN>(self.constants, tensors.load(span), span);
        let (d, x_hat) = (d.first(span.n()), x_hat.first(span.n()));
        self.d[chain] = self.d[chain] + d;
        self.dx_hat[chain] = d.mul_add(x_hat, self.dx_hat[chain]);
    }

    #[inline(always)]
    fn flush(&mut self) {
        self.sums.sum += f64::from((self.d[0] + self.d[1]).sum());
        self.sums.squares += f64::from((self.dx_hat[0] + self.dx_hat[1]).sum());
        self.d = [Lanes::splat(0.0); 2];
        self.dx_hat = [Lanes::splat(0.0); 2];
        self.used = 0;
    }
}

/// Where there are too few statistics for the threads.
fn sum_parts<T: Element>(call: &Call<'_, T>, geometry: Geometry, sums: &mut [Sums]) {
    let parts = geometry.parts();
    let mut of_parts = vec![Sums::default(); sums.len() * parts];
    let out = Shared::new(&mut of_parts);
    parallel::for_each(sums.len() * parts, call.bytes, |unit| {
        let (slab, part) = (unit / parts, unit % parts);
        let tensors = Tensors::read(call, call.all_fold());
        let work = OnePart { geometry, tensors, slab, part, constants: call.slab(slab) };
        let sums = dispatch(Either { is_plain: tensors.is_plain(), work });
        // SAFETY: each unit sets its own.
        unsafe { out.target() }.set(unit, sums);
    });
    for (sums, parts) in sums.iter_mut().zip(of_parts.chunks(parts)) {
        parts.iter().for_each(|part| sums.add(*part));
    }
}

/// The sums of one part.
struct OnePart<'a, T> {
    geometry: Geometry,
    tensors: Tensors<'a, T>,
    slab: usize,
    part: usize,
    constants: Slab,
}

impl<T: Element> Specialized for OnePart<'_, T> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) -> Sums {
        let Self { geometry, tensors, slab, part, constants } = self;
        part_sums::<S, T, PLAIN>(&geometry, tensors, slab, part, &constants)
    }
}

/// With slabs that are complete.
fn write_pieces<T: Element>(call: &Call<'_, T>, slabs: &[Slab]) {
    let pieces = Pieces::new(call.shape);
    parallel::for_each(pieces.units(), call.bytes, |unit| {
        // SAFETY: a unit touches its own pieces only.
        let tensors = unsafe { Tensors::written(call, call.all_fold()) };
        dispatch(Either { is_plain: tensors.is_plain(), work: Unit { pieces, unit, slabs, tensors } });
    });
}

/// Some pieces.
struct Unit<'a, T> {
    pieces: Pieces,
    unit: usize,
    slabs: &'a [Slab],
    tensors: Tensors<'a, T>,
}

impl<T: Element> Specialized for Unit<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) {
        for (slab, run) in self.pieces.unit(self.unit) {
            self.tensors.prefetch_ends::<S>(run);
            let slab = &self.slabs[slab];
            write::<S, T, PLAIN>(self.tensors.of(slab), slab.splat(), run);
        }
    }
}
