mod columns;
mod runs;

use core::ops::RangeInclusive;

use super::{by_columns, geometry::Geometry, reciprocal_std, slab::through};
use crate::{
    Activation, Element,
    channel_norm::{BackwardSource, ChannelNormBackward},
    cpu::{
        Cpu,
        memory::{Run, Shared, Source, Span, Target, copy},
        moments::Sums,
        parallel::{self, Way},
        params::{Params, store_grads},
        simd::{Kernel, Lanes, Simd},
    },
    shape::ChannelShape,
};

/// What all units of a call share.
struct Call<'a, T> {
    shape: ChannelShape,
    x: &'a [T],
    residual: Option<&'a [T]>,
    dy: &'a [T],
    params: Params<'a>,
    activation: Activation,
    mean: &'a [f32],
    rstd: &'a [f32],
    /// Whether the statistics depend on `x`.
    training: bool,
    dx: Option<Shared<'a, T>>,
    dresidual: Option<Shared<'a, T>>,
    /// The tensors are in no cache.
    far: bool,
    /// Past the caches.
    past: bool,
    bytes: usize,
    /// Whether the slabs of each segment are folded, as [`Slab`] says; `None`: all are.
    folds: Option<Vec<bool>>,
}

/// Reciprocal standard deviations that slabs are folded with: whether a gradient is multiplied by `x_hat` or by `x - mean`, it
/// leaves the range of `f32` hardly sooner. Of those that are not finite all gradients are NaN in any case.
fn folds(rstd: f32) -> bool {
    const RANGE: RangeInclusive<f32> = 1e-12..=1e12;
    RANGE.contains(&rstd) || !rstd.is_finite()
}

/// What the gradients of a slab are made with.
#[derive(Clone, Copy)]
struct Slab {
    folds: bool,
    mean: f32,
    rstd: f32,
    weight: f32,
    bias: f32,
    /// `dx = (d * weight + minus_mean_g + x_hat * slope) * rstd`, with the gradient `d` of what the activation was given; folded
    /// `dx = d * weight + minus_mean_g + (x - mean) * slope`, where each is multiplied by what is left out.
    minus_mean_g: f32,
    slope: f32,
}

impl<'a, T: Element> Call<'a, T> {
    fn slabs(&self) -> Vec<Slab> {
        let mut slabs = Vec::with_capacity(self.shape.slabs());
        let (mut statistic, mut neighbors) = (0, 0);
        for segment in 0..self.shape.segments() {
            for channel in 0..self.shape.channels() {
                slabs.push(self.slab_of(self.folds(segment), statistic, channel));
                neighbors += 1;
                if neighbors == self.shape.group() {
                    (statistic, neighbors) = (statistic + 1, 0);
                }
            }
        }
        slabs
    }

    fn slab(&self, slab: usize) -> Slab {
        let (segment, channel) = (slab / self.shape.channels(), slab % self.shape.channels());
        self.slab_of(self.folds(segment), slab / self.shape.group(), channel)
    }

    fn slab_of(&self, folds: bool, statistic: usize, channel: usize) -> Slab {
        Slab {
            folds,
            mean: self.mean[statistic],
            rstd: self.rstd[statistic],
            weight: self.params.weight[channel],
            bias: self.params.bias[channel],
            minus_mean_g: 0.0,
            slope: 0.0,
        }
    }

