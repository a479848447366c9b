//! A small residual network that reads digits, with BatchNorm after each convolution: once with `candle_nn`'s layer and once
//! with this crate's, from the same weights.
//!
//! ```text
//! cargo run --release -p warpnorm-candle --example digits_resnet [-- CURVES.svg]
//! ```

use std::{error::Error, path::PathBuf};

use candle::{Module, ModuleT, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Linear, VarBuilder, conv2d_no_bias, linear};

mod digits;

use digits::{CLASSES, Network, plot, train};

const CHANNELS: usize = 16;
const BLOCKS: usize = 3;

type Norm = Box<dyn ModuleT>;
type MakeNorm = fn(VarBuilder) -> Result<Norm>;

/// A convolution and its norm.
struct Layer {
    conv: Conv2d,
    norm: Norm,
}

impl Layer {
    fn new(inputs: usize, norm: MakeNorm, vb: VarBuilder) -> Result<Self> {
        let config = Conv2dConfig { padding: 1, ..Conv2dConfig::default() };
        Ok(Self {
            conv: conv2d_no_bias(inputs, CHANNELS, 3, config, vb.pp("conv"))?,
            norm: norm(vb.pp("norm"))?,
        })
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward_t(&self.conv.forward(x)?, train)
    }
}

struct ResNet {
    stem: Layer,
    blocks: Vec<[Layer; 2]>,
    classes: Linear,
}

impl ResNet {
    fn new(norm: MakeNorm, vb: VarBuilder) -> Result<Self> {
        let block = |i: usize| {
            let vb = vb.pp(format!("block{i}"));
            Ok([Layer::new(CHANNELS, norm, vb.pp("a"))?, Layer::new(CHANNELS, norm, vb.pp("b"))?])
        };
        Ok(Self {
            stem: Layer::new(1, norm, vb.pp("stem"))?,
            blocks: (0..BLOCKS).map(block).collect::<Result<_>>()?,
            classes: linear(CHANNELS, CLASSES, vb.pp("classes"))?,
        })
    }
}

impl Network for ResNet {
    fn logits(&self, pixels: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward(&pixels.unsqueeze(1)?, train)?.relu()?;
        for [a, b] in &self.blocks {
            let inner = a.forward(&x, train)?.relu()?;
            x = (b.forward(&inner, train)? + x)?.relu()?;
        }
        self.classes.forward(&x.mean((2, 3))?)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).map_or_else(|| "target/digits_resnet.svg".into(), PathBuf::from);
    let theirs: MakeNorm = |vb| Ok(Box::new(candle_nn::batch_norm(CHANNELS, 1e-5, vb)?));
    let ours: MakeNorm = |vb| Ok(Box::new(warpnorm_candle::batch_norm(CHANNELS, 1e-5, vb)?));
    let runs = train(&[
        ("candle_nn's BatchNorm", &move |vb| Ok(Box::new(ResNet::new(theirs, vb)?))),
        ("warpnorm_candle's BatchNorm", &move |vb| Ok(Box::new(ResNet::new(ours, vb)?))),
    ])?;
    plot(&path, "Digits: a residual network with BatchNorm", &runs)
}
