//! The layers that are not warpnorm's, in plain code.

use warpnorm::{Backend, Result};

use crate::{
    matmul::{matmul, matmul_transposed, transpose},
    rng::Rng,
};

/// Activations on the host: samples, rows, columns, channels, the last next to each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub(crate) data: Vec<f32>,
    pub(crate) dims: [usize; 4],
}

impl Batch {
    pub(crate) fn zeros(dims: [usize; 4]) -> Self {
        Self { data: vec![0.0; dims.iter().product()], dims }
    }
}

/// What a layer learns, with its gradient and the momentum of its steps.
pub(crate) struct Param {
    pub(crate) value: Vec<f32>,
    pub(crate) grad: Vec<f32>,
    velocity: Vec<f32>,
}

impl Param {
    pub(crate) fn new(value: Vec<f32>) -> Self {
        let zeros = vec![0.0; value.len()];
        Self { value, grad: zeros.clone(), velocity: zeros }
    }

    /// A step of stochastic gradient descent with momentum.
    pub(crate) fn step(&mut self, learning_rate: f32, momentum: f32) {
        for ((value, grad), velocity) in self.value.iter_mut().zip(&self.grad).zip(&mut self.velocity) {
            *velocity = momentum * *velocity + grad;
            *value -= learning_rate * *velocity;
        }
    }
}

/// How weights are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// Normal with variance `2 / inputs`, made for networks of ReLUs (He et al., arXiv:1502.01852).
    He,
    /// Normal with standard deviation 0.01 whatever the layer's width.
    Small,
}

impl Init {
    fn draw(self, rng: &mut Rng, inputs: usize, outputs: usize) -> Param {
        let std = match self {
            Self::He => (2.0 / inputs as f32).sqrt(),
            Self::Small => 0.01,
        };
        Param::new((0..inputs * outputs).map(|_| std * rng.normal()).collect())
    }
}

/// Whether a layer may learn from what passes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Train,
    Eval,
}

/// One step of the network. `forward` keeps what `backward` needs; `backward` overwrites the gradients of the
/// parameters and returns that of the input.
pub(crate) trait Layer<B: Backend> {
    fn forward(&mut self, on: &B, x: Batch, mode: Mode) -> Result<Batch>;
    fn backward(&mut self, on: &B, dy: Batch) -> Result<Batch>;
    fn params(&mut self) -> Vec<&mut Param> {
        Vec::new()
    }
}

/// A 3×3 convolution with a border of zeros, so that the image keeps its size.
pub(crate) struct Conv {
    /// `[9 * inputs, outputs]`
    weight: Param,
    bias: Param,
    x: Batch,
}

impl Conv {
    pub(crate) fn new(rng: &mut Rng, init: Init, inputs: usize, outputs: usize) -> Self {
        let weight = init.draw(rng, 9 * inputs, outputs);
        Self { weight, bias: Param::new(vec![0.0; outputs]), x: Batch::default() }
    }
}

impl<B: Backend> Layer<B> for Conv {
    fn forward(&mut self, _: &B, x: Batch, _: Mode) -> Result<Batch> {
        let ([n, height, width, inputs], outputs) = (x.dims, self.bias.value.len());
        let mut y =
            Batch { data: self.bias.value.repeat(n * height * width), dims: [n, height, width, outputs] };
        let patches = Patches { height, width, channels: inputs };
        let mut gathered = patches.zeros();
        let images = x.data.chunks_exact(patches.image_len());
        for (image, y) in images.zip(y.data.chunks_exact_mut(height * width * outputs)) {
            patches.gather(image, &mut gathered);
            matmul(&gathered, &self.weight.value, y, 9 * inputs, outputs);
        }
        self.x = x;
        Ok(y)
    }

    fn backward(&mut self, _: &B, dy: Batch) -> Result<Batch> {
        let ([_, height, width, inputs], outputs) = (self.x.dims, self.bias.value.len());
        let mut dx = Batch::zeros(self.x.dims);
        let patches = Patches { height, width, channels: inputs };
        let (mut gathered, mut dgathered) = (patches.zeros(), patches.zeros());
        let weight_transposed = transpose(&self.weight.value, outputs);
        self.weight.grad.fill(0.0);
        sum_rows(&dy.data, &mut self.bias.grad);
        let images = self.x.data.chunks_exact(patches.image_len());
        let dimages = dx.data.chunks_exact_mut(patches.image_len());
        for ((image, dimage), dy) in images.zip(dimages).zip(dy.data.chunks_exact(height * width * outputs)) {
            patches.gather(image, &mut gathered);
            matmul_transposed(&gathered, dy, &mut self.weight.grad, 9 * inputs, outputs);
            dgathered.fill(0.0);
            matmul(dy, &weight_transposed, &mut dgathered, outputs, 9 * inputs);
            patches.scatter(&dgathered, dimage);
        }
        Ok(dx)
    }

    fn params(&mut self) -> Vec<&mut Param> {
        vec![&mut self.weight, &mut self.bias]
    }
}

/// The 3×3 neighborhoods of an image: a matrix of `height * width` rows, each of `9 * channels` values.
#[derive(Clone, Copy)]
struct Patches {
    height: usize,
    width: usize,
    channels: usize,
}

impl Patches {
    fn image_len(self) -> usize {
        self.height * self.width * self.channels
    }

    fn zeros(self) -> Vec<f32> {
        vec![0.0; 9 * self.image_len()]
    }