    /// One of its segments, whose passes are not divided among threads.
    fn segment(&self, segment: usize) -> Call<'_, T> {
        let shape = self.shape.segment();
        let elements = segment * shape.len()..(segment + 1) * shape.len();
        let statistics = segment * shape.statistics()..(segment + 1) * shape.statistics();
        let of = |out: &Shared<'a, T>| out.run(elements.start, elements.len());
        Call {
            shape,
            x: &self.x[elements.clone()],
            residual: self.residual.map(|residual| &residual[elements.clone()]),
            dy: &self.dy[elements.clone()],
            params: self.params.borrowed(),
            mean: &self.mean[statistics.clone()],
            rstd: &self.rstd[statistics],
            dx: self.dx.as_ref().map(of),
            dresidual: self.dresidual.as_ref().map(of),
            folds: (!self.folds(segment)).then(|| vec![false]),
            bytes: 0,
            ..*self
        }
    }

    fn folds(&self, segment: usize) -> bool {
        self.folds.as_ref().is_none_or(|folds| folds[segment])
    }

    fn all_fold(&self) -> bool {
        self.folds.is_none()
    }

    /// Completes the slabs of a statistic, of whose elements each is a `share`, with what their sums say.
    fn complete(&self, share: f64, slabs: &mut [Slab], sums: &[Sums]) {
        let (mut mean_g, mut mean_gx) = (0.0, 0.0);
        for (slab, sums) in slabs.iter().zip(sums) {
            mean_g += part_of_mean(slab.weight, sums.sum, share);
            mean_gx += part_of_mean(slab.weight, sums.squares, share);
        }
        for slab in slabs {
            let left_out = if slab.folds { f64::from(slab.rstd) } else { 1.0 };
            [slab.weight, slab.minus_mean_g, slab.slope] = completed(slab.weight, left_out, mean_g, mean_gx);
        }
    }
}

/// What a slab adds to the mean over its statistic of `g` or of `g * x_hat`, by the sum of `d` or of `d * x_hat`.
#[inline(always)]
pub(super) fn part_of_mean(weight: f32, sum: f64, share: f64) -> f64 {
    f64::from(weight) * sum * share
}

/// `weight`, `minus_mean_g` and `slope` of a [`Slab`] by the means over its statistic of the gradient `g` of `x_hat` and of
/// `g * x_hat`; `left_out` of a folded slab is its `rstd`, else 1.
#[inline(always)]
pub(super) fn completed(weight: f32, left_out: f64, mean_g: f64, mean_gx: f64) -> [f32; 3] {
    let weight = (f64::from(weight) * left_out) as f32;
    [weight, (-mean_g * left_out) as f32, (-mean_gx * left_out * left_out) as f32]
}

/// Sums over each slab: of each segment those of `d`, then those of `d * x_hat`.
struct SlabSums {
    values: Vec<f64>,
    channels: usize,
}

impl SlabSums {
    fn zeros(shape: ChannelShape) -> Self {
        Self { values: vec![0.0; 2 * shape.slabs()], channels: shape.channels() }
    }

    fn of(shape: ChannelShape, sums: &[Sums]) -> Self {
        let mut all = Self::zeros(shape);
        let segments = all.values.chunks_mut(2 * shape.channels()).zip(sums.chunks(shape.channels()));
        for (values, sums) in segments {
            let (d, dx_hat) = values.split_at_mut(shape.channels());
            for ((d, dx_hat), sums) in d.iter_mut().zip(dx_hat).zip(sums) {
                (*d, *dx_hat) = (sums.sum, sums.squares);
            }
        }
        all
    }

    /// Those of `d` and of `d * x_hat` of a segment.
    fn of_segment(&self, segment: usize) -> [&[f64]; 2] {
        let (d, dx_hat) = self.values[segment * 2 * self.channels..].split_at(self.channels);
        [d, &dx_hat[..self.channels]]
    }

    /// The sums over all segments, for each channel.
    fn per_channel(self) -> Self {
        if self.values.len() == 2 * self.channels {
            return self;
        }
        let mut values = vec![0.0; 2 * self.channels];
        for of_segment in self.values.chunks(2 * self.channels) {
            values.iter_mut().zip(of_segment).for_each(|(all, sum)| *all += sum);
        }
        Self { values, ..self }
    }
}

/// Vectors of the constants of slabs.
#[derive(Clone, Copy)]
struct Constants<S: Simd> {
    mean: Lanes<S>,
    rstd: Lanes<S>,
    weight: Lanes<S>,
    bias: Lanes<S>,
    minus_mean_g: Lanes<S>,
    slope: Lanes<S>,
}

