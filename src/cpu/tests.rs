use super::{
    Cpu,
    simd::{Level, at_each_level},
};
use crate::{Affine, BatchNorm, GroupNorm, LayerNorm, RmsNorm, Tensor};

/// Numbers between -1 and 2.
fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed) * 2_654_435_761 % 3001) as f32 / 1000.0 - 1.0).collect()
}

fn tensor(dims: &[usize], seed: usize) -> Tensor<f32, Cpu> {
    Tensor::from_slice(&Cpu, &numbers(dims.iter().product(), seed), dims).unwrap()
}

/// Outputs and gradients of each op, of odd sizes.
fn results() -> Vec<Vec<f32>> {
    let (x, dy) = (tensor(&[6, 22, 35], 1), tensor(&[6, 22, 35], 2));
    let mut all = Vec::new();
    let mut keep =
        |tensors: &[&Tensor<f32, Cpu>]| all.extend(tensors.iter().map(|t| t.to_vec(&Cpu).unwrap()));
    for norm_len in [35, 22 * 35] {
        let (weight, bias) = (tensor(&[norm_len], 3), tensor(&[norm_len], 4));
        let affine = || Affine::f32(&weight, &bias);
        let ln = LayerNorm::new(norm_len);
        let out = ln.forward(&Cpu, &x, affine()).unwrap();
        let grads = ln.backward(&Cpu, &x, &dy, affine(), &out).unwrap();
        keep(&[&out.y, &out.mean, &out.rstd, &grads.dx, &grads.dweight.unwrap(), &grads.dbias.unwrap()]);
        let rms = RmsNorm::new(norm_len);
        let out = rms.forward(&Cpu, &x, affine()).unwrap();
        let grads = rms.backward(&Cpu, &x, &dy, affine(), &out).unwrap();
        keep(&[&out.y, &out.rstd, &grads.dx, &grads.dweight.unwrap()]);
    }
    for last in [false, true] {
        let of =
            |seed| if last { tensor(&[6, 22, 35], seed).channels_last() } else { tensor(&[6, 22, 35], seed) };
        let (x, dy, channels) = (of(1), of(2), if last { 35 } else { 22 });
        let (weight, bias) = (tensor(&[channels], 5), tensor(&[channels], 6));
        let affine = || Affine::f32(&weight, &bias);
        let bn = BatchNorm::new(channels);
        let out = bn.forward_train(&Cpu, &x, affine(), None).unwrap();
        let grads = bn.backward_train(&Cpu, &x, &dy, affine(), &out).unwrap();
        keep(&[&out.y, &out.mean, &out.rstd, &grads.dx, &grads.dweight.unwrap()]);
        let gn = GroupNorm::new(if last { 5 } else { 2 }, channels);
        let out = gn.forward(&Cpu, &x, affine()).unwrap();
        let grads = gn.backward(&Cpu, &x, &dy, affine(), &out).unwrap();
        keep(&[&out.y, &out.mean, &out.rstd, &grads.dx, &grads.dweight.unwrap()]);
    }
    all
}

#[test]
fn every_instruction_set_gives_the_same_results() {
    let mut by_level = Vec::new();
    at_each_level(|level| by_level.push((level, results())));
    let (_, portable) = &by_level[0];
    for (level, results) in &by_level {
        for (which, (got, want)) in results.iter().zip(portable).enumerate() {
            let scale = want.iter().fold(0.0f32, |scale, v| scale.max(v.abs()));
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let near = (got - want).abs() <= 4e-6 * scale;
                assert!(near, "{level:?}: element {i} of result {which} is {got} instead of {want}");
            }
        }
    }
    // These two do the same operations in the same order.
    let of = |level| by_level.iter().find(|(other, _)| *other == level).map(|(_, results)| results);
    if let (Some(avx2), Some(avx512)) = (of(Level::Avx2), of(Level::Avx512)) {
        assert_eq!(avx2, avx512);
    }
}
