//! The numbers of slabs, several at a time, by the formulas of [`Moments`], [`Slab`] and [`backward`] for one. One thread of AMD
//! Zen 4, BatchNorm of 32 rows of 256 in f32, several at a time / one by one: forward 3.4 / 7.5 us, inference 1.6 / 3.9, backward
//! 3.3 / 6.1.

use std::borrow::Cow;

use super::{backward, slab::Slab};
use crate::cpu::{
    moments::{Moments, MomentsOf, SumsOf},
    simd::{Kernel, LANES, Simd, dispatch},
};

/// Work on slabs that lie side by side.
trait BySlabs {
    fn slabs(&self) -> usize;
    /// Those from `first` on. Loops over `N`, whose values are computed as vectors.
    fn some<const N: usize>(&mut self, first: usize);
}

/// The kernel of such work, on all slabs.
struct All<'a, W>(&'a mut W);

impl<W: BySlabs> Kernel for All<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(work) = self;
        let slabs = work.slabs();
        let mut first = 0;
        while first + LANES <= slabs {
            work.some::<LANES>(first);
            first += LANES;
        }
        for slab in first..slabs {
            work.some::<1>(slab);
        }
    }
}

#[inline(always)]
fn part<const N: usize, V: Copy + Default>(values: &[V], first: usize) -> [V; N] {
    let mut part = [V::default(); N];
    part.copy_from_slice(&values[first..first + N]);
    part
}

#[inline(always)]
fn put<const N: usize, V: Copy>(values: &mut [V], first: usize, part: [V; N]) {
    values[first..first + N].copy_from_slice(&part);
}

/// A number of each statistic, for each slab.
pub(super) fn of_slabs<V: Copy>(of_statistics: &[V], group: usize) -> Cow<'_, [V]> {
    if group == 1 {
        return Cow::Borrowed(of_statistics);
    }
    of_statistics.iter().flat_map(|&v| std::iter::repeat_n(v, group)).collect()
}

#[inline(always)]
pub(super) fn reciprocal_std(var: f64, eps: f32) -> f64 {
    (var + f64::from(eps)).sqrt().recip()
}

/// Reciprocal standard deviations of variances.
pub(super) fn reciprocal_stds<V: Copy + Into<f64>>(var: &[V], eps: f32, out: &mut [f64]) {
    dispatch(Rstd { var, eps, out });
}

struct Rstd<'a, V> {
    var: &'a [V],
    eps: f32,
    out: &'a mut [f64],
}

impl<V: Copy + Into<f64>> Kernel for Rstd<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (out, &var) in self.out.iter_mut().zip(self.var) {
            *out = reciprocal_std(var.into(), self.eps);
        }
    }
}

/// Sets means and variances of slabs to those that [`Moments::of`] gives, and with them reciprocal standard deviations; tells
/// which have none.
pub(super) fn statistics(
    [sums, squares]: [&[f64]; 2],
    shifts: &[f32],
    n: f64,
    eps: f32,
    [mean, var, rstd]: [&mut [f64]; 3],
) -> Vec<usize> {
    let mut work = FromSums { sums, squares, shifts, n, eps, mean, var, rstd, without: Vec::new() };
    dispatch(All(&mut work));
    work.without
}

struct FromSums<'a> {
    sums: &'a [f64],
    squares: &'a [f64],
    shifts: &'a [f32],
    n: f64,
    eps: f32,
    mean: &'a mut [f64],
    var: &'a mut [f64],
    rstd: &'a mut [f64],
    without: Vec<usize>,
}

impl BySlabs for FromSums<'_> {
    #[inline(always)]
    fn slabs(&self) -> usize {
        self.mean.len()
    }

    #[inline(always)]
    fn some<const N: usize>(&mut self, first: usize) {
        let sums = SumsOf::<N>::from(part(self.sums, first), part(self.squares, first));
        let shifts = part(self.shifts, first);
        if let Some(MomentsOf { mean, var }) = MomentsOf::of(&sums, &shifts, self.n) {
            let mut rstd = [0.0; N];
            for i in 0..N {
                rstd[i] = reciprocal_std(var[i], self.eps);
            }
            put(self.mean, first, mean);
            put(self.var, first, var);
            return put(self.rstd, first, rstd);
        }
        for (i, &shift) in shifts.iter().enumerate() {
            match Moments::of(sums.row(i), shift, self.n, self.eps) {
                Some(Moments { mean, var }) => {
                    (self.mean[first + i], self.var[first + i]) = (mean, var);
                    self.rstd[first + i] = reciprocal_std(var, self.eps);
                }
                None => self.without.push(first + i),
            }
        }
    }
}

/// [`Scale`](super::slab::Scale)s as rows of numbers, `high`, `factor` and `term`; tells which slabs have none.
pub(super) fn scales(
    mean: &[f64],
    rstd: &[f64],
    weight: &[f32],
    bias: &[f32],
    [high, factor, term]: [&mut [f32]; 3],
) -> Vec<usize> {
    let mut work = Scales { mean, rstd, weight, bias, high, factor, term, without: Vec::new() };
    dispatch(All(&mut work));
    work.without
}

