use half::f16;

use super::{
    Cpu,
    parallel::{Distance, as_if},
    simd::{Level, at_each_level},
};
use crate::{
    Affine, AffineGrad, BatchNorm, BatchNormBackwardTrain, BatchNormEval, Element, GroupNorm, LayerNorm,
    LayerNormBackward, LayerNormForward, RmsNorm, Tensor, View, ViewMut,
};

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

    /// Without those of weight and bias; the input is also used beside the norm.
    fn row_gradients_alone<T: Element>(&mut self, dims: &[usize; 2]) {
        let [rows, cols] = *dims;
        let [x, dy, dh] = [1, 2, 3].map(|seed| tensor::<T>(dims, seed));
        let (weight, mean, rstd) =
            (numbers::<f32>(cols, 4), numbers::<f32>(rows, 5), numbers::<f32>(rows, 6));
        for with_dh in [false, true] {
            /// Elements between two rows of `dy`, that nobody may read.
            const GAP: usize = 5;
            let padded: Vec<T> = dy
                .to_vec(&Cpu)
                .unwrap()
                .chunks(cols)
                .flat_map(|row| row.iter().copied().chain([T::from_f32(f32::NAN); GAP]))
                .collect();
            let mut dx = tensor::<T>(dims, 7);
            let ln = LayerNorm::new(cols);
            let mut workspace = ln.workspace(&Cpu, &x).unwrap();
            let args = LayerNormBackward {
                x: x.view(),
                dy: View::strided(&padded[..], dims, cols + GAP).unwrap(),
                dh: with_dh.then(|| dh.view()),
                affine: Affine::F32 { weight: Some(&weight[..]), bias: None },
                mean: &mean[..],
                rstd: &rstd[..],
                dx: Some(dx.view_mut()),
                grads: AffineGrad::None,
                accumulate: false,
                workspace: &mut workspace,
            };
            ln.backward_into(&Cpu, args).unwrap();
            self.keep(&[&dx]);
        }
    }

    /// In f32 a row of such small numbers that its reciprocal standard deviation is no proper `f32`.
    fn rows_beside_a_tiny_one<T: Element>(&mut self, dims: &[usize; 2]) {
        let [rows, cols] = *dims;
        let mut values = numbers::<T>(rows * cols, 1);
        for v in &mut values[3 * cols..4 * cols] {
            *v = T::from_f32(v.to_f32() * if size_of::<T>() == 4 { 1e-36 } else { 1.0 });
        }
        let x = Tensor::<T, Cpu>::from_slice(&Cpu, &values, dims).unwrap();
        let (weight, bias) = (tensor(&[cols], 3), tensor(&[cols], 4));
        let out = LayerNorm::new(cols).eps(0.0).forward(&Cpu, &x, Affine::f32(&weight, &bias)).unwrap();
        self.keep(&[&out.y]);
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
    results.row_norms::<T>(&[19, 1104], 1104);
    results.row_norms::<T>(&[67, 128], 128);
    results.row_norms::<T>(&[9, 12_003], 12_003);
    results.row_norms::<T>(&[5, 40_001], 40_001);
    for cols in [768, 1104, 2051] {
        results.row_gradients_alone::<T>(&[21, cols]);
    }
    results.rows_beside_a_tiny_one::<T>(&[10, 1104]);
    results.channel_norms::<T>(&[6, 22, 35], false, 2);
    results.channel_norms::<T>(&[6, 22, 35], true, 5);
    for channels in [8, 16, 64, 100, 128, 256, 340] {
        results.channel_norms::<T>(&[3, 71, channels], true, 4);
    }
    // Strips and some more columns, of whole rows.
    results.channel_norms::<T>(&[3, 72, 100], true, 4);
    // Blocks of long rows, so many that they are merged: of strips alone; and with more columns, where the last row is shorter.
    results.channel_norms::<T>(&[2, 4100, 192], true, 4);
    results.channel_norms::<T>(&[2, 24_800, 24], true, 4);
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
        let bits = |values: &Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let near = as_if(Distance::Near, results::<T>);
        for distance in [Distance::Far, Distance::Beyond] {
            let far = as_if(distance, results::<T>);
            for (which, (far, near)) in far.iter().zip(&near).enumerate() {
                assert!(bits(far) == bits(near), "{level:?}, {:?}, {distance:?}: result {which}", T::DTYPE);
            }
        }
    }
    alone(|| {
        at_each_level(|level| {
            check::<f32>(level);
            check::<f16>(level);
        });
    });
}

