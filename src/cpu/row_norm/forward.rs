mod groups;

use core::ops::Range;

use self::groups::{Groups, group_rows};
use super::{ByRows, LONG_ROW, Place, as_long, load, splat, walk};
use crate::{
    Element,
    cpu::{
        Cpu,
        memory::{Shared, Source, Span, Target, for_spans},
        moments::{CHAIN, Chains, Moments, MomentsOf, Sums, SumsOf},
        parallel::{self, Way},
        params::Params,
        simd::{Kernel, LANES, Lanes, Simd, dispatch},
    },
    row_norm::{RowNormForward, RowSum},
    shape::RowShape,
};

/// Elements of a unit of work, at least.
const UNIT: usize = 16 << 10;

/// Rows that are worked on by four wherever they are. One thread of AMD Zen 4 in f32, 65,536 rows of 64, one at a time / by four
/// 1.43 / 1.24 ms, and 98,304 1.31 / 1.04.
const SHORT_ROW: usize = 64;

/// What all units of a call share.
struct Call<'a, T> {
    shape: RowShape,
    /// `None`: it is in `y`.
    x: Option<(&'a [T], Place)>,
    y: (Shared<'a, T>, Place),
    sum: Option<SumOf<'a, T>>,
    params: Params<'a>,
    eps: f32,
    rms: bool,
    mean: Option<Shared<'a, f32>>,
    rstd: Option<Shared<'a, f32>>,
    stream: bool,
    by_four: bool,
    /// Rows whose sums are all there before the first of them is written.
    group: usize,
}

/// What is added to `x`, and the sum.
struct SumOf<'a, T> {
    /// `None`: it is in `h`.
    residual: Option<(&'a [T], Place)>,
    h: (Shared<'a, T>, Place),
}

pub(in crate::cpu) fn forward<T: Element>(shape: RowShape, args: RowNormForward<'_, T, Cpu>) {
    let RowNormForward { x, y, sum, affine, eps, weight_offset, rms, mean, rstd } = args;
    let place = |stride| Place { shape, stride };
    let bytes = 2 * shape.len() * size_of::<T>();
    let far = parallel::is_far(bytes, Way::Winding);
    let stream = x.is_some() && parallel::streams::<T>(far, shape.cols());
    let call = Call {
        shape,
        stream,
        by_four: shape.cols() <= SHORT_ROW || shape.cols() <= LONG_ROW && !parallel::is_beyond_caches(bytes),
        group: if stream && sum.is_none() { group_rows::<T>(bytes, shape.cols()) } else { 1 },
        x: x.map(|x| (x.data, place(x.stride))),
        y: (Shared::new(y.data), place(y.stride)),
        sum: sum.map(|RowSum { residual, h }| SumOf {
            residual: residual.map(|v| (v.data, place(v.stride))),
            h: (Shared::new(h.data), place(h.stride)),
        }),
        params: Params::of(&affine, shape.cols()).offset(weight_offset, &affine),
        eps,
        rms,
        mean: mean.map(Shared::new),
        rstd: rstd.map(Shared::new),
    };
    let rows = UNIT.div_ceil(shape.cols()).next_multiple_of(call.group);
    parallel::for_each(shape.rows().div_ceil(rows), bytes, |unit| {
        let first = unit * rows;
        let last = (first + rows).min(shape.rows());
        // SAFETY: a unit touches its own rows only, and no two rows share an element.
        let unit = unsafe { Unit::new(&call, first, last) };
        match call.group {
            1 => dispatch(unit),
            _ => dispatch(Groups(unit)),
        }
    });
}

/// Some of the rows.
struct Unit<'a, T> {
    call: &'a Call<'a, T>,
    first: usize,
    last: usize,
    y: Target<'a, T>,
    h: Option<Target<'a, T>>,
    mean: Option<Target<'a, f32>>,
    rstd: Option<Target<'a, f32>>,
}

impl<'a, T> Unit<'a, T> {
    /// # Safety
    ///
    /// No other unit works on these rows at the same time.
    unsafe fn new(call: &'a Call<'a, T>, first: usize, last: usize) -> Self {
        // SAFETY: as promised.
        unsafe {
            Self {
                call,
                first,
                last,
                y: call.y.0.target(),
                h: call.sum.as_ref().map(|sum| sum.h.0.target()),
                mean: call.mean.as_ref().map(|v| v.target()),
                rstd: call.rstd.as_ref().map(|v| v.target()),
            }
        }
    }
}

impl<T: Element> Kernel for Unit<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        walk::<S>(&self, self.first..self.last);
    }
}

