use super::{
    by_columns, columns,
    geometry::{Geometry, Pieces},
    numbers, reciprocal_std,
    runs::{self, Finish, FirstShift, PartSums},
    slab::{Scale, Slab},
};
use crate::{
    Activation, Element,
    channel_norm::{ChannelNormForward, ForwardSource, RunningUpdate},
    cpu::{
        Cpu,
        memory::{Shared, Source, Target},
        moments::Sums,
        parallel::{self, Way},
        params::Params,
        simd::{Kernel, Simd, dispatch},
    },
    shape::ChannelShape,
};

/// Elements of a unit of work, at least.
const UNIT: usize = 16 << 10;

/// What all units of a call share.
pub(super) struct Call<'a, T> {
    pub(super) shape: ChannelShape,
    /// `None`: it is in `y`.
    pub(super) x: Option<&'a [T]>,
    pub(super) residual: Option<&'a [T]>,
    pub(super) y: Shared<'a, T>,
    pub(super) params: Params<'a>,
    pub(super) eps: f32,
    pub(super) finish: Finish,
    /// The tensors are in no cache.
    pub(super) far: bool,
    /// Little of them is in a cache when it is read again.
    pub(super) beyond: bool,
    pub(super) bytes: usize,
}

impl<'a, T: Element> Call<'a, T> {
    /// What is normalized.
    #[inline(always)]
    pub(super) fn source(&self, y: Target<'a, T>) -> Source<'a, T> {
        self.x.map_or(y.source(), Source::new)
    }

    /// One of its segments, whose passes are not divided among threads.
    pub(super) fn segment(&self, segment: usize) -> Call<'_, T> {
        let shape = self.shape.segment();
        let (start, len) = (segment * shape.len(), shape.len());
        Call {
            shape,
            x: self.x.map(|x| &x[start..start + len]),
            residual: self.residual.map(|residual| &residual[start..start + len]),
            y: self.y.run(start, len),
            params: self.params.borrowed(),
            bytes: 0,
            ..*self
        }
    }

    /// The numbers of a slab.
    #[inline(always)]
    pub(super) fn slab(&self, slab: usize, mean: f64, rstd: f64) -> Slab {
        let channel = slab % self.shape.channels();
        Slab { mean, rstd, weight: self.params.weight[channel], bias: self.params.bias[channel] }
    }
}

pub(in crate::cpu) fn forward<T: Element>(shape: ChannelShape, args: ChannelNormForward<'_, T, Cpu>) {
    let ChannelNormForward { x, residual, y, affine, eps, activation, source } = args;
    let tensors = 2 + usize::from(residual.is_some());
    let bytes = tensors * shape.len() * size_of::<T>();
    let run = if by_columns(shape) { shape.len() } else { shape.inner() };
    let way = match source {
        ForwardSource::Batch { .. } if by_columns(shape) => Way::Training,
        ForwardSource::Batch { .. } if shape.outer() > 1 => Way::Winding,
        _ => Way::Straight,
    };
    let far = parallel::is_far(bytes, way);
    let call = Call {
        shape,
        x: x.map(|x| &x[..shape.len()]),
        residual,
        y: Shared::new(&mut y[..shape.len()]),
        params: Params::of(&affine, shape.channels()),
        eps,
        finish: Finish { activation, past: x.is_some() && parallel::streams::<T>(far, run) },
        far,
        beyond: parallel::is_beyond_caches(bytes),
        bytes,
    };
    match source {
        ForwardSource::Fixed(statistics) => {
            let mean = statistics.mean.iter().map(|&mean| f64::from(mean)).collect::<Vec<_>>();
            normalize(&call, &mean, &reciprocal_std(&statistics, eps));
        }
        ForwardSource::Batch { mean, rstd, running, averaged, workspace: _ } => {
            let mut values = vec![0.0; 3 * shape.statistics()];
            let mut computed = Computed::new(&mut values);
            train(&call, &mut computed);
            for (out, values) in [(mean, &*computed.mean), (rstd, &*computed.rstd)] {
                let Some(out) = out else { continue };
                out.iter_mut().zip(values).for_each(|(out, &v)| *out = v as f32);
            }
            if let Some(running) = running {
                move_running(running, &computed, shape.per_statistic() as f64, averaged);
            }
        }
    }
}

/// Means, biased variances and reciprocal standard deviations of statistics.
pub(super) struct Computed<'a> {
    pub(super) mean: &'a mut [f64],
    pub(super) var: &'a mut [f64],
    pub(super) rstd: &'a mut [f64],
}

