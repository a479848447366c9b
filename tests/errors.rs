//! Refusals: what they say, and that a refused call has written nothing.

use warpnorm::{
    Affine, AffineGrad, BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval,
    BatchNormTrain, Cpu, Element, Error, LayerNorm, LayerNormForward, Layout, Result, RunningStatsMut,
    Statistics, Tensor, View, ViewMut,
};

use crate::support::{
    on_every_backend,
    run::{Placed, Sliced},
};

on_every_backend!(
    a_vector_of_the_wrong_length_is_refused,
    a_tensor_shaped_unlike_x_is_refused,
    a_tensor_of_other_channels_is_refused,
    a_tensor_of_too_few_or_too_many_dimensions_is_refused,
    a_shape_that_kernels_cannot_index_is_refused,
    an_eps_that_is_negative_or_not_finite_is_refused,
    a_momentum_that_is_not_finite_is_refused_in_training,
    training_on_one_value_is_refused,
    a_row_that_is_not_the_trailing_dimensions_is_refused,
    a_workspace_made_for_less_is_refused,
    the_allocating_methods_refuse_alike,
    data_that_does_not_fill_its_dimensions_is_refused,
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    ForwardTrain,
    ForwardEval,
    BackwardTrain,
    BackwardEval,
    LayerNorm,
}

use Method::{BackwardEval, BackwardTrain, ForwardEval, ForwardTrain};

const BATCH_NORM: [Method; 4] = [ForwardTrain, ForwardEval, BackwardTrain, BackwardEval];

/// The sizes of a call's arguments; as they are at first, every method takes them.
#[derive(Clone, Debug)]
struct Call {
    bn: BatchNorm,
    ln: LayerNorm,
    x: Vec<usize>,
    /// `y` of the forward passes.
    y: (Vec<usize>, Layout),
    dy: (Vec<usize>, Layout),
    dx: (Vec<usize>, Layout),
    weight: usize,
    bias: usize,
    dweight: usize,
    dbias: usize,
    mean: usize,
    rstd: usize,
    running_mean: usize,
    running_var: usize,
}

const FIRST: Layout = Layout::ChannelsFirst;
const BEFORE: u64 = 6;

impl Call {
    fn new(method: Method) -> Self {
        let dims = vec![3, 2, 4];
        // A row is the last two dimensions.
        let (params, stats) = if method == Method::LayerNorm { (8, 3) } else { (2, 2) };
        Self {
            bn: BatchNorm::new(2),
            ln: LayerNorm::new(8),
            y: (dims.clone(), FIRST),
            dy: (dims.clone(), FIRST),
            dx: (dims.clone(), FIRST),
            x: dims,
            weight: params,
            bias: params,
            dweight: params,
            dbias: params,
            mean: stats,
            rstd: stats,
            running_mean: stats,
            running_var: stats,
        }
    }

    /// The same call with all tensors of these dimensions.
    fn shaped(method: Method, dims: &[usize]) -> Self {
        let all = (dims.to_vec(), FIRST);
        Self { x: dims.to_vec(), y: all.clone(), dy: all.clone(), dx: all, ..Self::new(method) }
    }