/// Bytes.
const LINE: usize = 64;

/// Outputs that begin so many elements behind the start of a line of the caches.
fn results_at<T: Element>(offset: usize) -> Vec<Vec<f32>> {
    let numbers = |len: usize, seed| self::numbers::<T>(len, seed);
    let widened = |values: &[T]| values.iter().map(|v| v.to_f32()).collect();
    let room = |len: usize| vec![T::default(); len + offset + LINE];
    let at = |out: &[T]| offset + out.as_ptr().addr().wrapping_neg() % LINE / size_of::<T>();
    let (rows, cols) = (19, 1103);
    let mut y = room(rows * cols);
    let start = at(&y);
    let y = &mut y[start..][..rows * cols];
    let (x, weight) = (numbers(rows * cols, 1), self::numbers::<f32>(cols + 1, 2));
    let args = LayerNormForward {
        x: View::new(&x[..], &[rows, cols]).unwrap(),
        y: ViewMut::new(&mut y[..], &[rows, cols]).unwrap(),
        residual: None,
        affine: Affine::F32 { weight: Some(&weight[..cols]), bias: Some(&weight[1..]) },
        mean: None,
        rstd: None,
    };
    LayerNorm::new(cols).forward_into(&Cpu, args).unwrap();

    let mut results = vec![widened(y)];
    for cols in [128, 768, 1104] {
        let mut dx = room(rows * cols);
        let start = at(&dx);
        let dx = &mut dx[start..][..rows * cols];
        let (x, dy) = (numbers(rows * cols, 5), numbers(rows * cols, 6));
        let (mean, rstd) = (vec![0.5; rows], vec![1.25; rows]);
        let (mut dweight, mut dbias) = (vec![0.0; cols], vec![0.0; cols]);
        let ln = LayerNorm::new(cols);
        let mut workspace = ln.workspace_for(&Cpu, View::new(&x[..], &[rows, cols]).unwrap()).unwrap();
        let args = LayerNormBackward {
            x: View::new(&x[..], &[rows, cols]).unwrap(),
            dy: View::new(&dy[..], &[rows, cols]).unwrap(),
            dh: None,
            affine: Affine::F32 { weight: Some(&weight[..cols]), bias: None },
            mean: &mean[..],
            rstd: &rstd[..],
            dx: Some(ViewMut::new(&mut dx[..], &[rows, cols]).unwrap()),
            grads: AffineGrad::F32 { dweight: Some(&mut dweight[..]), dbias: Some(&mut dbias[..]) },
            accumulate: false,
            workspace: &mut workspace,
        };
        ln.backward_into(&Cpu, args).unwrap();
        results.extend([widened(dx), dweight, dbias]);
    }
    for channels in [64, 128, 288] {
        let positions = 71;
        let dims = [1, positions, channels];
        let len = positions * channels;
        let (mut y, mut dx) = (room(len), room(len));
        let (of_y, of_dx) = (at(&y), at(&dx));
        let (y, dx) = (&mut y[of_y..][..len], &mut dx[of_dx..][..len]);
        let (x, dy) = (numbers(len, 3), numbers(len, 4));
        let (mean, rstd) = (vec![0.5; channels], vec![1.25; channels]);
        let affine = || Affine::F32 { weight: Some(&weight[..channels]), bias: None };
        let seen = |v| View::new(v, &dims).unwrap().channels_last();
        let norm = BatchNorm::new(channels);
        let args = BatchNormEval {
            x: seen(&x[..]),
            residual: None,
            y: ViewMut::new(&mut y[..], &dims).unwrap().channels_last(),
            affine: affine(),
            running_mean: &mean[..],
            running_var: &rstd[..],
        };
        norm.forward_eval_into(&Cpu, args).unwrap();
        let args = BatchNormBackwardTrain {
            x: seen(&x[..]),
            residual: None,
            dy: seen(&dy[..]),
            affine: affine(),
            mean: &mean[..],
            rstd: &rstd[..],
            dx: Some(ViewMut::new(&mut dx[..], &dims).unwrap().channels_last()),
            dresidual: None,
            grads: AffineGrad::None,
            accumulate: false,
            workspace: &mut norm.workspace_for(&Cpu, seen(&x[..])).unwrap(),
        };
        norm.backward_train_into(&Cpu, args).unwrap();
        results.extend([widened(y), widened(dx)]);
    }
    results
}