impl<'a> Computed<'a> {
    /// In one piece of memory.
    pub(super) fn new(values: &'a mut [f64]) -> Self {
        let (mean, others) = values.split_at_mut(values.len() / 3);
        let (var, rstd) = others.split_at_mut(mean.len());
        Self { mean, var, rstd }
    }
}

/// Normalizes with statistics of the tensor itself, and gives them.
fn train<T: Element>(call: &Call<'_, T>, out: &mut Computed<'_>) {
    let geometry = Geometry::new(call.shape);
    let statistics = call.shape.statistics();
    let threads = parallel::threads(call.bytes);
    // With several channels in several runs, one channel after another would not be the order of memory.
    let one_by_one = call.shape.group() == 1 || call.shape.outer() == 1;
    if by_columns(call.shape) {
        columns::train(call, out);
    } else if one_by_one && (threads == 1 || statistics >= 2 * threads) {
        fused(call, geometry, out);
    } else {
        moments_in_parts(call, geometry, out);
        numbers::reciprocal_stds(out.var, call.eps, out.rstd);
        normalize(call, out.mean, out.rstd);
    }
}

/// Each statistic at a time, so that its elements are read again while they are in a cache.
fn fused<T: Element>(call: &Call<'_, T>, geometry: Geometry, out: &mut Computed<'_>) {
    let per_unit = UNIT.div_ceil(call.shape.per_statistic());
    let statistics = out.mean.len();
    let out = [&mut *out.mean, &mut *out.var, &mut *out.rstd].map(Shared::new);
    parallel::for_each(statistics.div_ceil(per_unit), call.bytes, |unit| {
        let first = unit * per_unit;
        let last = (first + per_unit).min(statistics);
        // SAFETY: a unit touches its own statistics and their elements only, which no other statistic shares.
        let (y, out) = unsafe { (call.y.target(), out.map(|v| v.target())) };
        dispatch(Fused { call, geometry, first, last, y, out });
    });
}

/// Some of the statistics.
struct Fused<'a, T> {
    call: &'a Call<'a, T>,
    geometry: Geometry,
    first: usize,
    last: usize,
    y: Target<'a, T>,
    /// Means, variances and reciprocal standard deviations.
    out: [Target<'a, f64>; 3],
}

impl<T: Element> Kernel for Fused<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { call, geometry, y, .. } = self;
        let (group, inner) = (call.shape.group(), call.shape.inner());
        let x = call.source(y);
        for statistic in self.first..self.last {
            let moments = runs::moments::<S, T>(&geometry, x, statistic, call.eps);
            let rstd = numbers::reciprocal_std(moments.var, call.eps);
            for (out, v) in self.out.into_iter().zip([moments.mean, moments.var, rstd]) {
                out.set(statistic, v);
            }
            for neighbor in 0..group {
                let slab = call.slab(statistic * group + neighbor, moments.mean, rstd);
                let scale = slab.scale();
                // The last run is the one that is most likely still in a cache.
                let start = |outer| geometry.start(statistic, outer) + neighbor * inner;
                for outer in (0..call.shape.outer()).rev() {
                    let next = y.run(start(outer.saturating_sub(1)), inner);
                    next.prefetch_ends::<S>(call.finish.past);
                    let start = start(outer);
                    let residual = call.residual.map(|v| Source::new(v).run(start, inner));
                    let (x, y) = (x.run(start, inner), y.run(start, inner));
                    runs::write::<S, T>(&slab, scale, call.finish, x, residual, y);
                }
            }
        }
    }
}

/// Where there are too few statistics for the threads.
fn moments_in_parts<T: Element>(call: &Call<'_, T>, geometry: Geometry, out: &mut Computed<'_>) {
    let statistics = call.shape.statistics();
    let parts = geometry.parts();
    // SAFETY: nobody writes it here.
    let x = || call.source(unsafe { call.y.target() });
    let shift = |statistic| dispatch(FirstShift { geometry, x: x(), statistic });
    let shifts: Vec<f32> = (0..statistics).map(shift).collect();
    let mut sums = vec![Sums::default(); statistics * parts];
    let shared = Shared::new(&mut sums);
    parallel::for_each(statistics * parts, call.bytes, |unit| {
        let (statistic, part) = (unit / parts, unit % parts);
        let sums = dispatch(PartSums { geometry, x: x(), statistic, part, shift: Some(shifts[statistic]) });
        // SAFETY: each unit sets its own.
        unsafe { shared.target() }.set(unit, sums);
    });
    for (statistic, parts) in sums.chunks(parts).enumerate() {
        let mut total = Sums::default();
        parts.iter().for_each(|part| total.add(*part));
        let moments = runs::moments_of(&geometry, x(), statistic, shifts[statistic], total, call.eps);
        (out.mean[statistic], out.var[statistic]) = (moments.mean, moments.var);
    }
}

