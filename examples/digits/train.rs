//! The settings, and training under one of them.

use std::fmt;

use warpnorm::{Backend, Result};

use crate::{
    data::{self, Digits},
    layers::Init,
    network::Network,
    rng::Rng,
};

pub(crate) const EPOCHS: usize = 15;
pub(crate) const INITS: [Init; 2] = [Init::He, Init::Small];
pub(crate) const LEARNING_RATES: [f32; 3] = [0.01, 0.05, 0.2];
/// Points of a loss curve in an epoch.
pub(crate) const POINTS_PER_EPOCH: usize = 3;
/// The test accuracy whose first epoch is reported.
pub(crate) const GOAL: f32 = 0.95;

const BATCH: usize = 64;
const MOMENTUM: f32 = 0.9;
const SEED: u64 = 1998;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) init: Init,
    pub(crate) learning_rate: f32,
    pub(crate) batch_norm: bool,
}

impl Setting {
    /// All twelve, those with and without BatchNorm next to each other.
    pub(crate) fn all() -> Vec<Self> {
        let mut settings = Vec::new();
        for init in INITS {
            for learning_rate in LEARNING_RATES {
                for batch_norm in [true, false] {
                    settings.push(Self { init, learning_rate, batch_norm });
                }
            }
        }
        settings
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::He => "He",
            Self::Small => "std 0.01",
        })
    }
}

/// How a training went.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Mean training loss over each third of an epoch.
    pub(crate) losses: Vec<f32>,
    /// Test accuracy after each epoch.
    pub(crate) accuracies: Vec<f32>,
}

impl Record {
    /// The first epoch, counted from one, that ends at the goal or above.
    pub(crate) fn epochs_to_goal(&self) -> Option<usize> {
        self.accuracies.iter().position(|&accuracy| accuracy >= GOAL).map(|epoch| epoch + 1)
    }

    pub(crate) fn final_accuracy(&self) -> f32 {
        *self.accuracies.last().expect("there is at least one epoch")
    }

    pub(crate) fn best_accuracy(&self) -> f32 {
        self.accuracies.iter().copied().fold(0.0, f32::max)
    }
}

/// Trains a network from the start. Every setting sees the same batches in the same order.
pub(crate) fn train<B: Backend>(on: &B, digits: &Digits, setting: Setting) -> Result<Record> {
    let mut network = Network::new(on, &mut Rng::new(SEED), setting.init, setting.batch_norm)?;
    let mut order: Vec<_> = digits.train.iter().collect();
    let mut shuffles = Rng::new(SEED + 1);
    let mut record = Record { losses: Vec::new(), accuracies: Vec::new() };
    for _ in 0..EPOCHS {
        shuffles.shuffle(&mut order);
        // What is left over is too small for good statistics; the next shuffle gives it another chance.
        let batches: Vec<_> = order.chunks_exact(BATCH).collect();
        for third in batches.chunks(batches.len().div_ceil(POINTS_PER_EPOCH)) {
            let mut sum = 0.0;
            for digits in third {
                let batch = data::batch(digits.iter().copied());
                sum += network.train(on, batch, setting.learning_rate, MOMENTUM)?;
            }
            record.losses.push(sum / third.len() as f32);
        }
        record.accuracies.push(network.accuracy(on, data::batch(&digits.test))?);
    }
    Ok(record)
}