/// Means and reciprocal standard deviations of rows.
#[derive(Clone, Copy)]
struct Numbers<const R: usize> {
    mean: [f64; R],
    rstd: [f64; R],
}

impl<const R: usize> Numbers<R> {
    /// Whether [`Scales`] will do for all rows, without a closer look.
    #[inline(always)]
    fn fit(&self) -> bool {
        self.rstd.iter().fold(true, |all, rstd| all & FITTING.contains(rstd))
    }

    /// Those of one row.
    #[inline(always)]
    fn row(&self, r: usize) -> Numbers<1> {
        Numbers { mean: [self.mean[r]], rstd: [self.rstd[r]] }
    }
}

impl Numbers<1> {
    /// Whether they do for this row, also where all its results are NaN, or as if there were no deviations.
    #[inline(always)]
    fn will_do(&self) -> bool {
        let [rstd] = self.rstd;
        FITTING.contains(&rstd) || rstd == 0.0 || !rstd.is_finite()
    }
}

/// How rows are normalized: `((x - high) * rstd + low) * weight + bias`.
///
/// `low` makes up for what the mean loses as an `f32`; it is 0 where all elements are equal, and `y` the bias.
struct Scales<const R: usize> {
    high: [f32; R],
    rstd: [f32; R],
    low: [f32; R],
}

impl<const R: usize> Scales<R> {
    #[inline(always)]
    fn new(Numbers { mean, rstd }: Numbers<R>, rms: bool) -> Self {
        let mut scales = Self { high: [0.0; R], rstd: [0.0; R], low: [0.0; R] };
        for r in 0..R {
            scales.high[r] = mean[r] as f32;
            scales.rstd[r] = rstd[r] as f32;
        }
        if !rms {
            for r in 0..R {
                scales.low[r] = ((f64::from(scales.high[r]) - mean[r]) * rstd[r]) as f32;
            }
        }
        scales
    }
}

/// Reciprocal standard deviations that an `f32` has digits enough for.
const FITTING: Range<f64> = 1e-30..1e30;

impl<T: Element> ByRows for Unit<'_, T> {
    #[inline(always)]
    fn cols(&self) -> usize {
        self.call.shape.cols()
    }

    #[inline(always)]
    fn by_four(&self) -> bool {
        self.call.by_four
    }

    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, row: usize) {
        self.add_residual::<S>(row, R);
        let x = self.source::<R>(row);
        for y in self.call.y.1.rows_mut::<T, R>(self.y, row) {
            y.prefetch_ends::<S>(self.call.stream);
        }
        let numbers = self.numbers::<S, R>(x, row);
        if numbers.fit() {
            return self.write::<S, R>(x, row, &Scales::new(numbers, self.call.rms));
        }
        // Each row as it would be alone: its bits do not depend on those beside it.
        for (r, x) in x.into_iter().enumerate() {
            let of_row = numbers.row(r);
            match of_row.will_do() {
                true => self.write::<S, 1>([x], row + r, &Scales::new(of_row, self.call.rms)),
                false => self.write_exact(x, row + r, of_row),
            }
        }
    }
}

