//! The methods that allocate, and the helpers.

use warpnorm::{
    Affine, BatchNorm, Element, Error, GroupNorm, InstanceNorm, LayerNorm, PopulationStats, RmsNorm,
    RunningStats, Statistics, Tensor,
};

use crate::support::{on_every_backend, run::Sliced};

on_every_backend!(
    batch_norm_refuses_alike,
    instance_norm_refuses_alike,
    group_norm_refuses_alike,
    layer_norm_refuses_alike,
    rms_norm_refuses_alike,
    in_place_refusals_leave_the_tensor_as_it_was,
    folding_refuses_what_does_not_fit,
    population_statistics_refuse_what_does_not_fit,
);

fn zeros<T: Element, B: Sliced>(on: &B, dims: &[usize]) -> Tensor<T, B> {
    Tensor::zeros(on, dims).unwrap()
}

fn said<V>(result: Result<V, Error>) -> String {
    result.map(drop).unwrap_err().to_string()
}

/// Asserts that running statistics are as they were made.
fn expect_fresh<B: Sliced>(on: &B, running: &RunningStats<B>) {
    let len = running.mean.len();
    assert_eq!(running.mean.to_vec(on).unwrap(), vec![0.0; len]);
    assert_eq!(running.var.to_vec(on).unwrap(), vec![1.0; len]);
    assert_eq!(running.batches, 0, "a refused batch is not counted");
}

const OTHER_DY: &str = "`dy` is [3, 2, 5], it must be [3, 2, 4] like `x`";

fn batch_norm_refuses_alike<T: Element, B: Sliced>(on: &B) {
    let (x, other, flat) = (zeros::<T, B>(on, &[3, 2, 4]), zeros(on, &[3, 2, 5]), zeros::<T, B>(on, &[24]));
    let bn = BatchNorm::new(2);
    let mut running = RunningStats::new(on, 2).unwrap();
    let mut train = |bn: BatchNorm, x: &Tensor<T, B>| {
        let said = said(bn.forward_train(on, x, Affine::None, Some(&mut running)));
        expect_fresh(on, &running);
        said
    };
    assert_eq!(train(bn, &flat), "`x` has 1 dimensions, BatchNorm takes 2 to 5");
    assert_eq!(train(bn.eps(-1.0), &x), "`eps` is -1, it must be finite and not negative");
    assert_eq!(train(bn.momentum(f32::NAN), &x), "`momentum` is NaN, it must be finite");
    let whole = bn.statistics(Statistics::WholeBatch);
    assert_eq!(train(whole, &x), "`running_mean` has 2 elements, the shape needs 1");
    assert_eq!(train(whole.virtual_batch(3), &x), "a virtual batch needs statistics per channel");
    let message = "`x` has 3 samples, which are no multiple of the virtual batch of 2";
    assert_eq!(train(bn.virtual_batch(2), &x), message);
    assert_eq!(said(bn.virtual_batch(2).saved_len(&x.view())), message);
    let steps = bn.statistics(Statistics::PerTimeStep { steps: 2 });
    assert_eq!(
        said(steps.workspace(on, &zeros::<T, B>(on, &[3, 4, 2]))),
        "`x` has 3 time steps, this BatchNorm has 2"
    );

    let three = BatchNorm::new(3);
    let message = "`x` has 2 channels, this BatchNorm has 3";
    assert_eq!(said(three.forward_eval(on, &x, Affine::None, &running)), message);
    assert_eq!(said(three.workspace(on, &x)), message);
    let out = bn.forward_train(on, &x, Affine::None, None).unwrap();
    assert_eq!(said(bn.backward_train(on, &x, &other, Affine::None, &out)), OTHER_DY);
    assert_eq!(said(bn.backward_eval(on, &x, &other, Affine::None, &running)), OTHER_DY);
}

