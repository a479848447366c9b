//! BatchNorm as part of the layer before it.

use crate::{
    Affine, Backend, BatchNorm, Element, Error, Layout, Result, RunningStats, Statistics, Tensor,
    error::{check_eps, check_len},
};

impl BatchNorm {
    /// Folds an inference pass into the weight and bias of the convolution or linear layer before it:
    ///
    /// `scale = weight / sqrt(running_var + eps)`
    /// `folded layer weight = layer weight * scale`, along dimension `out_dim`
    /// `folded layer bias = (layer bias - running_mean) * scale + bias`
    ///
    /// `out_dim` is the dimension of the layer's output channels: 0 for PyTorch's convolutions and linear layers,
    /// 1 for its transposed convolutions of one group, the last one where weights are `[in, out]` or HWIO. A missing
    /// layer bias means zeros. The layer and this op then give what the folded layer gives, up to rounding: the new
    /// weights are computed on the host in `f64` and rounded to `T` once. An activation or a residual stays to be
    /// applied. Statistics of the whole batch serve every channel; a virtual batch does not matter to inference.
    ///
    /// A convolution that pads with zeros stays right, since BatchNorm follows it. A `running_var + eps` of 0 gives
    /// weights that are not finite.
    ///
    /// ```
    /// use warpnorm::{Affine, BatchNorm, Cpu, RunningStats, Tensor};
    ///
    /// let layer = Tensor::from_slice(&Cpu, &[1.0_f32, 2.0, 3.0, 4.0], &[2, 2])?; // [out, in]
    /// let running = RunningStats {
    ///     mean: Tensor::from_slice(&Cpu, &[1.0, 0.0], &[2])?,
    ///     var: Tensor::from_slice(&Cpu, &[4.0, 0.25], &[2])?,
    ///     batches: 1,
    /// };
    /// let bn = BatchNorm::new(2).eps(0.0);
    ///
    /// let (weight, bias) = bn.fold(&Cpu, &layer, None, 0, Affine::None, &running)?;
    /// assert_eq!(weight.to_vec(&Cpu)?, [0.5, 1.0, 6.0, 8.0]);
    /// assert_eq!(bias.to_vec(&Cpu)?, [-0.5, 0.0]);
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Rank`] where the weight has no dimension `out_dim`, [`Error::Channels`] where that is not the number of
    /// channels, [`Error::Length`] for a bias, parameters or running statistics that do not fit, [`Error::Eps`],
    /// [`Error::Unsupported`] for statistics per time step, and what the backend says of memory and copies.
    pub fn fold<T: Element, B: Backend>(
        &self,
        on: &B,
        weight: &Tensor<T, B>,
        bias: Option<&Tensor<T, B>>,
        out_dim: usize,
        affine: Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<(Tensor<T, B>, Tensor<T, B>)> {
        let channels = self.check_fold(weight.dims(), out_dim)?;
        bias.map_or(Ok(()), |bias| check_len("bias of the layer", channels, bias.len()))?;
        affine.check(channels)?;
        check_len("running_mean", self.running_len(), running.mean.len())?;
        check_len("running_var", self.running_len(), running.var.len())?;

        let (mean, var) = (running.mean.to_vec(on)?, running.var.to_vec(on)?);
        let [gamma, beta] = affine.download(on)?;
        let layer_bias = bias.map(|bias| bias.to_vec(on)).transpose()?;
        let of = |values: &[f32], c: usize| f64::from(values[c % values.len()]);
        let scale: Vec<f64> = (0..channels)
            .map(|c| gamma.as_ref().map_or(1.0, |v| v[c]) / (of(&var, c) + f64::from(self.eps)).sqrt())
            .collect();
        let folded_bias: Vec<T> = (0..channels)
            .map(|c| {
                let bias = layer_bias.as_ref().map_or(0.0, |v| f64::from(v[c].to_f32()));
                T::from_f64((bias - of(&mean, c)) * scale[c] + beta.as_ref().map_or(0.0, |v| v[c]))
            })
            .collect();
        let run: usize = weight.dims()[out_dim + 1..].iter().product();
        let mut folded = weight.to_vec(on)?;
        for (i, w) in folded.iter_mut().enumerate() {
            *w = T::from_f64(f64::from(w.to_f32()) * scale[i / run % channels]);
        }
        let folded = Tensor::from_slice(on, &folded, weight.dims())?;
        let folded = if weight.layout() == Layout::ChannelsLast { folded.channels_last() } else { folded };
        Ok((folded, Tensor::from_slice(on, &folded_bias, &[channels])?))
    }

    /// The op's channels, which are those of the weight's dimension `out_dim`.
    fn check_fold(&self, dims: &[usize], out_dim: usize) -> Result<usize> {
        check_eps(self.eps)?;
        let channels = self.channels;
        if matches!(self.statistics, Statistics::PerTimeStep { .. }) {
            return Err(Error::Unsupported("statistics per time step cannot be folded into one layer"));
        }
        let Some(&actual) = dims.get(out_dim) else {
            let expected = "more dimensions than `out_dim`";
            return Err(Error::Rank { arg: "weight", op: "folding", expected, actual: dims.len() });
        };
        if actual == channels {
            Ok(channels)
        } else {
            Err(Error::Channels { arg: "weight", op: "BatchNorm", expected: channels, actual })
        }
    }
}
