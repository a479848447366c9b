use crate::{Affine, Backend, BatchNorm, Element, Error, Result, RunningStats, Tensor, error::check_len};

/// Mean and variance of each statistic of a [`BatchNorm`] over all values of many batches, exact but for rounding: what
/// running statistics, which forget, only estimate. (The cumulative average of `momentum` `None` averages the variances
/// of the batches; this is the variance of all values, distances between batch means included.)
///
/// Counts, means and sums of squared deviations are kept in `f64` on the host and combined by Chan, Golub and LeVeque's
/// formula ([doi:10.1080/00031305.1983.10483115](https://doi.org/10.1080/00031305.1983.10483115)):
///
/// `mean = mean_a + (mean_b - mean_a) * n_b / n`, `M2 = M2_a + M2_b + (mean_b - mean_a)² * n_a * n_b / n`
///
/// One more pass over the data with the weights frozen gives a trained network exact statistics for inference (Wu and
/// Johnson, [arXiv:2105.07576](https://arxiv.org/abs/2105.07576)); [`merge`](Self::merge) joins those of several
/// workers. The result does not depend on how the data is cut into batches, but for rounding.
///
/// ```
/// use warpnorm::{BatchNorm, Cpu, PopulationStats, Tensor};
///
/// let mut stats = PopulationStats::new(1);
/// for batch in [&[1.0_f32, 2.0][..], &[3.0, 4.0, 5.0]] {
///     stats.observe(&BatchNorm::new(1), &Cpu, &Tensor::from_slice(&Cpu, batch, &[batch.len(), 1])?)?;
/// }
/// assert_eq!((stats.count(), stats.mean()), (5, &[3.0][..]));
/// assert_eq!(stats.variance(), [2.0]);
/// assert_eq!(stats.running_stats(&Cpu)?.var.to_vec(&Cpu)?, [2.5]); // unbiased
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PopulationStats {
    count: u64,
    mean: Vec<f64>,
    /// Sums of squared deviations from the mean.
    m2: Vec<f64>,
    batches: u64,
}

impl PopulationStats {
    /// Of nothing yet; `len` is [`BatchNorm::running_len`].
    pub fn new(len: usize) -> Self {
        Self { count: 0, mean: vec![0.0; len], m2: vec![0.0; len], batches: 0 }
    }

    /// Takes in a batch by its statistics: `count` values each, their means and unbiased variances (which are not read
    /// where `count` is 1). A count of 0 changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] where there are not as many as statistics here.
    pub fn push(&mut self, count: u64, mean: &[f32], unbiased_var: &[f32]) -> Result<()> {
        check_len("mean", self.mean.len(), mean.len())?;
        check_len("unbiased_var", self.mean.len(), unbiased_var.len())?;
        let m2 = |var: f32| if count > 1 { f64::from(var) * (count - 1) as f64 } else { 0.0 };
        self.combine(count, mean.iter().copied().map(f64::from), unbiased_var.iter().map(|&var| m2(var)));
        self.batches = self.batches.saturating_add(u64::from(count > 0));
        Ok(())
    }

    /// Takes in a batch: normalizes it with `norm`, for the statistics alone, and waits for them. They are rounded to
    /// `f32` once. An empty batch changes nothing; one of a single value per statistic is refused, unlike by
    /// [`push`](Self::push).
    ///
    /// # Errors
    ///
    /// As [`BatchNorm::forward_train`], [`Error::Length`] where `norm` has another number of running statistics, and
    /// [`Error::Unsupported`] for a `norm` with a virtual batch, whose statistics are not those of the batch.
    pub fn observe<T: Element, B: Backend>(
        &mut self,
        norm: &BatchNorm,
        on: &B,
        x: &Tensor<T, B>,
    ) -> Result<()> {
        if norm.has_virtual_batch() {
            return Err(Error::Unsupported(
                "population statistics are those of whole batches, not of virtual ones",
            ));
        }
        check_len("running_mean", self.mean.len(), norm.running_len())?;
        if x.is_empty() {
            return Ok(());
        }
        // A momentum of 1 leaves mean and unbiased variance of the batch behind.
        let mut batch = RunningStats::new(on, self.mean.len())?;
        norm.momentum(1.0).forward_train(on, x, Affine::None, Some(&mut batch))?;
        let count = (x.len() / self.mean.len()) as u64;
        self.push(count, &batch.mean.to_vec(on)?, &batch.var.to_vec(on)?)
    }

    /// Takes in all that another has seen.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] where there are not as many statistics as here.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        check_len("other", self.mean.len(), other.mean.len())?;
        self.combine(other.count, other.mean.iter().copied(), other.m2.iter().copied());
        self.batches = self.batches.saturating_add(other.batches);
        Ok(())
    }

    fn combine(&mut self, count: u64, means: impl Iterator<Item = f64>, m2s: impl Iterator<Item = f64>) {
        if count == 0 {
            return;
        }
        let (ours, theirs) = (self.count as f64, count as f64);
        let share = theirs / (ours + theirs);
        for ((mean, m2), (new_mean, new_m2)) in self.mean.iter_mut().zip(&mut self.m2).zip(means.zip(m2s)) {
            let delta = new_mean - *mean;
            *mean += delta * share;
            *m2 += new_m2 + delta * delta * ours * share;
        }
        self.count += count;
    }

    /// Values seen per statistic.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Means; zeros where nothing has been seen.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Biased variances, `M2 / n`: those of the population that was seen. NaN where nothing has been.
    pub fn variance(&self) -> Vec<f64> {
        self.m2.iter().map(|m2| m2 / self.count as f64).collect()
    }

    /// Unbiased variances, `M2 / (n - 1)`: estimates for what the values are a sample of. NaN for fewer than two.
    pub fn unbiased_variance(&self) -> Vec<f64> {
        let n = self.count as f64;
        self.m2.iter().map(|m2| if self.count > 1 { m2 / (n - 1.0) } else { f64::NAN }).collect()
    }

    /// Means and unbiased variances as running statistics for inference, rounded to `f32`.
    ///
    /// # Errors
    ///
    /// [`Error::OneValue`] where fewer than two values have been seen, and what the backend says of memory.
    pub fn running_stats<B: Backend>(&self, on: &B) -> Result<RunningStats<B>> {
        if self.count < 2 {
            return Err(Error::OneValue { arg: "population", per: "channel at most" });
        }
        let round = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let len = [self.mean.len()];
        Ok(RunningStats {
            mean: Tensor::from_slice(on, &round(&self.mean), &len)?,
            var: Tensor::from_slice(on, &round(&self.unbiased_variance()), &len)?,
            batches: self.batches,
        })
    }
}