#[test]
fn wherever_outputs_begin_go_the_same_bits() {
    fn check<T: Element>(level: Level) {
        let want = as_if(Distance::Near, || results_at::<T>(0));
        for offset in [0, 1, 4, 15, 16, 31] {
            for distance in [Distance::Near, Distance::Far, Distance::Beyond] {
                let got = as_if(distance, || results_at::<T>(offset));
                assert!(got == want, "{level:?}, {:?}, {distance:?}, offset {offset}", T::DTYPE);
            }
        }
    }
    alone(|| {
        at_each_level(|level| {
            check::<f32>(level);
            check::<f16>(level);
        });
    });
}

/// Asserts that sums are those of all terms of their columns.
#[track_caller]
fn assert_sums(got: &Tensor<f32, Cpu>, terms: impl Fn(usize) -> f64, rows: usize) {
    for (col, &got) in got.to_vec(&Cpu).unwrap().iter().enumerate() {
        let of_col = || (col..rows * 8).step_by(8).map(&terms);
        let (want, scale) = (of_col().sum::<f64>(), of_col().map(f64::abs).sum::<f64>());
        assert!((f64::from(got) - want).abs() <= 2e-7 * scale, "column {col}: {got} instead of {want}");
    }
}

#[test]
fn sums_of_many_blocks_are_those_of_all_rows() {
    // More than 1,024 blocks of 24 rows of LayerNorm, and of 8 columns of BatchNorm together.
    let rows = 25_003;
    let (x, dy) = (tensor::<f32>(&[rows, 8], 1), tensor::<f32>(&[rows, 8], 2));
    let (weight, bias) = (tensor(&[8], 3), tensor(&[8], 4));
    let ln = LayerNorm::new(8);
    let out = ln.forward(&Cpu, &x, Affine::f32(&weight, &bias)).unwrap();
    let grads = ln.backward(&Cpu, &x, &dy, Affine::f32(&weight, &bias), &out).unwrap();
    let wide =
        |v: &Tensor<f32, Cpu>| -> Vec<f64> { v.to_vec(&Cpu).unwrap().iter().map(|&v| v.into()).collect() };
    let (mean, rstd, wide_x, wide_dy) = (wide(&out.mean), wide(&out.rstd), wide(&x), wide(&dy));
    assert_sums(&grads.dweight.unwrap(), |i| wide_dy[i] * (wide_x[i] - mean[i / 8]) * rstd[i / 8], rows);
    assert_sums(&grads.dbias.unwrap(), |i| wide_dy[i], rows);

    let rows = 270_011;
    let (x, dy) =
        (tensor::<f32>(&[rows, 8], 1).channels_last(), tensor::<f32>(&[rows, 8], 2).channels_last());
    let bn = BatchNorm::new(8);
    let out = bn.forward_train(&Cpu, &x, Affine::f32(&weight, &bias), None).unwrap();
    let grads = bn.backward_train(&Cpu, &x, &dy, Affine::f32(&weight, &bias), &out).unwrap();
    let (mean, rstd, wide_x, wide_dy) = (wide(&out.mean), wide(&out.rstd), wide(&x), wide(&dy));
    let n = rows as f64;
    for (channel, &mean) in mean.iter().enumerate() {
        let want = (channel..rows * 8).step_by(8).map(|i| wide_x[i]).sum::<f64>() / n;
        assert!((mean - want).abs() <= 1e-7, "mean {channel}: {mean} instead of {want}");
    }
    assert_sums(&grads.dweight.unwrap(), |i| wide_dy[i] * (wide_x[i] - mean[i % 8]) * rstd[i % 8], rows);
    assert_sums(&grads.dbias.unwrap(), |i| wide_dy[i], rows);
}