    /// Copies each pixel to the neighborhoods it is in. What lies outside the image stays as it was, at zero.
    fn gather(self, image: &[f32], patches: &mut [f32]) {
        let c = self.channels;
        self.for_each_pair(|patch, pixel| {
            patches[patch..patch + c].copy_from_slice(&image[pixel..pixel + c])
        });
    }

    /// Adds the neighborhoods' values to the pixels they were copied from.
    fn scatter(self, patches: &[f32], image: &mut [f32]) {
        let c = self.channels;
        self.for_each_pair(|patch, pixel| {
            for (to, from) in image[pixel..pixel + c].iter_mut().zip(&patches[patch..patch + c]) {
                *to += from;
            }
        });
    }

    /// Calls `body` with the offsets of each place in a neighborhood and of the pixel that belongs there.
    fn for_each_pair(self, mut body: impl FnMut(usize, usize)) {
        for (row, column) in (0..self.height).flat_map(|row| (0..self.width).map(move |column| (row, column)))
        {
            let patch = (row * self.width + column) * 9;
            // Row and column of the pixel, both off by one so that the border needs no negative numbers.
            for place in 0..9 {
                let (r, c) = (row + place / 3, column + place % 3);
                if (1..=self.height).contains(&r) && (1..=self.width).contains(&c) {
                    let pixel = (r - 1) * self.width + c - 1;
                    body((patch + place) * self.channels, pixel * self.channels);
                }
            }
        }
    }
}

/// Cuts what is negative to zero.
#[derive(Default)]
pub(crate) struct Relu {
    y: Batch,
}

impl<B: Backend> Layer<B> for Relu {
    fn forward(&mut self, _: &B, mut x: Batch, _: Mode) -> Result<Batch> {
        // Not `max`, which would hide a NaN and with it that the training diverged.
        x.data.iter_mut().filter(|v| **v < 0.0).for_each(|v| *v = 0.0);
        self.y = x.clone();
        Ok(x)
    }

    fn backward(&mut self, _: &B, mut dy: Batch) -> Result<Batch> {
        for (dy, y) in dy.data.iter_mut().zip(&self.y.data) {
            *dy = if *y == 0.0 { 0.0 } else { *dy };
        }
        Ok(dy)
    }
}

/// The greatest of each 2×2 pixels.
#[derive(Default)]
pub(crate) struct MaxPool {
    dims: [usize; 4],
    /// Where each output came from.
    source: Vec<usize>,
}

impl<B: Backend> Layer<B> for MaxPool {
    fn forward(&mut self, _: &B, x: Batch, _: Mode) -> Result<Batch> {
        let [n, height, width, channels] = x.dims;
        self.dims = x.dims;
        self.source.clear();
        for row in (0..n * height).step_by(2) {
            for column in (0..width).step_by(2) {
                let corner = (row * width + column) * channels;
                for first in corner..corner + channels {
                    let below = first + width * channels;
                    let greater = |a: usize, b: usize| if x.data[b] > x.data[a] { b } else { a };
                    self.source
                        .push([first + channels, below, below + channels].into_iter().fold(first, greater));
                }
            }
        }
        let data = self.source.iter().map(|&i| x.data[i]).collect();
        Ok(Batch { data, dims: [n, height / 2, width / 2, channels] })
    }

    fn backward(&mut self, _: &B, dy: Batch) -> Result<Batch> {
        let mut dx = Batch::zeros(self.dims);
        for (&source, dy) in self.source.iter().zip(&dy.data) {
            dx.data[source] = *dy;
        }
        Ok(dx)
    }
}

/// Every output from every input of the sample.
pub(crate) struct Dense {
    /// `[inputs, outputs]`
    weight: Param,
    bias: Param,
    x: Batch,
}

impl Dense {
    pub(crate) fn new(rng: &mut Rng, init: Init, inputs: usize, outputs: usize) -> Self {
        let weight = init.draw(rng, inputs, outputs);
        Self { weight, bias: Param::new(vec![0.0; outputs]), x: Batch::default() }
    }

    fn inputs(&self) -> usize {
        self.weight.value.len() / self.outputs()
    }

    fn outputs(&self) -> usize {
        self.bias.value.len()
    }
}

impl<B: Backend> Layer<B> for Dense {
    fn forward(&mut self, _: &B, x: Batch, _: Mode) -> Result<Batch> {
        let n = x.dims[0];
        let mut y = Batch { data: self.bias.value.repeat(n), dims: [n, 1, 1, self.outputs()] };
        matmul(&x.data, &self.weight.value, &mut y.data, self.inputs(), self.outputs());
        self.x = x;
        Ok(y)
    }

    fn backward(&mut self, _: &B, dy: Batch) -> Result<Batch> {
        let (inputs, outputs) = (self.inputs(), self.outputs());
        self.weight.grad.fill(0.0);
        sum_rows(&dy.data, &mut self.bias.grad);
        matmul_transposed(&self.x.data, &dy.data, &mut self.weight.grad, inputs, outputs);
        let mut dx = Batch::zeros(self.x.dims);
        matmul(&dy.data, &transpose(&self.weight.value, outputs), &mut dx.data, outputs, inputs);
        Ok(dx)
    }

    fn params(&mut self) -> Vec<&mut Param> {
        vec![&mut self.weight, &mut self.bias]
    }
}

fn sum_rows(rows: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for row in rows.chunks_exact(sums.len()) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}