struct Scales<'a> {
    mean: &'a [f64],
    rstd: &'a [f64],
    weight: &'a [f32],
    bias: &'a [f32],
    high: &'a mut [f32],
    factor: &'a mut [f32],
    term: &'a mut [f32],
    without: Vec<usize>,
}

impl BySlabs for Scales<'_> {
    #[inline(always)]
    fn slabs(&self) -> usize {
        self.mean.len()
    }

    #[inline(always)]
    fn some<const N: usize>(&mut self, first: usize) {
        let (mean, rstd) = (part::<N, _>(self.mean, first), part::<N, _>(self.rstd, first));
        let (weight, bias) = (part::<N, _>(self.weight, first), part::<N, _>(self.bias, first));
        let (mut high, mut factor, mut term) = ([0.0; N], [0.0; N], [0.0; N]);
        let mut fit = [true; N];
        for i in 0..N {
            let slab = Slab { mean: mean[i], rstd: rstd[i], weight: weight[i], bias: bias[i] };
            let (scale, fits) = slab.scale_if_fits();
            (high[i], factor[i], term[i]) = (scale.high, scale.factor, scale.term);
            fit[i] = fits;
        }
        if fit != [true; N] {
            self.without.extend((first..first + N).filter(|slab| !fit[slab - first]));
        }
        put(self.high, first, high);
        put(self.factor, first, factor);
        put(self.term, first, term);
    }
}

/// Sets rows to what [`backward::completed`] gives of sums over slabs of `d` and `d * x_hat`; each element is a `share` of a
/// statistic. Of folded slabs `rstd` is left out.
pub(super) fn completed(
    [d, dx_hat]: [&[f64]; 2],
    weight: &[f32],
    left_out: Option<&[f32]>,
    share: f64,
    group: usize,
    rows: [&mut [f32]; 3],
) {
    if group == 1 {
        let of = OfStatistics::Sums([d, dx_hat], share);
        dispatch(All(&mut Completed { weight, left_out, of, rows }));
        return;
    }
    let mut means = vec![0.0; 2 * weight.len()];
    let (mean_g, mean_gx) = means.split_at_mut(weight.len());
    for (means, sums) in [(&mut *mean_g, d), (&mut *mean_gx, dx_hat)] {
        dispatch(All(&mut Weighted { sums, weight, share, out: means }));
        for means in means.chunks_mut(group) {
            let mean = means.iter().fold(0.0, |mean, of_slab| mean + of_slab);
            means.fill(mean);
        }
    }
    let of = OfStatistics::Means([mean_g, mean_gx]);
    dispatch(All(&mut Completed { weight, left_out, of, rows }));
}

/// What slabs add to the means of their statistics.
struct Weighted<'a> {
    sums: &'a [f64],
    weight: &'a [f32],
    share: f64,
    out: &'a mut [f64],
}

impl BySlabs for Weighted<'_> {
    #[inline(always)]
    fn slabs(&self) -> usize {
        self.out.len()
    }

    #[inline(always)]
    fn some<const N: usize>(&mut self, first: usize) {
        let (sums, weight) = (part::<N, _>(self.sums, first), part::<N, _>(self.weight, first));
        put(self.out, first, weighted(weight, sums, self.share));
    }
}

#[inline(always)]
fn weighted<const N: usize>(weight: [f32; N], sums: [f64; N], share: f64) -> [f64; N] {
    let mut out = [0.0; N];
    for i in 0..N {
        // What is added to nothing is no -0.
        out[i] = 0.0 + backward::part_of_mean(weight[i], sums[i], share);
    }
    out
}