    /// What the method answers. Panics where a refusal has written anything.
    fn make<T: Element, B: Sliced>(&self, on: &B, method: Method) -> Result<()> {
        fn ramp<T: Element, B: Sliced>(on: &B, len: usize) -> Placed<T, B> {
            Placed::new(on, &(0..len).map(|i| i as f64 + 1.0).collect::<Vec<_>>(), 0).unwrap()
        }
        fn room<T: Element, B: Sliced>(on: &B, len: usize) -> Placed<T, B> {
            Placed::room(on, len, 0).unwrap()
        }
        let len = |dims: &[usize]| dims.iter().product();
        let x = ramp::<T, B>(on, len(&self.x));
        let dy = ramp::<T, B>(on, len(&self.dy.0));
        let (weight, bias) = (ramp::<T, B>(on, self.weight), ramp::<T, B>(on, self.bias));
        let (given_mean, given_rstd) = (ramp::<f32, B>(on, self.mean), ramp::<f32, B>(on, self.rstd));
        let mut y = room::<T, B>(on, len(&self.y.0));
        let mut dx = room::<T, B>(on, len(&self.dx.0));
        let (mut mean, mut rstd) = (room::<f32, B>(on, self.mean), room::<f32, B>(on, self.rstd));
        let (mut dweight, mut dbias) = (room::<f32, B>(on, self.dweight), room::<f32, B>(on, self.dbias));
        let (mut running_mean, mut running_var) =
            (room::<f32, B>(on, self.running_mean), room::<f32, B>(on, self.running_var));
        let mut batches = BEFORE;
        // Large enough for every shape here: what it is refused for has a test of its own.
        let large = room::<T, B>(on, 2 * 4096);
        let mut workspace = BatchNorm::new(2)
            .statistics(Statistics::WholeBatch)
            .workspace_for(on, large.view(&[64, 2, 64], FIRST)?)?;

        let affine = Affine::Same { weight: Some(weight.data()), bias: Some(bias.data()) };
        let x = x.view(&self.x, FIRST)?;
        let result = match method {
            ForwardTrain => self.bn.forward_train_into(
                on,
                BatchNormTrain {
                    x,
                    y: y.view_mut(&self.y.0, self.y.1)?,
                    affine,
                    mean: Some(mean.data_mut()),
                    rstd: Some(rstd.data_mut()),
                    running: Some(RunningStatsMut {
                        mean: running_mean.data_mut(),
                        var: running_var.data_mut(),
                        batches: &mut batches,
                    }),
                    workspace: &mut workspace,
                },
            ),
            ForwardEval => self.bn.forward_eval_into(
                on,
                BatchNormEval {
                    x,
                    y: y.view_mut(&self.y.0, self.y.1)?,
                    affine,
                    running_mean: running_mean.data(),
                    running_var: running_var.data(),
                },
            ),
            BackwardTrain => self.bn.backward_train_into(
                on,
                BatchNormBackwardTrain {
                    x,
                    dy: dy.view(&self.dy.0, self.dy.1)?,
                    affine,
                    mean: given_mean.data(),
                    rstd: given_rstd.data(),
                    dx: Some(dx.view_mut(&self.dx.0, self.dx.1)?),
                    grads: AffineGrad::F32 {
                        dweight: Some(dweight.data_mut()),
                        dbias: Some(dbias.data_mut()),
                    },
                    workspace: &mut workspace,
                },
            ),
            BackwardEval => self.bn.backward_eval_into(
                on,
                BatchNormBackwardEval {
                    x,
                    dy: dy.view(&self.dy.0, self.dy.1)?,
                    affine,
                    running_mean: running_mean.data(),
                    running_var: running_var.data(),
                    dx: Some(dx.view_mut(&self.dx.0, self.dx.1)?),
                    grads: AffineGrad::F32 {
                        dweight: Some(dweight.data_mut()),
                        dbias: Some(dbias.data_mut()),
                    },
                    workspace: &mut workspace,
                },
            ),
            Method::LayerNorm => self.ln.forward_into(
                on,
                LayerNormForward {
                    x,
                    y: y.view_mut(&self.y.0, self.y.1)?,
                    affine,
                    mean: Some(mean.data_mut()),
                    rstd: Some(rstd.data_mut()),
                },
            ),
        };
        if result.is_err() {
            assert_eq!(batches, BEFORE, "a refused batch is not counted");
            for (arg, out) in [("y", &y), ("dx", &dx)] {
                assert!(out.is_unwritten(on), "{method:?} was refused and wrote `{arg}`");
            }
            for (arg, out) in [
                ("mean", &mean),
                ("rstd", &rstd),
                ("dweight", &dweight),
                ("dbias", &dbias),
                ("running_mean", &running_mean),
                ("running_var", &running_var),
            ] {
                assert!(out.is_unwritten(on), "{method:?} was refused and wrote `{arg}`");
            }
        }
        result
    }

