//! The network: four convolutions and a dense layer.

use warpnorm::{Backend, Result};

use crate::{
    data::CLASSES,
    layers::{Batch, Conv, Dense, Init, Layer, MaxPool, Mode, Relu},
    norm::Norm,
    rng::Rng,
};

/// Input channels, output channels, and whether the image is halved afterwards: 8×8 becomes 4×4, then 2×2.
const CONVS: [(usize, usize, bool); 4] = [(1, 8, false), (8, 8, true), (8, 16, false), (16, 16, true)];
const FEATURES: usize = 2 * 2 * 16;

pub(crate) struct Network<B: Backend> {
    layers: Vec<Box<dyn Layer<B>>>,
}

impl<B: Backend> Network<B> {
    /// The same weights with and without BatchNorm: it draws nothing from `rng`. A convolution keeps its bias before a
    /// BatchNorm, which makes it redundant, so that the norm is the only difference.
    pub(crate) fn new(on: &B, rng: &mut Rng, init: Init, batch_norm: bool) -> Result<Self> {
        let mut layers: Vec<Box<dyn Layer<B>>> = Vec::new();
        for (inputs, outputs, pool) in CONVS {
            layers.push(Box::new(Conv::new(rng, init, inputs, outputs)));
            if batch_norm {
                layers.push(Box::new(Norm::new(on, outputs)?));
            }
            layers.push(Box::new(Relu::default()));
            if pool {
                layers.push(Box::new(MaxPool::default()));
            }
        }
        layers.push(Box::new(Dense::new(rng, init, FEATURES, CLASSES)));
        Ok(Self { layers })
    }

    fn forward(&mut self, on: &B, x: Batch, mode: Mode) -> Result<Batch> {
        self.layers.iter_mut().try_fold(x, |x, layer| layer.forward(on, x, mode))
    }

    /// One step of training. Returns the mean loss over the batch before it.
    pub(crate) fn train(
        &mut self,
        on: &B,
        (x, classes): (Batch, Vec<usize>),
        learning_rate: f32,
        momentum: f32,
    ) -> Result<f32> {
        let logits = self.forward(on, x, Mode::Train)?;
        let (loss, dlogits) = cross_entropy(logits, &classes);
        self.layers.iter_mut().rev().try_fold(dlogits, |dy, layer| layer.backward(on, dy))?;
        for param in self.layers.iter_mut().flat_map(|layer| layer.params()) {
            param.step(learning_rate, momentum);
        }
        Ok(loss)
    }

    /// The share of digits it tells right.
    pub(crate) fn accuracy(&mut self, on: &B, (x, classes): (Batch, Vec<usize>)) -> Result<f32> {
        let logits = self.forward(on, x, Mode::Eval)?;
        let right =
            logits.data.chunks_exact(CLASSES).zip(&classes).filter(|(row, class)| argmax(row) == **class);
        Ok(right.count() as f32 / classes.len() as f32)
    }
}

/// Mean cross entropy of the softmax of each row, and its gradient.
pub(crate) fn cross_entropy(mut logits: Batch, classes: &[usize]) -> (f32, Batch) {
    let n = classes.len() as f32;
    let mut loss = 0.0;
    for (row, &class) in logits.data.chunks_exact_mut(CLASSES).zip(classes) {
        // Softmax does not change with a shift; this one keeps the exponentials from overflowing.
        let greatest = row[argmax(row)];
        let log_sum = row.iter().map(|v| (v - greatest).exp()).sum::<f32>().ln() + greatest;
        loss += log_sum - row[class];
        row.iter_mut().for_each(|v| *v = (*v - log_sum).exp() / n);
        row[class] -= 1.0 / n;
    }
    (loss / n, logits)
}

/// The place of the greatest value; the first place where a network that diverged gives only NaN.
fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}