/// With statistics that are there.
fn normalize<T: Element>(call: &Call<'_, T>, mean: &[f64], rstd: &[f64]) {
    if by_columns(call.shape) {
        return columns::normalize(call, mean, rstd);
    }
    let statistics = Statistics { mean, rstd };
    // Where a slab has several runs, its numbers serve them all.
    let slabs: Vec<_> = match call.shape.outer() {
        1 => Vec::new(),
        _ => (0..call.shape.slabs()).map(|index| statistics.slab(call, index)).collect(),
    };
    let pieces = Pieces::new(call.shape);
    parallel::for_each(pieces.units(), call.bytes, |unit| {
        // SAFETY: a unit touches its own pieces only.
        let y = unsafe { call.y.target() };
        dispatch(Unit { call, statistics, slabs: &slabs, pieces, unit, y });
    });
}

/// What is there.
#[derive(Clone, Copy)]
struct Statistics<'a> {
    mean: &'a [f64],
    rstd: &'a [f64],
}

impl Statistics<'_> {
    fn slab<T: Element>(self, call: &Call<'_, T>, index: usize) -> (Slab, Option<Scale>) {
        let statistic = index / call.shape.group();
        let slab = call.slab(index, self.mean[statistic], self.rstd[statistic]);
        (slab, slab.scale())
    }
}

/// Some pieces.
struct Unit<'a, T> {
    call: &'a Call<'a, T>,
    statistics: Statistics<'a>,
    /// Those that are known.
    slabs: &'a [(Slab, Option<Scale>)],
    pieces: Pieces,
    unit: usize,
    y: Target<'a, T>,
}

impl<T: Element> Kernel for Unit<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match (self.call.finish.activation, self.call.residual) {
            (Activation::None, None) => self.normalize::<S, true>(),
            _ => self.normalize::<S, false>(),
        }
    }
}

impl<T: Element> Unit<'_, T> {
    /// `PLAIN`: there is nothing but the norm. It is compiled on its own because registers are short where runs are.
    #[inline(always)]
    fn normalize<S: Simd, const PLAIN: bool>(self) {
        let Self { call, slabs, y, .. } = self;
        let (x, mut residual, mut finish) = (call.source(y), call.residual.map(Source::new), call.finish);
        if PLAIN {
            residual = None;
            finish.activation = Activation::None;
        }
        for (index, run) in self.pieces.unit(self.unit) {
            let new;
            let (slab, scale) = match slabs.get(index) {
                Some(known) => known,
                None => {
                    new = self.statistics.slab(call, index);
                    &new
                }
            };
            let y = run.of(y);
            y.prefetch_ends::<S>(finish.past);
            runs::write::<S, T>(slab, *scale, finish, run.from(x), residual.map(|v| run.from(v)), y);
        }
    }
}

/// Moves running statistics towards those of the batch; `averaged`: towards their mean over the segments.
fn move_running(running: RunningUpdate<'_, Cpu>, new: &Computed<'_>, n: f64, averaged: bool) {
    let momentum = running.device_momentum.map_or(running.momentum, |m| m[0]);
    for (to, new, factor) in [(running.mean, &*new.mean, 1.0), (running.var, &*new.var, n / (n - 1.0))] {
        let (len, samples) = (to.len(), new.len() / to.len());
        for (i, to) in to.iter_mut().enumerate() {
            let new = match averaged {
                true => new[i..].iter().step_by(len).map(|v| v * factor).sum::<f64>() / samples as f64,
                false => new[i] * factor,
            };
            *to = moved(*to, new, momentum);
        }
    }
}

/// A momentum of 0 leaves the old value alone, even where the new one is NaN.
fn moved(old: f32, new: f64, momentum: f32) -> f32 {
    if momentum == 0.0 {
        return old;
    }
    let take = f64::from(momentum);
    ((1.0 - take) * f64::from(old) + take * new) as f32
}