    fn refused<T: Element, B: Sliced>(&self, on: &B, method: Method, message: &str) {
        match self.make::<T, B>(on, method) {
            Ok(()) => panic!("{method:?} accepted what must give: {message}\n{self:?}"),
            Err(error) => assert_eq!(error.to_string(), message, "{method:?}"),
        }
    }
}

fn a_vector_of_the_wrong_length_is_refused<T: Element, B: Sliced>(on: &B) {
    let all = [ForwardTrain, ForwardEval, BackwardTrain, BackwardEval, Method::LayerNorm];
    for method in all {
        Call::new(method).make::<T, B>(on, method).unwrap();
    }
    let forward = [ForwardTrain, ForwardEval, Method::LayerNorm];
    let backward = [BackwardTrain, BackwardEval];
    type Field = fn(&mut Call) -> &mut usize;
    let vectors: [(&str, Field, &[Method]); 8] = [
        ("weight", |call| &mut call.weight, &[&forward[..], &backward].concat()),
        ("bias", |call| &mut call.bias, &[&forward[..], &backward].concat()),
        ("mean", |call| &mut call.mean, &[ForwardTrain, BackwardTrain, Method::LayerNorm]),
        ("rstd", |call| &mut call.rstd, &[ForwardTrain, BackwardTrain, Method::LayerNorm]),
        ("running_mean", |call| &mut call.running_mean, &[ForwardTrain, ForwardEval, BackwardEval]),
        ("running_var", |call| &mut call.running_var, &[ForwardTrain, ForwardEval, BackwardEval]),
        ("dweight", |call| &mut call.dweight, &backward),
        ("dbias", |call| &mut call.dbias, &backward),
    ];
    for (arg, field, methods) in vectors {
        for &method in methods {
            let right = *field(&mut Call::new(method));
            for wrong in [0, 1, right - 1, right + 1, 2 * right] {
                let mut call = Call::new(method);
                *field(&mut call) = wrong;
                let message = format!("`{arg}` has {wrong} elements, the shape needs {right}");
                call.refused::<T, B>(on, method, &message);
            }
        }
    }
    // One statistic serves the whole batch: one per channel is too many then.
    let mut call = Call::new(ForwardTrain);
    call.bn = call.bn.statistics(Statistics::WholeBatch);
    call.refused::<T, B>(on, ForwardTrain, "`mean` has 2 elements, the shape needs 1");
}

fn a_tensor_shaped_unlike_x_is_refused<T: Element, B: Sliced>(on: &B) {
    type Field = fn(&mut Call) -> &mut (Vec<usize>, Layout);
    let tensors: [(&str, Field, &[Method]); 3] = [
        ("y", |call| &mut call.y, &[ForwardTrain, ForwardEval, Method::LayerNorm]),
        ("dy", |call| &mut call.dy, &[BackwardTrain, BackwardEval]),
        ("dx", |call| &mut call.dx, &[BackwardTrain, BackwardEval]),
    ];
    for (arg, field, methods) in tensors {
        for &method in methods {
            for (dims, layout, actual) in [
                (vec![3, 2, 5], FIRST, "[3, 2, 5]"),
                (vec![2, 2, 4], FIRST, "[2, 2, 4]"),
                (vec![3, 2, 2, 2], FIRST, "[3, 2, 2, 2]"),
                (vec![24], FIRST, "[24]"),
                (vec![3, 2, 4], Layout::ChannelsLast, "[3, 2, 4] channels last"),
            ] {
                let mut call = Call::new(method);
                *field(&mut call) = (dims, layout);
                let message = format!("`{arg}` is {actual}, it must be [3, 2, 4] like `x`");
                call.refused::<T, B>(on, method, &message);
            }
        }
    }
}