impl<T: Element> Unit<'_, T> {
    /// What is normalized.
    #[inline(always)]
    fn source<const R: usize>(&self, row: usize) -> [Source<'_, T>; R] {
        match (&self.call.sum, self.h, self.call.x) {
            (Some(sum), Some(h), _) => sum.h.1.rows(h.source(), row),
            (_, _, Some((x, place))) => place.rows(Source::new(x), row),
            _ => self.call.y.1.rows(self.y.source(), row),
        }
    }

    /// Rounds the sums of `x` and the residual to `h`.
    #[inline(always)]
    fn add_residual<S: Simd>(&self, first: usize, rows: usize) {
        let (Some(sum), Some(h)) = (&self.call.sum, self.h) else { return };
        let cols = self.call.shape.cols();
        for row in first..first + rows {
            let [h] = sum.h.1.rows_mut(h, row);
            let [x] = match self.call.x {
                Some((x, place)) => place.rows(Source::new(x), row),
                None => self.call.y.1.rows(self.y.source(), row),
            };
            let residual =
                sum.residual.map_or(h.source(), |(v, place)| place.rows::<T, 1>(Source::new(v), row)[0]);
            // In f32 the sum of two 16-bit values has digits enough to be rounded once more without harm.
            for_spans!(S, 1, cols, 0, |span| sum = x.load::<S>(span) + residual.load(span), {
                h.store(span, sum, false);
            });
        }
    }

    /// Means and reciprocal standard deviations, which are also saved where they are wanted.
    #[inline(always)]
    fn numbers<S: Simd, const R: usize>(&self, x: [Source<'_, T>; R], row: usize) -> Numbers<R> {
        let MomentsOf { mean, var } = self.moments::<S, R>(x);
        let eps = f64::from(self.call.eps);
        let mut numbers = Numbers { mean, rstd: [0.0; R] };
        let (mut mean, mut rstd) = ([0.0; R], [0.0; R]);
        for r in 0..R {
            numbers.rstd[r] = (var[r] + eps).sqrt().recip();
            (mean[r], rstd[r]) = (numbers.mean[r] as f32, numbers.rstd[r] as f32);
        }
        if let Some(out) = self.mean {
            out.set_each(row, mean);
        }
        if let Some(out) = self.rstd {
            out.set_each(row, rstd);
        }
        numbers
    }

    #[inline(always)]
    fn moments<S: Simd, const R: usize>(&self, x: [Source<'_, T>; R]) -> MomentsOf<R> {
        let (n, eps, rms) = (self.call.shape.cols() as f64, self.call.eps, self.call.rms);
        let shifts = x.map(|x| if rms { 0.0 } else { x.one(0) });
        let sums = match rms {
            true => self.sums::<S, R, true>(x, shifts),
            false => self.sums::<S, R, false>(x, shifts),
        };
        if let Some(all) = MomentsOf::of(&sums, &shifts, n) {
            return all;
        }
        let mut all = MomentsOf { mean: [0.0; R], var: [0.0; R] };
        for r in 0..R {
            let Moments { mean, var } = match Moments::of(sums.row(r), shifts[r], n, eps) {
                Some(moments) => moments,
                None => self.moments_again(x[r], shifts[r], sums.row(r)),
            };
            (all.mean[r], all.var[r]) = (mean, var);
        }
        all
    }

    /// Where the first element was no good shift: with the mean that it gave.
    #[cold]
    #[inline(never)]
    fn moments_again(&self, x: Source<'_, T>, shift: f32, sums: Sums) -> Moments {
        let (cols, eps) = (self.call.shape.cols(), self.call.eps);
        let n = cols as f64;
        if self.call.rms {
            let squares = (0..cols).map(|i| f64::from(x.one(i)).powi(2));
            return Moments { mean: 0.0, var: squares.sum::<f64>() / n };
        }
        let shift = (f64::from(shift) + sums.sum / n) as f32;
        let sums = dispatch(Again { unit: self, x, shift });
        Moments::of(sums, shift, n, eps).unwrap_or_else(|| Moments::exact(n, (0..cols).map(|i| x.one(i))))
    }

    #[inline(always)]
    fn sums<S: Simd, const R: usize, const RMS: bool>(
        &self,
        x: [Source<'_, T>; R],
        shifts: [f32; R],
    ) -> SumsOf<R> {
        let cols = self.call.shape.cols();
        let x = as_long(x, 0, cols);
        let shifts = splat::<S, R>(shifts);
        let mut sums = SumsOf::new();
        let mut at = 0;
        while at < cols {
            let end = (at + 2 * CHAIN * LANES).min(cols);
            let mut chains = [Chains::<S>::new(); R];
            while at + 2 * LANES <= end {
                push::<S, T, R, RMS>(&mut chains, 0, x, shifts, Span::new(at, LANES, cols));
                push::<S, T, R, RMS>(&mut chains, 1, x, shifts, Span::new(at + LANES, LANES, cols));
                at += 2 * LANES;
            }
            if at + LANES <= end {
                push::<S, T, R, RMS>(&mut chains, 0, x, shifts, Span::new(at, LANES, cols));
                at += LANES;
            }
            if at < end {
                push::<S, T, R, RMS>(&mut chains, 1, x, shifts, Span::new(at, end - at, cols));
                at = end;
            }
            sums.add(Chains::sums_of(&chains));
        }
        sums
    }

    #[inline(always)]
    fn write<S: Simd, const R: usize>(&self, x: [Source<'_, T>; R], row: usize, scales: &Scales<R>) {
        self.write_columns::<S, R>(x, row, scales, 0..self.cols());
    }

    /// Some of the columns.
    #[inline(always)]
    fn write_columns<S: Simd, const R: usize>(
        &self,
        x: [Source<'_, T>; R],
        row: usize,
        scales: &Scales<R>,
        columns: Range<usize>,
    ) {
        let (start, cols) = (columns.start, columns.len());
        let x = as_long(x, start, cols);
        let mut y = self.call.y.1.rows_mut::<T, R>(self.y, row);
        for y in &mut y {
            *y = y.run(start, cols);
        }
        let weight = Source::new(&self.call.params.weight).run(start, cols);
        let bias = Source::new(&self.call.params.bias).run(start, cols);
        let high = splat::<S, R>(scales.high);
        let rstd = splat::<S, R>(scales.rstd);
        let low = splat::<S, R>(scales.low);
        let past = self.call.stream;
        for_spans!(S, R, cols, y[0].head::<S>(past), |span| v = load::<S, T, R>(x, span), {
            let (weight, bias) = (weight.load(span), bias.load(span));
            for r in 0..R {
                let x_hat = (v[r] - high[r]).mul_add(rstd[r], low[r]);
                y[r].store(span, x_hat.mul_add(weight, bias), past);
            }
        });
    }

    /// For a `rstd` that is no proper `f32`.
    #[cold]
    #[inline(never)]
    fn write_exact(&self, x: Source<'_, T>, row: usize, numbers: Numbers<1>) {
        let Numbers { mean: [mean], rstd: [rstd] } = numbers;
        let to = self.call.y.1.of(row);
        let (weight, bias) = (&self.call.params.weight, &self.call.params.bias);
        for (at, (weight, bias)) in weight.iter().zip(bias.iter()).enumerate() {
            let x_hat = (f64::from(x.one(at)) - mean) * rstd;
            self.y.set(to + at, T::from_f64(x_hat * f64::from(*weight) + f64::from(*bias)));
        }
    }
}

/// Adds a vector of each row to a chain.
#[inline(always)]
fn push<S: Simd, T: Element, const R: usize, const RMS: bool>(
    chains: &mut [Chains<S>; R],
    chain: usize,
    x: [Source<'_, T>; R],
    shifts: [Lanes<S>; R],
    span: Span,
) {
    for r in 0..R {
        let v = x[r].load::<S>(span);
        if RMS {
            chains[r].push_square(chain, v);
        } else {
            chains[r].push(chain, (v - shifts[r]).first(span.n()));
        }
    }
}

/// The sums of one row once more.
struct Again<'a, T> {
    unit: &'a Unit<'a, T>,
    x: Source<'a, T>,
    shift: f32,
}

impl<T: Element> Kernel for Again<'_, T> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self) -> Sums {
        self.unit.sums::<S, 1, false>([self.x], [self.shift]).row(0)
    }
}
