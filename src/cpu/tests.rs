use half::f16;

use super::{
    Cpu,
    parallel::as_if_far,
    simd::{Level, at_each_level},
};
use crate::{Affine, BatchNorm, Element, GroupNorm, LayerNorm, RmsNorm, Tensor};

/// Numbers between -1 and 2.
fn numbers<T: Element>(len: usize, seed: usize) -> Vec<T> {
    (0..len).map(|i| T::from_f32(((i + seed) * 2_654_435_761 % 3001) as f32 / 1000.0 - 1.0)).collect()
}

fn tensor<T: Element>(dims: &[usize], seed: usize) -> Tensor<T, Cpu> {
    Tensor::from_slice(&Cpu, &numbers(dims.iter().product(), seed), dims).unwrap()
}

/// Outputs and gradients, as `f32`.
#[derive(Default)]
struct Results(Vec<Vec<f32>>);

impl Results {
    fn keep<T: Element>(&mut self, tensors: &[&Tensor<T, Cpu>]) {
        let widened = |t: &&Tensor<T, Cpu>| t.to_vec(&Cpu).unwrap().into_iter().map(T::to_f32).collect();
        self.0.extend(tensors.iter().map(widened));
    }

    fn row_norms<T: Element>(&mut self, dims: &[usize], norm_len: usize) {
        let (x, dy) = (tensor::<T>(dims, 1), tensor::<T>(dims, 2));
        let (weight, bias) = (tensor(&[norm_len], 3), tensor(&[norm_len], 4));
        let affine = || Affine::f32(&weight, &bias);
        let ln = LayerNorm::new(norm_len);
        let out = ln.forward(&Cpu, &x, affine()).unwrap();
        let grads = ln.backward(&Cpu, &x, &dy, affine(), &out).unwrap();
        self.keep(&[&out.y, &grads.dx]);
        self.keep(&[&out.mean, &out.rstd, &grads.dweight.unwrap(), &grads.dbias.unwrap()]);
        let rms = RmsNorm::new(norm_len);
        let out = rms.forward(&Cpu, &x, affine()).unwrap();
        let grads = rms.backward(&Cpu, &x, &dy, affine(), &out).unwrap();
        self.keep(&[&out.y, &grads.dx]);
        self.keep(&[&out.rstd, &grads.dweight.unwrap()]);
    }

    fn channel_norms<T: Element>(&mut self, dims: &[usize], last: bool, groups: usize) {
        let of = |seed| if last { tensor::<T>(dims, seed).channels_last() } else { tensor(dims, seed) };
        let (x, dy, channels) = (of(1), of(2), if last { dims[dims.len() - 1] } else { dims[1] });
        let (weight, bias) = (tensor(&[channels], 5), tensor(&[channels], 6));
        let affine = || Affine::f32(&weight, &bias);
        let bn = BatchNorm::new(channels);
        let out = bn.forward_train(&Cpu, &x, affine(), None).unwrap();
        let grads = bn.backward_train(&Cpu, &x, &dy, affine(), &out).unwrap();
        self.keep(&[&out.y, &grads.dx]);
        self.keep(&[&out.mean, &out.rstd, &grads.dweight.unwrap()]);
        let gn = GroupNorm::new(groups, channels);
        let out = gn.forward(&Cpu, &x, affine()).unwrap();
        let grads = gn.backward(&Cpu, &x, &dy, affine(), &out).unwrap();
        self.keep(&[&out.y, &grads.dx]);
        self.keep(&[&out.mean, &out.rstd, &grads.dweight.unwrap()]);
    }
}

/// Of each op, of odd sizes: short and long rows, and side by side channels whose rows are of whole lines or not.
fn results<T: Element>() -> Vec<Vec<f32>> {
    let mut results = Results::default();
    results.row_norms::<T>(&[6, 22, 35], 35);
    results.row_norms::<T>(&[6, 22, 35], 22 * 35);
    results.row_norms::<T>(&[7, 5001], 5001);
    results.row_norms::<T>(&[7, 4096], 4096);
    results.channel_norms::<T>(&[6, 22, 35], false, 2);
    results.channel_norms::<T>(&[6, 22, 35], true, 5);
    for channels in [8, 16, 64, 100, 256] {
        results.channel_norms::<T>(&[3, 71, channels], true, 4);
    }
    results.channel_norms::<T>(&[5, 3, 5001], false, 3);
    results.0
}

/// Calls `body` on one thread: what is forced is forced on the thread that asks for it.
fn alone<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(body)
}

#[test]
fn every_instruction_set_gives_the_same_results() {
    let mut by_level = Vec::new();
    alone(|| at_each_level(|level| by_level.push((level, results::<f32>()))));
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

#[test]
fn past_the_caches_go_the_same_bits() {
    fn check<T: Element>(level: Level) {
        let [far, near] = [true, false].map(|far| as_if_far(far, results::<T>));
        for (which, (far, near)) in far.into_iter().zip(near).enumerate() {
            let [far, near] =
                [far, near].map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            assert!(far == near, "{level:?}, {:?}: result {which}", T::DTYPE);
        }
    }
    alone(|| {
        at_each_level(|level| {
            check::<f32>(level);
            check::<f16>(level);
        });
    });
}