/// What is known of the statistic of each slab.
#[derive(Clone, Copy)]
enum OfStatistics<'a> {
    /// The means of `g` and of `g * x_hat`.
    Means([&'a [f64]; 2]),
    /// Where a slab is a statistic: the sums of `d` and of `d * x_hat`, and the share of an element.
    Sums([&'a [f64]; 2], f64),
}

struct Completed<'a> {
    weight: &'a [f32],
    left_out: Option<&'a [f32]>,
    of: OfStatistics<'a>,
    rows: [&'a mut [f32]; 3],
}

impl BySlabs for Completed<'_> {
    #[inline(always)]
    fn slabs(&self) -> usize {
        self.weight.len()
    }

    #[inline(always)]
    fn some<const N: usize>(&mut self, first: usize) {
        let weight = part::<N, _>(self.weight, first);
        let left_out = match self.left_out {
            Some(left_out) => part(left_out, first),
            None => [1.0; N],
        };
        let [mean_g, mean_gx] = match self.of {
            OfStatistics::Means([g, gx]) => [part(g, first), part(gx, first)],
            OfStatistics::Sums([d, dx_hat], share) => {
                [weighted(weight, part(d, first), share), weighted(weight, part(dx_hat, first), share)]
            }
        };
        let mut rows = [[0.0; N]; 3];
        for i in 0..N {
            let completed = backward::completed(weight[i], f64::from(left_out[i]), mean_g[i], mean_gx[i]);
            for row in 0..3 {
                rows[row][i] = completed[row];
            }
        }
        for (to, numbers) in self.rows.iter_mut().zip(rows) {
            put(to, first, numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{moments::Sums, simd::at_each_level};

    /// Of each magnitude, and what is no number, in an order that puts them at every place of a vector.
    fn values(seed: usize, len: usize) -> Vec<f64> {
        let some =
            [1.0, -0.25, 3.5, 1e-40, 2e20, 0.0, -0.0, 7.0, f64::INFINITY, 1e-12, -5.0, f64::NAN, 0.125];
        (0..len).map(|i| some[(i * seed + i / some.len()) % some.len()] * (1.0 + i as f64 / 64.0)).collect()
    }

    fn narrow(values: Vec<f64>) -> Vec<f32> {
        values.into_iter().map(|v| v as f32).collect()
    }

    /// With no difference between one NaN and another.
    fn bits(v: f64) -> u64 {
        if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() }
    }

    #[test]
    fn several_slabs_have_the_numbers_of_each() {
        at_each_level(|level| (1..=50).for_each(|slabs| check(slabs, &format!("{level:?}, {slabs} slabs"))));
    }

    fn check(slabs: usize, what: &str) {
        let [a, b] = [5, 7].map(|seed| values(seed, slabs));
        let [weight, bias, shifts] = [2, 3, 4].map(|seed| narrow(values(seed, slabs)));

        let variances: Vec<f64> = b.iter().map(|v| v.abs()).collect();
        let mut rstd = vec![0.0; slabs];
        reciprocal_stds(&variances, 1e-5, &mut rstd);
        for (rstd, var) in rstd.iter().zip(variances) {
            assert_eq!(
                bits(*rstd),
                bits((var + f64::from(1e-5_f32)).sqrt().recip()),
                "{what}: rstd of {var:e}"
            );
        }

        let squares: Vec<f64> = a.iter().map(|v| v * v + 1.0).collect();
        let [mut mean, mut var, mut rstd] = [0, 1, 2].map(|_| vec![0.0; slabs]);
        let without = statistics([&a, &squares], &shifts, 4.0, 1e-5, [&mut mean, &mut var, &mut rstd]);
        for slab in 0..slabs {
            let sums = Sums { sum: a[slab], squares: squares[slab] };
            let want = Moments::of(sums, shifts[slab], 4.0, 1e-5);
            assert_eq!(want.is_none(), without.contains(&slab), "{what}: moments of {slab}");
            let Some(want) = want else { continue };
            let got = [mean[slab], var[slab], rstd[slab]];
            let want = [want.mean, want.var, (want.var + f64::from(1e-5_f32)).sqrt().recip()];
            assert_eq!(got.map(bits), want.map(bits), "{what}: moments of {slab}");
        }

        let [mut high, mut factor, mut term] = [0, 1, 2].map(|_| vec![0.0; slabs]);
        let without = scales(&a, &b, &weight, &bias, [&mut high, &mut factor, &mut term]);
        for slab in 0..slabs {
            let one = Slab { mean: a[slab], rstd: b[slab], weight: weight[slab], bias: bias[slab] };
            let want = one.scale();
            assert_eq!(want.is_none(), without.contains(&slab), "{what}: scale of {slab}");
            let Some(want) = want else { continue };
            let got = [high[slab], factor[slab], term[slab]].map(|v| bits(f64::from(v)));
            let want = [want.high, want.factor, want.term].map(|v| bits(f64::from(v)));
            assert_eq!(got, want, "{what}: scale of {slab}");
        }

        for left_out in [None, Some(&shifts[..])] {
            for group in (1..=slabs).filter(|&group| slabs.is_multiple_of(group)) {
                let mut got = [0, 1, 2].map(|_| vec![0.0; slabs]);
                let rows = got.each_mut().map(|row| &mut row[..]);
                completed([&a, &b], &weight, left_out, 0.1, group, rows);
                for slab in 0..slabs {
                    let statistic = slab / group * group..(slab / group + 1) * group;
                    let mean = |sums: &[f64]| {
                        let parts =
                            statistic.clone().map(|i| backward::part_of_mean(weight[i], sums[i], 0.1));
                        parts.fold(0.0, |mean, part| mean + part)
                    };
                    let left_out = left_out.map_or(1.0, |left_out| f64::from(left_out[slab]));
                    let want = backward::completed(weight[slab], left_out, mean(&a), mean(&b));
                    let got = [0, 1, 2].map(|row| bits(f64::from(got[row][slab])));
                    assert_eq!(got, want.map(|v| bits(f64::from(v))), "{what}: {slab} of groups of {group}");
                }
            }
        }
    }
}