fn instance_norm_refuses_alike<T: Element, B: Sliced>(on: &B) {
    let (x, other, flat) = (zeros::<T, B>(on, &[3, 2, 4]), zeros(on, &[3, 2, 5]), zeros::<T, B>(on, &[3, 2]));
    let norm = InstanceNorm::new(2);
    let mut running = RunningStats::new(on, 2).unwrap();
    let mut train = |norm: InstanceNorm, x: &Tensor<T, B>| {
        let said = said(norm.forward(on, x, Affine::None, Some(&mut running)));
        expect_fresh(on, &running);
        said
    };
    assert_eq!(train(norm, &flat), "`x` has 2 dimensions, InstanceNorm takes 3 to 5");
    assert_eq!(train(norm.eps(-1.0), &x), "`eps` is -1, it must be finite and not negative");
    assert_eq!(train(norm.momentum(f32::INFINITY), &x), "`momentum` is inf, it must be finite");
    let message = "`x` holds one value per channel and sample, training needs more than one";
    assert_eq!(train(norm, &zeros(on, &[3, 2, 1])), message);

    let message = "`x` has 2 channels, this InstanceNorm has 3";
    let three = InstanceNorm::new(3);
    assert_eq!(said(three.forward_eval(on, &x, Affine::None, &running)), message);
    assert_eq!(said(three.saved_len(&x.view())), message);
    let out = norm.forward(on, &x, Affine::None, None).unwrap();
    assert_eq!(said(norm.backward(on, &x, &other, Affine::None, &out)), OTHER_DY);
    assert_eq!(said(norm.backward_eval(on, &x, &other, Affine::None, &running)), OTHER_DY);
}

fn group_norm_refuses_alike<T: Element, B: Sliced>(on: &B) {
    let (x, other) = (zeros::<T, B>(on, &[3, 2, 4]), zeros(on, &[3, 2, 5]));
    let norm = GroupNorm::new(2, 2);
    let message = "2 channels cannot be cut into 0 groups";
    assert_eq!(said(GroupNorm::new(0, 2).forward(on, &x, Affine::None)), message);
    assert_eq!(said(GroupNorm::new(0, 2).workspace(on, &x)), message);
    let message = "`x` has 2 channels, this GroupNorm has 4";
    assert_eq!(said(GroupNorm::new(2, 4).forward(on, &x, Affine::None)), message);
    let weight = zeros::<f32, B>(on, &[3]);
    let affine = Affine::F32 { weight: Some(weight.data()), bias: None };
    assert_eq!(said(norm.forward(on, &x, affine)), "`weight` has 3 elements, the shape needs 2");
    let out = norm.forward(on, &x, Affine::None).unwrap();
    assert_eq!(said(norm.backward(on, &x, &other, Affine::None, &out)), OTHER_DY);
}

fn layer_norm_refuses_alike<T: Element, B: Sliced>(on: &B) {
    let (x, other) = (zeros::<T, B>(on, &[3, 2, 4]), zeros(on, &[3, 2, 5]));
    let norm = LayerNorm::new(4);
    let message = "the trailing dimensions of `x` are [3, 2, 4], this LayerNorm normalizes over 5 elements";
    assert_eq!(said(LayerNorm::new(5).forward(on, &x, Affine::None)), message);
    assert_eq!(said(LayerNorm::new(5).workspace(on, &x)), message);
    let message = "`eps` is NaN, it must be finite and not negative";
    assert_eq!(said(norm.eps(f32::NAN).forward(on, &x, Affine::None)), message);
    let message = "`residual` is [3, 2, 5], it must be [3, 2, 4] like `x`";
    assert_eq!(said(norm.forward_residual(on, &x, &other, Affine::None)), message);
    let out = norm.forward(on, &x, Affine::None).unwrap();
    assert_eq!(said(norm.backward(on, &x, &other, Affine::None, &out)), OTHER_DY);
}

fn rms_norm_refuses_alike<T: Element, B: Sliced>(on: &B) {
    let (x, other) = (zeros::<T, B>(on, &[3, 2, 4]), zeros(on, &[3, 2, 5]));
    let norm = RmsNorm::new(4);
    let message = "the trailing dimensions of `x` are [3, 2, 4], this RmsNorm normalizes over 5 elements";
    assert_eq!(said(RmsNorm::new(5).forward(on, &x, Affine::None)), message);
    let message = "`weight_offset` is 0.5, it must be 0 or 1";
    assert_eq!(said(norm.weight_offset(0.5).forward(on, &x, Affine::None)), message);
    assert_eq!(said(norm.weight_offset(0.5).workspace(on, &x)), message);
    let message = "`residual` is [3, 2, 5], it must be [3, 2, 4] like `x`";
    assert_eq!(said(norm.forward_residual(on, &x, &other, Affine::None)), message);
    let out = norm.forward(on, &x, Affine::None).unwrap();
    assert_eq!(said(norm.backward(on, &x, &other, Affine::None, &out)), OTHER_DY);
}

