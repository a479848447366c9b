//! BatchNorm folded into the layer before it.

use warpnorm::{Affine, BatchNorm, Element, RunningStats, Statistics};

use crate::support::{
    data::{Rng, tensor_of, values_of},
    judge::Format,
    on_every_backend,
    run::Sliced,
};

on_every_backend!(
    folded_weights_are_the_formulas_rounded_once,
    a_folded_linear_layer_is_the_layer_and_then_inference,
    a_folded_convolution_is_the_convolution_and_then_inference,
    the_whole_batch_may_share_a_statistic,
);

/// The parameters of a BatchNorm, exact in `T`.
struct Norm {
    weight: Option<Vec<f64>>,
    bias: Option<Vec<f64>>,
    mean: Vec<f64>,
    var: Vec<f64>,
}

const EPS: f32 = 1e-3;

impl Norm {
    fn new<T: Element>(channels: usize, statistics: usize, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut exact = |len: usize, mean: f64, sd: f64| -> Vec<f64> {
            rng.normals(len, mean, sd).into_iter().map(|v| Format::of(T::DTYPE).round(v)).collect()
        };
        Self {
            weight: Some(exact(channels, 1.0, 0.5)).filter(|_| seed % 3 != 1),
            bias: Some(exact(channels, 0.0, 0.5)).filter(|_| seed % 3 != 2),
            mean: exact(statistics, 0.0, 1.0),
            var: exact(statistics, 0.0, 1.0).iter().map(|v| v * v).map(|v| f64::from(v as f32)).collect(),
        }
    }

    fn scale(&self, c: usize) -> f64 {
        let var = self.var[c % self.var.len()];
        self.weight.as_ref().map_or(1.0, |w| w[c]) / (var + f64::from(EPS)).sqrt()
    }

    /// What inference makes of `v` in channel `c`.
    fn apply(&self, v: f64, c: usize) -> f64 {
        (v - self.mean[c % self.mean.len()]) * self.scale(c) + self.bias.as_ref().map_or(0.0, |b| b[c])
    }

    /// Weight and bias of the folded layer.
    fn fold<T: Element, B: Sliced>(
        &self,
        on: &B,
        bn: BatchNorm,
        (weight, dims): (&[f64], &[usize]),
        bias: Option<&[f64]>,
        out_dim: usize,
    ) -> [Vec<f64>; 2] {
        let vector = |values: &Vec<f64>| tensor_of::<f32, B>(on, values, &[values.len()]);
        let (gamma, beta) = (self.weight.as_ref().map(vector), self.bias.as_ref().map(vector));
        let affine = match (&gamma, &beta) {
            (Some(gamma), Some(beta)) => Affine::f32(gamma, beta),
            (gamma, beta) => Affine::F32 {
                weight: gamma.as_ref().map(|v| v.data()),
                bias: beta.as_ref().map(|v| v.data()),
            },
        };
        let running = RunningStats { mean: vector(&self.mean), var: vector(&self.var), batches: 1 };
        let weight = tensor_of::<T, B>(on, weight, dims);
        let bias = bias.map(|bias| tensor_of::<T, B>(on, bias, &[bias.len()]));
        let (folded, folded_bias) =
            bn.eps(EPS).fold(on, &weight, bias.as_ref(), out_dim, affine, &running).unwrap();
        assert_eq!(folded.dims(), weight.dims());
        [values_of(on, &folded), values_of(on, &folded_bias)]
    }
}

fn exact<T: Element>(len: usize, seed: u64) -> Vec<f64> {
    Rng(seed ^ 0xfeed).normals(len, 0.1, 0.7).into_iter().map(|v| Format::of(T::DTYPE).round(v)).collect()
}

/// For every place of the output channels: linear layers, convolutions, transposed ones, HWIO.
fn folded_weights_are_the_formulas_rounded_once<T: Element, B: Sliced>(on: &B) {
    let format = Format::of(T::DTYPE);
    let shapes: [(&[usize], usize); 7] = [
        (&[5, 7], 0),
        (&[7, 5], 1),
        (&[5, 3, 2, 3], 0),
        (&[3, 5, 2, 3], 1),
        (&[2, 3, 4, 5], 3),
        (&[5], 0),
        (&[2, 2, 5, 3], 2),
    ];
    for (seed, (dims, out_dim)) in shapes.into_iter().enumerate() {
        let len: usize = dims.iter().product();
        let (norm, weight) = (Norm::new::<T>(5, 5, seed as u64), exact::<T>(len, seed as u64));
        let bias = (seed % 2 == 0).then(|| exact::<T>(5, 9));
        let bn = BatchNorm::new(5);
        let [got, got_bias] = norm.fold::<T, B>(on, bn, (&weight, dims), bias.as_deref(), out_dim);
        let run: usize = dims[out_dim + 1..].iter().product();
        // In `f64` either side may round the last place differently, which reaches `T` next to a tie alone.
        let near = |v: f64, got: f64| {
            let off = 1e-14 * v.abs().max(1.0);
            format.round(v - off) <= got && got <= format.round(v + off)
        };
        for (i, (&w, &got)) in weight.iter().zip(&got).enumerate() {
            let want = w * norm.scale(i / run % 5);
            assert!(near(want, got), "{dims:?} along {out_dim}: weight {i} is {got} instead of {want}");
        }
        for (c, &got) in got_bias.iter().enumerate() {
            let want = norm.apply(bias.as_ref().map_or(0.0, |b| b[c]), c);
            assert!(near(want, got), "{dims:?} along {out_dim}: bias {c} is {got} instead of {want}");
        }
    }
}