fn a_tensor_of_other_channels_is_refused<T: Element, B: Sliced>(on: &B) {
    for method in BATCH_NORM {
        let message = "`x` has 4 channels, this BatchNorm has 2";
        Call::shaped(method, &[3, 4, 2]).refused::<T, B>(on, method, message);
        Call::shaped(method, &[3, 4]).refused::<T, B>(on, method, message);
        Call::shaped(method, &[0, 4]).refused::<T, B>(on, method, message);
    }
}

fn a_tensor_of_too_few_or_too_many_dimensions_is_refused<T: Element, B: Sliced>(on: &B) {
    for method in BATCH_NORM {
        let refused =
            |dims: &[usize], message| Call::shaped(method, dims).refused::<T, B>(on, method, message);
        refused(&[], "`x` has 0 dimensions, BatchNorm takes 2 to 5");
        refused(&[2], "`x` has 1 dimensions, BatchNorm takes 2 to 5");
        refused(&[3, 2, 1, 1, 1, 4], "`x` has 6 dimensions, BatchNorm takes 2 to 5");
        refused(&[1; 9], "`dims` has 9 dimensions, at most 8 are supported");
    }
}

fn a_shape_that_kernels_cannot_index_is_refused<T: Element, B: Sliced>(on: &B) {
    // Empty, so that the test needs no memory: the sizes are checked nevertheless.
    for method in BATCH_NORM {
        let message =
            "`x` of [0, 2, 2147483648] is too large: 2^31 positions or channels, or 2^46 elements, and more";
        Call::shaped(method, &[0, 2, 1 << 31]).refused::<T, B>(on, method, message);
        let message =
            format!("`dims` of [0, 2, {}] is too large: its elements cannot be addressed", usize::MAX);
        Call::shaped(method, &[0, 2, usize::MAX]).refused::<T, B>(on, method, &message);
    }
    let mut call = Call::shaped(Method::LayerNorm, &[0, 1 << 31]);
    call.ln = LayerNorm::new(1 << 31);
    let message = "`x` of [0, 2147483648] is too large: 2^31 columns and more";
    call.refused::<T, B>(on, Method::LayerNorm, message);
}