fn in_place_refusals_leave_the_tensor_as_it_was<T: Element, B: Sliced>(on: &B) {
    let ramp: Vec<T> = (0..24).map(|i| T::from_f32(i as f32)).collect();
    let mut x = Tensor::from_slice(on, &ramp, &[3, 2, 4]).unwrap();
    let weight = zeros::<f32, B>(on, &[3]);
    let affine = || Affine::F32 { weight: Some(weight.data()), bias: None };
    let running = RunningStats::new(on, 2).unwrap();
    let said = [
        said(BatchNorm::new(2).forward_eval_in_place(on, &mut x, affine(), &running)),
        said(InstanceNorm::new(2).forward_in_place(on, &mut x, affine())),
        said(GroupNorm::new(1, 2).forward_in_place(on, &mut x, affine())),
        said(LayerNorm::new(8).forward_in_place(on, &mut x, affine())),
        said(RmsNorm::new(8).forward_in_place(on, &mut x, affine())),
    ];
    for (said, needed) in said.iter().zip([2, 2, 2, 8, 8]) {
        assert_eq!(*said, format!("`weight` has 3 elements, the shape needs {needed}"));
    }
    assert_eq!(x.to_vec(on).unwrap(), ramp);
}

fn folding_refuses_what_does_not_fit<T: Element, B: Sliced>(on: &B) {
    let weight = zeros::<T, B>(on, &[2, 3]);
    let running = RunningStats::new(on, 2).unwrap();
    let bn = BatchNorm::new(2);
    let fold = |bn: BatchNorm, out_dim| said(bn.fold(on, &weight, None, out_dim, Affine::None, &running));
    assert_eq!(fold(bn, 1), "`weight` has 3 channels, this BatchNorm has 2");
    assert_eq!(fold(bn, 2), "`weight` has 2 dimensions, folding takes more dimensions than `out_dim`");
    assert_eq!(fold(bn.eps(-1.0), 0), "`eps` is -1, it must be finite and not negative");
    let steps = bn.statistics(Statistics::PerTimeStep { steps: 2 });
    assert_eq!(fold(steps, 0), "statistics per time step cannot be folded into one layer");
    let whole = bn.statistics(Statistics::WholeBatch);
    assert_eq!(fold(whole, 0), "`running_mean` has 2 elements, the shape needs 1");
    let bias = zeros::<T, B>(on, &[3]);
    let message = "`bias of the layer` has 3 elements, the shape needs 2";
    assert_eq!(said(bn.fold(on, &weight, Some(&bias), 0, Affine::None, &running)), message);
    let gamma = zeros::<f32, B>(on, &[1]);
    let affine = Affine::F32 { weight: None, bias: Some(gamma.data()) };
    let message = "`bias` has 1 elements, the shape needs 2";
    assert_eq!(said(bn.fold(on, &weight, None, 0, affine, &running)), message);
    expect_fresh(on, &running);
}

/// PyTorch's issue 189828: merging statistics of other lengths read out of bounds.
fn population_statistics_refuse_what_does_not_fit<T: Element, B: Sliced>(on: &B) {
    let mut stats = PopulationStats::new(2);
    stats.push(4, &[1.0, 2.0], &[3.0, 4.0]).unwrap();
    let before = stats.clone();

    let message = |arg: &str, len: usize| format!("`{arg}` has {len} elements, the shape needs 2");
    for len in [0, 1, 3] {
        let wrong = vec![1.0; len];
        assert_eq!(said(stats.push(4, &wrong, &[1.0; 2])), message("mean", len));
        assert_eq!(said(stats.push(4, &[1.0; 2], &wrong)), message("unbiased_var", len));
        assert_eq!(said(stats.merge(&PopulationStats::new(len))), message("other", len));
    }
    let x = zeros::<T, B>(on, &[3, 2, 4]);
    let three = BatchNorm::new(3);
    assert_eq!(said(stats.observe(&three, on, &x)), "`running_mean` has 3 elements, the shape needs 2");
    let bn = BatchNorm::new(2);
    let refusal = "population statistics are those of whole batches, not of virtual ones";
    assert_eq!(said(stats.observe(&bn.virtual_batch(1), on, &x)), refusal);
    let flat = zeros::<T, B>(on, &[24]);
    assert_eq!(said(stats.observe(&bn, on, &flat)), "`x` has 1 dimensions, BatchNorm takes 2 to 5");
    assert_eq!(stats, before, "refused batches are not observed");

    let message = "`population` holds one value per channel at most, training needs more than one";
    assert_eq!(said(PopulationStats::new(2).running_stats(on)), message);
    let mut one = PopulationStats::new(1);
    one.push(1, &[1.0], &[0.0]).unwrap();
    assert_eq!(said(one.running_stats(on)), message);
}