/// The tensors, and what is done with them.
struct Tensors<'a, T> {
    x: Source<'a, T>,
    dy: Source<'a, T>,
    residual: Option<Source<'a, T>>,
    dx: Option<Target<'a, T>>,
    dresidual: Option<Target<'a, T>>,
    activation: Activation,
    training: bool,
    past: bool,
    /// In no cache.
    far: bool,
    /// Whether the slabs at hand are folded.
    folds: bool,
}
copy!(Tensors);

impl<'a, T: Element> Tensors<'a, T> {
    fn read(call: &Call<'a, T>, folds: bool) -> Self {
        Self {
            x: Source::new(call.x),
            dy: Source::new(call.dy),
            residual: call.residual.map(Source::new),
            dx: None,
            dresidual: None,
            activation: call.activation,
            training: call.training,
            past: call.past,
            far: call.far,
            folds,
        }
    }

    /// # Safety
    ///
    /// Nobody else reads or writes gradients that are written through the result.
    unsafe fn written(call: &Call<'a, T>, folds: bool) -> Self {
        // SAFETY: as promised.
        let (dx, dresidual) = unsafe { (call.dx.map(|v| v.target()), call.dresidual.map(|v| v.target())) };
        Self { dx, dresidual, ..Self::read(call, folds) }
    }

    /// `x` and `dy`.
    #[inline(always)]
    fn load<S: Simd>(self, span: Span) -> [Lanes<S>; 2] {
        [self.x.load(span), self.dy.load(span)]
    }

    /// Whether there is nothing but the norm, in training: most calls are of this kind, and kernels are compiled for it.
    #[inline(always)]
    fn is_plain(self) -> bool {
        self.folds && self.dresidual.is_none()
    }

    /// The gradient of what the activation was given, and `x_hat`; folded `x - mean`.
    #[inline(always)]
    fn gradient<S: Simd, const PLAIN: bool>(
        self,
        constants: Constants<S>,
        [x, dy]: [Lanes<S>; 2],
        span: Span,
    ) -> (Lanes<S>, Lanes<S>) {
        let centered = x - constants.mean;
        if PLAIN || self.folds {
            return (dy, centered);
        }
        let x_hat = centered * constants.rstd;
        if self.activation == Activation::None {
            return (dy, x_hat);
        }
        let z = x_hat.mul_add(constants.weight, constants.bias);
        let z = match self.residual {
            Some(residual) => z + residual.load(span),
            None => z,
        };
        (through(self.activation, dy, z), x_hat)
    }

    #[inline(always)]
    fn write<S: Simd, const PLAIN: bool>(self, constants: Constants<S>, loaded: [Lanes<S>; 2], span: Span) {
        let (d, x_hat) = self.gradient::<S, PLAIN>(constants, loaded, span);
        if !PLAIN && let Some(dresidual) = self.dresidual {
            dresidual.store(span, d, self.past);
        }
        let Some(dx) = self.dx else { return };
        if PLAIN || self.folds {
            let moved = d.mul_add(constants.weight, constants.minus_mean_g);
            return dx.store(span, x_hat.mul_add(constants.slope, moved), self.past);
        }
        let g = d * constants.weight;
        let moved = match self.training {
            // Not fused: where there is one value, its gradient is exactly 0.
            true => x_hat.mul_add(constants.slope, g + constants.minus_mean_g),
            // Constant statistics are not the same as means of zero: x_hat may be infinite.
            false => g,
        };
        dx.store(span, moved * constants.rstd, self.past);
    }

    /// Elements of a run before the first whole line that can be streamed.
    #[inline(always)]
    fn before_line<S: Simd>(self, run: Run) -> usize {
        self.dx.or(self.dresidual).map_or(0, |to| run.of(to).before_line::<S>(self.past))
    }