/// Statistics whose reciprocals leave the range of plain calls: a power of two takes them there, and everything else with it.
#[test]
fn gradients_scale_with_the_input() {
    let scale = 2f32.powi(80);
    for last in [false, true] {
        for dims in [[6, 16, 35], [3, 71, 64]] {
            let channels = if last { dims[2] } else { dims[1] };
            let gradients = |scale: f32| {
                let scaled: Vec<f32> =
                    numbers::<f32>(dims.iter().product(), 1).iter().map(|v| v * scale).collect();
                let of = |t: Tensor<f32, Cpu>| if last { t.channels_last() } else { t };
                let x = of(Tensor::from_slice(&Cpu, &scaled, &dims).unwrap());
                let dy = of(tensor(&dims, 2));
                let (weight, bias) = (tensor(&[channels], 5), tensor(&[channels], 6));
                // Nothing beside the variance, whatever the scale.
                let bn = BatchNorm::new(channels).eps(1e-20);
                let out = bn.forward_train(&Cpu, &x, Affine::f32(&weight, &bias), None).unwrap();
                let grads = bn.backward_train(&Cpu, &x, &dy, Affine::f32(&weight, &bias), &out).unwrap();
                let dx: Vec<f32> = grads.dx.to_vec(&Cpu).unwrap().iter().map(|v| v * scale).collect();
                [dx, grads.dweight.unwrap().to_vec(&Cpu).unwrap()]
            };
            for (plain, other) in gradients(1.0).iter().zip(gradients(scale)) {
                let size = plain.iter().fold(0.0f32, |size, v| size.max(v.abs()));
                for (i, (plain, other)) in plain.iter().zip(other).enumerate() {
                    assert!(
                        (plain - other).abs() <= 1e-6 * size,
                        "{dims:?}: element {i}: {plain} and {other}"
                    );
                }
            }
        }
    }
}

/// Asserts that a mean and a reciprocal standard deviation are those of the values.
#[track_caller]
fn assert_statistics(of: impl Iterator<Item = f32> + Clone, mean: f32, rstd: f32, what: &str) {
    let (of, n) = (of.clone().map(f64::from), of.count() as f64);
    let want_mean = of.clone().sum::<f64>() / n;
    let want_rstd = (of.map(|v| (v - want_mean).powi(2)).sum::<f64>() / n + 1e-5).sqrt().recip();
    for (got, want) in [(mean, want_mean), (rstd, want_rstd)] {
        assert!((f64::from(got) - want).abs() <= 2e-7 * want.abs(), "{what}: {got} instead of {want}");
    }
}

/// Whatever values a shift is first taken from: here one position in a hundred, that one among them, differs much from the others,
/// in some of the channels of some of the samples.
#[test]
fn statistics_are_right_where_the_first_shift_is_far_from_the_mean() {
    for [samples, positions, channels] in [[3, 1600, 8], [1, 1600, 100], [1600, 3, 6]] {
        let (slab, len) = (positions * channels, samples * positions * channels);
        let index = |i: usize| [i / slab, i % slab / channels, i % channels];
        let mut values = numbers::<f32>(len, 1);
        for (i, v) in values.iter_mut().enumerate() {
            let [sample, position, channel] = index(i);
            let is_far = (sample * positions + position).is_multiple_of(100) && sample != 1;
            *v += if channel % 3 == 1 && is_far { -1000.0 } else { 1000.0 };
        }
        let last =
            Tensor::from_slice(&Cpu, &values, &[samples, positions, channels]).unwrap().channels_last();
        let mut transposed = vec![0.0; len];
        for (i, &v) in values.iter().enumerate() {
            let [sample, position, channel] = index(i);
            transposed[sample * slab + channel * positions + position] = v;
        }
        let first = Tensor::from_slice(&Cpu, &transposed, &[samples, channels, positions]).unwrap();
        for (x, order) in [(last, "last"), (first, "first")] {
            let what = format!("{samples} samples of {positions} by {channels}, channels {order}");
            let of = |wanted: &dyn Fn([usize; 3]) -> bool| {
                let wanted: Vec<_> = (0..len).filter(|&i| wanted(index(i))).map(|i| values[i]).collect();
                wanted.into_iter()
            };
            let out = BatchNorm::new(channels).forward_train(&Cpu, &x, Affine::None, None).unwrap();
            let (mean, rstd) = (out.mean.to_vec(&Cpu).unwrap(), out.rstd.to_vec(&Cpu).unwrap());
            for c in 0..channels {
                assert_statistics(of(&|[_, _, channel]| channel == c), mean[c], rstd[c], &what);
            }
            let out = GroupNorm::new(2, channels).forward(&Cpu, &x, Affine::None).unwrap();
            let (mean, rstd) = (out.mean.to_vec(&Cpu).unwrap(), out.rstd.to_vec(&Cpu).unwrap());
            for group in 0..2 * samples.min(3) {
                let of_group = of(&|[n, _, channel]| n * 2 + channel * 2 / channels == group);
                assert_statistics(of_group, mean[group], rstd[group], &what);
            }
        }
    }
}
