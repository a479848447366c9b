//! A small transformer that reads digits row by row, with LayerNorm before each of its parts: once with `candle_nn`'s layer and
//! once with this crate's, from the same weights.
//!
//! ```text
//! cargo run --release -p warpnorm-candle --example digits_transformer [-- CURVES.svg]
//! ```
//!
//! `candle_nn`'s layer passes no gradient on, and says nothing: behind the last norm only the output layer learns.

use std::{error::Error, path::PathBuf};

use candle::{D, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder, linear, ops::softmax};

mod digits;

use digits::{CLASSES, Network, plot, train};

const WIDTH: usize = 48;
const HEADS: usize = 4;
const BLOCKS: usize = 2;

type Norm = Box<dyn Module>;
type MakeNorm = fn(VarBuilder) -> Result<Norm>;

struct Block {
    before_attention: Norm,
    qkv: Linear,
    out: Linear,
    before_mlp: Norm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(norm: MakeNorm, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            before_attention: norm(vb.pp("norm1"))?,
            qkv: linear(WIDTH, 3 * WIDTH, vb.pp("qkv"))?,
            out: linear(WIDTH, WIDTH, vb.pp("out"))?,
            before_mlp: norm(vb.pp("norm2"))?,
            up: linear(WIDTH, 4 * WIDTH, vb.pp("up"))?,
            down: linear(4 * WIDTH, WIDTH, vb.pp("down"))?,
        })
    }

    fn attention(&self, x: &Tensor) -> Result<Tensor> {
        let (samples, tokens, _) = x.dims3()?;
        let qkv = self.qkv.forward(x)?.reshape((samples, tokens, 3, HEADS, WIDTH / HEADS))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let scale = (HEADS as f64 / WIDTH as f64).sqrt();
        let scores = (part(0)?.matmul(&part(1)?.t()?)? * scale)?;
        let mixed = softmax(&scores, D::Minus1)?.matmul(&part(2)?)?;
        self.out.forward(&mixed.transpose(1, 2)?.reshape((samples, tokens, WIDTH))?)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attention(&self.before_attention.forward(x)?)?)?;
        let hidden = self.up.forward(&self.before_mlp.forward(&x)?)?.gelu()?;
        x + self.down.forward(&hidden)?
    }
}

struct Transformer {
    rows: Linear,
    positions: Tensor,
    blocks: Vec<Block>,
    last: Norm,
    classes: Linear,
}

impl Transformer {
    fn new(norm: MakeNorm, vb: VarBuilder) -> Result<Self> {
        let init = candle_nn::Init::Randn { mean: 0.0, stdev: 0.1 };
        Ok(Self {
            rows: linear(8, WIDTH, vb.pp("rows"))?,
            positions: vb.pp("rows").get_with_hints((8, WIDTH), "positions", init)?,
            blocks: (0..BLOCKS)
                .map(|i| Block::new(norm, vb.pp(format!("block{i}"))))
                .collect::<Result<_>>()?,
            last: norm(vb.pp("last"))?,
            classes: linear(WIDTH, CLASSES, vb.pp("classes"))?,
        })
    }
}

impl Network for Transformer {
    fn logits(&self, pixels: &Tensor, _train: bool) -> Result<Tensor> {
        let mut x = self.rows.forward(pixels)?.broadcast_add(&self.positions)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.classes.forward(&self.last.forward(&x)?.mean(1)?)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).map_or_else(|| "target/digits_transformer.svg".into(), PathBuf::from);
    let theirs: MakeNorm = |vb| Ok(Box::new(candle_nn::layer_norm(WIDTH, 1e-5, vb)?));
    let ours: MakeNorm = |vb| Ok(Box::new(warpnorm_candle::layer_norm(WIDTH, 1e-5, vb)?));
    let runs = train(&[
        ("candle_nn's LayerNorm", &move |vb| Ok(Box::new(Transformer::new(theirs, vb)?))),
        ("warpnorm_candle's LayerNorm", &move |vb| Ok(Box::new(Transformer::new(ours, vb)?))),
    ])?;
    plot(&path, "Digits: a transformer with LayerNorm", &runs)
}