fn an_eps_that_is_negative_or_not_finite_is_refused<T: Element, B: Sliced>(on: &B) {
    for (eps, shown) in [
        (-0.5, "-0.5"),
        (-f32::MIN_POSITIVE, "-0.000000000000000000000000000000000000011754944"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let message = format!("`eps` is {shown}, it must be finite and not negative");
        for method in BATCH_NORM.into_iter().chain([Method::LayerNorm]) {
            let mut call = Call::new(method);
            (call.bn, call.ln) = (call.bn.eps(eps), call.ln.eps(eps));
            call.refused::<T, B>(on, method, &message);
            let mut empty = Call::shaped(method, &[0, 2, 4]);
            (empty.bn, empty.ln) = (empty.bn.eps(eps), empty.ln.eps(eps));
            empty.refused::<T, B>(on, method, &message);
        }
    }
}

fn a_momentum_that_is_not_finite_is_refused_in_training<T: Element, B: Sliced>(on: &B) {
    for (momentum, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut call = Call::new(ForwardTrain);
        call.bn = call.bn.momentum(momentum);
        call.refused::<T, B>(on, ForwardTrain, &format!("`momentum` is {shown}, it must be finite"));
        for method in [ForwardEval, BackwardTrain, BackwardEval] {
            call.make::<T, B>(on, method).unwrap();
        }
    }
}

fn training_on_one_value_is_refused<T: Element, B: Sliced>(on: &B) {
    for dims in [&[1, 2][..], &[1, 2, 1], &[1, 2, 1, 1, 1]] {
        for method in [ForwardTrain, BackwardTrain] {
            let message = "`x` holds one value per channel, training needs more than one";
            Call::shaped(method, dims).refused::<T, B>(on, method, message);
        }
        for method in [ForwardEval, BackwardEval] {
            Call::shaped(method, dims).make::<T, B>(on, method).unwrap();
        }
    }
    for method in [ForwardTrain, BackwardTrain] {
        let one = Call { weight: 1, bias: 1, dweight: 1, dbias: 1, ..Call::shaped(method, &[1, 1]) };
        let one = Call { mean: 1, rstd: 1, running_mean: 1, running_var: 1, ..one };
        let one = Call { bn: BatchNorm::new(1).statistics(Statistics::WholeBatch), ..one };
        one.refused::<T, B>(on, method, "`x` holds one value per batch, training needs more than one");
        // Two channels are two values.
        let two = Call { mean: 1, rstd: 1, running_mean: 1, running_var: 1, ..Call::shaped(method, &[1, 2]) };
        let two = Call { bn: two.bn.statistics(Statistics::WholeBatch), ..two };
        two.make::<T, B>(on, method).unwrap();
    }
}

fn a_row_that_is_not_the_trailing_dimensions_is_refused<T: Element, B: Sliced>(on: &B) {
    let method = Method::LayerNorm;
    for (dims, cols) in
        [(&[3, 2, 4][..], 3), (&[3, 2, 4], 2), (&[3, 2, 4], 48), (&[8, 3], 8), (&[0, 4], 8), (&[], 8)]
    {
        let mut call = Call::shaped(method, dims);
        call.ln = LayerNorm::new(cols);
        let message = format!(
            "the trailing dimensions of `x` are {dims:?}, this LayerNorm normalizes over {cols} elements"
        );
        call.refused::<T, B>(on, method, &message);
    }
}

/// The CPU needs no workspace; a backend that does refuses one that is too small.
fn a_workspace_made_for_less_is_refused<T: Element, B: Sliced>(on: &B) {
    let dims = [64, 33, 32];
    let x = Placed::<T, B>::new(on, &vec![0.5; 64 * 33 * 32], 0).unwrap();
    let mut out = Placed::<T, B>::room(on, 64 * 33 * 32, 0).unwrap();
    let stats = Placed::<f32, B>::new(on, &[1.0; 33], 0).unwrap();
    let bn = BatchNorm::new(33);
    let needed = bn.workspace_for(on, x.view(&dims, FIRST).unwrap()).unwrap().bytes();
    let tiny = Placed::<T, B>::room(on, 2, 0).unwrap();
    let mut workspace = BatchNorm::new(1).workspace_for(on, tiny.view(&[2, 1], FIRST).unwrap()).unwrap();
    let actual = workspace.bytes();
    let fits = actual >= needed;
    let judge = |result: Result<()>| match result {
        Ok(()) => assert!(fits, "accepted a workspace of {actual} bytes where {needed} are needed"),
        Err(error) => {
            assert_eq!(error, Error::Workspace { needed, actual });
            let message = format!(
                "`workspace` has {actual} bytes, this call needs {needed}: make it with the op's `workspace` method"
            );
            assert_eq!(error.to_string(), message);
        }
    };

    let forward = BatchNormTrain {
        x: x.view(&dims, FIRST).unwrap(),
        y: out.view_mut(&dims, FIRST).unwrap(),
        affine: Affine::None,
        mean: None,
        rstd: None,
        running: None,
        workspace: &mut workspace,
    };
    judge(bn.forward_train_into(on, forward));
    assert_eq!(out.is_unwritten(on), !fits);
    let mut dx = Placed::<T, B>::room(on, 64 * 33 * 32, 0).unwrap();
    let backward = BatchNormBackwardTrain {
        x: x.view(&dims, FIRST).unwrap(),
        dy: x.view(&dims, FIRST).unwrap(),
        affine: Affine::None,
        mean: stats.data(),
        rstd: stats.data(),
        dx: Some(dx.view_mut(&dims, FIRST).unwrap()),
        grads: AffineGrad::None,
        workspace: &mut workspace,
    };
    judge(bn.backward_train_into(on, backward));
    assert_eq!(dx.is_unwritten(on), !fits);
    let backward = BatchNormBackwardEval {
        x: x.view(&dims, FIRST).unwrap(),
        dy: x.view(&dims, FIRST).unwrap(),
        affine: Affine::None,
        running_mean: stats.data(),
        running_var: stats.data(),
        dx: Some(dx.view_mut(&dims, FIRST).unwrap()),
        grads: AffineGrad::None,
        workspace: &mut workspace,
    };
    judge(bn.backward_eval_into(on, backward));
}

fn the_allocating_methods_refuse_alike<T: Element, B: Sliced>(on: &B) {
    let zeros = |dims: &[usize]| Tensor::<T, B>::zeros(on, dims).unwrap();
    let (x, other, flat) = (zeros(&[3, 2, 4]), zeros(&[3, 2, 5]), zeros(&[24]));
    let bn = BatchNorm::new(2);
    let mut running = warpnorm::RunningStats::new(on, 2).unwrap();
    let before = (running.mean.to_vec(on).unwrap(), running.var.to_vec(on).unwrap());
    let said = |error: Error| error.to_string();

    let error = bn.forward_train(on, &flat, Affine::None, Some(&mut running)).map(drop).unwrap_err();
    assert_eq!(said(error), "`x` has 1 dimensions, BatchNorm takes 2 to 5");
    let error = bn.eps(-1.0).forward_train(on, &x, Affine::None, Some(&mut running)).map(drop).unwrap_err();
    assert_eq!(said(error), "`eps` is -1, it must be finite and not negative");
    let after = (running.mean.to_vec(on).unwrap(), running.var.to_vec(on).unwrap());
    assert_eq!((after, running.batches), (before, 0), "running statistics of refused calls");

    let error = BatchNorm::new(3).forward_eval(on, &x, Affine::None, &running).map(drop).unwrap_err();
    assert_eq!(said(error), "`x` has 2 channels, this BatchNorm has 3");
    let out = bn.forward_train(on, &x, Affine::None, None).unwrap();
    let error = bn.backward_train(on, &x, &other, Affine::None, &out).map(drop).unwrap_err();
    assert_eq!(said(error), "`dy` is [3, 2, 5], it must be [3, 2, 4] like `x`");
    let error = bn.backward_eval(on, &x, &other, Affine::None, &running).map(drop).unwrap_err();
    assert_eq!(said(error), "`dy` is [3, 2, 5], it must be [3, 2, 4] like `x`");
    let error = LayerNorm::new(5).forward(on, &x, Affine::None).map(drop).unwrap_err();
    let message = "the trailing dimensions of `x` are [3, 2, 4], this LayerNorm normalizes over 5 elements";
    assert_eq!(said(error), message);
}

fn data_that_does_not_fill_its_dimensions_is_refused<T: Element, B: Sliced>(on: &B) {
    let data = vec![T::default(); 7];
    let error = Tensor::from_slice(on, &data, &[2, 4]).map(drop).unwrap_err();
    assert_eq!(error, Error::Length { arg: "data", expected: 8, actual: 7 });
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 8");
    let error = Tensor::from_slice(on, &data, &[1; 9]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 9 dimensions, at most 8 are supported");

    let mut placed = Placed::<T, B>::room(on, 7, 1).unwrap();
    let error = View::<T, B>::new(placed.data(), &[2, 4]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 8");
    let error = ViewMut::<T, B>::new(placed.data_mut(), &[2, 3]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 6");
}

#[test]
fn the_cpu_views_slices_alike() {
    let mut data = [0.0_f32; 7];
    let error = Cpu.view(&data, &[2, 4]).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "`data` has 7 elements, the shape needs 8");
    let error = Cpu.view_mut(&mut data, &[usize::MAX, 0]).map(drop).unwrap_err();
    let message = format!("`dims` of [{}, 0] is too large: its elements cannot be addressed", usize::MAX);
    assert_eq!(error.to_string(), message);
}