/// Rounding the folded weight and bias once is all that may differ from the layer and the norm in `f64`.
fn expect_layer<T: Element>(norm: &Norm, c: usize, terms: &[(f64, f64, f64)], biases: (f64, f64)) {
    let format = Format::of(T::DTYPE);
    let (bias, folded_bias) = biases;
    let want = norm.apply(terms.iter().map(|(x, w, _)| x * w).sum::<f64>() + bias, c);
    let got = terms.iter().map(|(x, _, folded)| x * folded).sum::<f64>() + folded_bias;
    let half = |v: f64| format.step(v) / 2.0 * (1.0 + 1e-9);
    let room = terms.iter().map(|(x, _, folded)| x.abs() * half(*folded)).sum::<f64>() + half(folded_bias);
    assert!((got - want).abs() <= room + 1e-12, "channel {c}: {got} instead of {want} +- {room}");
}

fn a_folded_linear_layer_is_the_layer_and_then_inference<T: Element, B: Sliced>(on: &B) {
    let (inputs, outputs) = (9, 6);
    for seed in 0..6 {
        let (norm, weight) = (Norm::new::<T>(outputs, outputs, seed), exact::<T>(inputs * outputs, seed));
        let bias = exact::<T>(outputs, seed + 1);
        let x = exact::<T>(inputs, seed + 2);
        for out_dim in [0, 1] {
            let dims = if out_dim == 0 { [outputs, inputs] } else { [inputs, outputs] };
            let bn = BatchNorm::new(outputs);
            let [folded, folded_bias] = norm.fold::<T, B>(on, bn, (&weight, &dims), Some(&bias), out_dim);
            for c in 0..outputs {
                let at = |i: usize| if out_dim == 0 { c * inputs + i } else { i * outputs + c };
                let terms: Vec<_> = (0..inputs).map(|i| (x[i], weight[at(i)], folded[at(i)])).collect();
                expect_layer::<T>(&norm, c, &terms, (bias[c], folded_bias[c]));
            }
        }
    }
}

/// Of one dimension, at every position, `[out, in, taps]` or `[taps, in, out]`.
fn a_folded_convolution_is_the_convolution_and_then_inference<T: Element, B: Sliced>(on: &B) {
    let (inputs, outputs, taps, len) = (3, 4, 3, 8);
    for seed in 0..3 {
        let (norm, x) = (Norm::new::<T>(outputs, outputs, seed), exact::<T>(inputs * len, seed));
        let weight = exact::<T>(inputs * outputs * taps, seed + 1);
        for last in [false, true] {
            let dims = if last { [taps, inputs, outputs] } else { [outputs, inputs, taps] };
            let out_dim = if last { 2 } else { 0 };
            let bn = BatchNorm::new(outputs);
            let [folded, folded_bias] = norm.fold::<T, B>(on, bn, (&weight, &dims), None, out_dim);
            for (c, position) in (0..outputs).flat_map(|c| (0..=len - taps).map(move |p| (c, p))) {
                let terms: Vec<_> = (0..inputs * taps)
                    .map(|i| {
                        let (input, tap) = (i / taps, i % taps);
                        let at = match last {
                            true => (tap * inputs + input) * outputs + c,
                            false => (c * inputs + input) * taps + tap,
                        };
                        (x[input * len + position + tap], weight[at], folded[at])
                    })
                    .collect();
                expect_layer::<T>(&norm, c, &terms, (0.0, folded_bias[c]));
            }
        }
    }
}

fn the_whole_batch_may_share_a_statistic<T: Element, B: Sliced>(on: &B) {
    let (norm, weight) = (Norm::new::<T>(4, 1, 3), exact::<T>(12, 3));
    let bn = BatchNorm::new(4).statistics(Statistics::WholeBatch);
    let [folded, folded_bias] = norm.fold::<T, B>(on, bn, (&weight, &[4, 3]), None, 0);
    for c in 0..4 {
        let terms: Vec<_> = (0..3).map(|i| (i as f64 - 0.5, weight[c * 3 + i], folded[c * 3 + i])).collect();
        expect_layer::<T>(&norm, c, &terms, (0.0, folded_bias[c]));
    }
}