    /// Before a run is written.
    #[inline(always)]
    fn prefetch_ends<S: Simd>(self, run: Run) {
        for to in [self.dx, self.dresidual].into_iter().flatten() {
            run.of(to).prefetch_ends::<S>(self.past);
        }
    }

    /// Elements of a run before the first vector that can be streamed.
    #[inline(always)]
    fn head<S: Simd>(self, run: Run) -> usize {
        self.dx.or(self.dresidual).map_or(0, |to| run.of(to).head::<S>(self.past))
    }
}

/// Work that is compiled for plain calls, and for all others.
trait Specialized: Sized {
    type Output;

    /// As [`Kernel::run`].
    fn run<S: Simd, const PLAIN: bool>(self) -> Self::Output;
}

/// The kernel of such work.
struct Either<W> {
    is_plain: bool,
    work: W,
}

impl<W: Specialized> Kernel for Either<W> {
    type Output = W::Output;

    #[inline(always)]
    fn run<S: Simd>(self) -> W::Output {
        match self.is_plain {
            true => self.work.run::<S, true>(),
            false => self.work.run::<S, false>(),
        }
    }
}

pub(in crate::cpu) fn backward<T: Element>(shape: ChannelShape, args: ChannelNormBackward<'_, T, Cpu>) {
    let ChannelNormBackward { x, residual, dy, affine, eps, activation, source, .. } = args;
    let (dx, dresidual, grads) = (args.dx, args.dresidual, args.grads);
    let rstd_of_fixed: Vec<f32>;
    let (mean, rstd, training) = match source {
        BackwardSource::Batch { mean, rstd } => (mean, rstd, true),
        BackwardSource::Fixed(statistics) => {
            rstd_of_fixed = reciprocal_std(&statistics, eps).into_iter().map(|v| v as f32).collect();
            (statistics.mean, &rstd_of_fixed[..], false)
        }
    };
    let tensors = 2 + [residual.is_some(), dx.is_some(), dresidual.is_some()]
        .into_iter()
        .filter(|there| *there)
        .count();
    let bytes = tensors * shape.len() * size_of::<T>();
    let run = if by_columns(shape) { shape.len() } else { shape.inner() };
    let streams = parallel::is_far(bytes, Way::Winding);
    // What lies side by side may be streamed and still be read from a cache.
    let far = if by_columns(shape) { parallel::is_beyond_caches(bytes) } else { streams };
    // The gradient of one value is exactly 0, which takes the same roundings twice.
    let may_fold = training && activation == Activation::None && shape.per_statistic() > 1;
    // Each segment by itself, since the bits of a sample do not depend on the others.
    let of_segment = shape.channels() / shape.group();
    let fold = |rstd: &[f32]| may_fold && rstd.iter().fold(true, |all, &rstd| all & folds(rstd));
    let folds = (!fold(rstd)).then(|| {
        let segments = (0..shape.segments()).map(|segment| &rstd[segment * of_segment..][..of_segment]);
        segments.map(fold).collect()
    });
    let call = Call {
        shape,
        x,
        residual,
        dy,
        params: Params::of(&affine, shape.channels()),
        activation,
        mean,
        rstd,
        training,
        dx: dx.map(Shared::new),
        dresidual: dresidual.map(Shared::new),
        far,
        past: parallel::streams::<T>(streams, run),
        bytes,
        folds,
    };
    let sums = match (shape.is_empty(), by_columns(shape)) {
        (true, _) => SlabSums::zeros(shape),
        (_, true) => columns::backward(&call, !grads.is_none()),
        (_, false) => {
            SlabSums::of(shape, &runs::backward(&call, Geometry::of_slabs(shape), !grads.is_none()))
        }
    };
    if !grads.is_none() {
        let sums = sums.per_channel();
        let [d, dx_hat] = sums.of_segment(0);
        store_grads(grads, dx_hat, d, args.accumulate);
    }
}
