//! The inputs that PyTorch's suites expect an error for, and what this crate answers.
//!
//! The modules refuse more, which no suite has an input for. `tests/errors.rs` holds what this crate says there:
//!
//! | PyTorch refuses | here |
//! |---|---|
//! | training on one value per channel, InstanceNorm over one position | `Error::OneValue` |
//! | BatchNorm1d of four dimensions and the like | accepted: there is one BatchNorm, of 2 to 5 dimensions |
//! | running statistics, weight or bias of another length | `Error::Length` |
//! | inference without running statistics, or one of the two alone | does not compile: they are no options |
//! | parameters of 16 bits beside data of 32 | does not compile: `Affine` has the data's type or `f32` |
//! | GroupNorm of 0 groups (ZeroDivisionError) | `Error::Groups` |
//! | GroupNorm of one value in all, but not of one per group | accepted: the output is the bias |
//! | InstanceNorm of other channels, with parameters only | `Error::Channels`, with and without |
//! | InstanceNorm without statistics of either kind | does not compile: the method says which |
//! | BatchNorm of 0 channels (IndexError) | accepted: there is nothing to normalize |

use std::{collections::BTreeMap, fs};

use serde::Deserialize;
use serde_json::{Map, Value};
use warpnorm::{
    Affine, BatchNorm, Element, Error, GroupNorm, InstanceNorm, LayerNorm, Result, RmsNorm, RunningStats,
    Tensor,
};

use crate::support::{data_dir, on_every_backend, run::Sliced};

on_every_backend!(every_error_input_has_its_answer, nothing_to_normalize_is_no_error);

#[derive(Deserialize)]
struct Manifest {
    errors: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    op: String,
    /// Dimensions, for a function.
    #[serde(default)]
    input: Vec<usize>,
    #[serde(default)]
    training: bool,
    args: Vec<Value>,
    kwargs: Map<String, Value>,
    /// What PyTorch says.
    message: String,
}

/// The answer to each input, in the manifest's order. `None`: this crate accepts it, for the reason beside it.
fn answers() -> [(&'static str, Option<Error>); 27] {
    let over = |op, expected, actual: &[usize]| {
        Some(Error::NormalizedShape { arg: "x", op, expected, actual: actual.to_vec() })
    };
    let length = |arg| Some(Error::Length { arg, expected: 6, actual: 2 });
    let eps = Some(Error::Eps(-1.0));
    let groups = |groups, channels| Some(Error::Groups { groups, channels });
    let rank = Some(Error::Rank { arg: "x", op: "GroupNorm", expected: "2 to 5", actual: 1 });
    [
        // No dimensions are one element, which no trailing dimensions here are.
        ("native_layer_norm", over("LayerNorm", 1, &[1, 2, 3])),
        ("native_layer_norm", length("weight")),
        ("native_layer_norm", length("bias")),
        ("native_layer_norm", over("LayerNorm", 4, &[2, 2, 3])),
        ("nn.functional.group_norm", rank),
        ("nn.functional.group_norm", groups(2, 7)),
        // No channels and no positions: there is no group, so none lacks an element, and the output is empty.
        ("nn.functional.group_norm", None),
        ("nn.functional.group_norm", None),
        ("nn.functional.rms_norm", over("RmsNorm", 1, &[1, 2, 3])),
        ("nn.functional.rms_norm", length("weight")),
        ("nn.functional.rms_norm", over("RmsNorm", 4, &[2, 2, 3])),
        // An `eps` of 0 is finite and not negative: what it gives for a spread of 0 is the caller's affair. PyTorch
        // itself accepts it in inference (the suite's expectation is older), and did in training before 2.15.
        ("BatchNorm1d", eps.clone()),
        ("BatchNorm1d", None),
        ("BatchNorm1d", eps.clone()),
        ("BatchNorm1d", None),
        ("BatchNorm2d", eps.clone()),
        ("BatchNorm2d", None),
        ("BatchNorm2d", eps.clone()),
        ("BatchNorm2d", None),
        ("BatchNorm3d", eps.clone()),
        ("BatchNorm3d", None),
        ("BatchNorm3d", eps),
        ("BatchNorm3d", None),
        ("GroupNorm", groups(3, 10)),
        ("GroupNorm", groups(5, 13)),
        ("GroupNorm", groups(3, 10)),
        ("GroupNorm", groups(5, 13)),
    ]
}

fn every_error_input_has_its_answer<T: Element, B: Sliced>(on: &B) {
    let manifest = fs::read(data_dir("pytorch/manifest.json")).unwrap();
    let Manifest { errors } = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(errors.len(), 27);
    let mut counts = BTreeMap::<&str, usize>::new();
    for (input, (op, answer)) in errors.iter().zip(answers()) {
        assert_eq!(input.op, op);
        let verdict = match (input.call::<T, B>(on), answer) {
            (Err(error), Some(expected)) => {
                assert_eq!(error, expected, "{op}: {}", input.message);
                "refused"
            }
            (Ok(()), None) => "accepted",
            (got, answer) => panic!("{op}: {}\ngot {got:?} instead of {answer:?}", input.message),
        };
        *counts.entry(verdict).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([("accepted", 8), ("refused", 19)]));
}

/// No channels, no samples, no positions.
fn nothing_to_normalize_is_no_error<T: Element, B: Sliced>(on: &B) {
    let mut running = RunningStats::new(on, 0).unwrap();
    for dims in [[3, 0, 4], [0, 0, 0], [1, 0, 1]] {
        let x = Tensor::<T, B>::zeros(on, &dims).unwrap();
        let bn = BatchNorm::new(0);
        let out = bn.forward_train(on, &x, Affine::None, Some(&mut running)).unwrap();
        assert_eq!((out.y.dims(), out.mean.len()), (&dims[..], 0));
        bn.backward_train(on, &x, &out.y, Affine::None, &out).unwrap();
        assert!(bn.forward_eval(on, &x, Affine::None, &running).unwrap().is_empty());
        let out = GroupNorm::new(1, 0).forward(on, &x, Affine::None).unwrap();
        assert!(out.y.is_empty());
        let out = InstanceNorm::new(0).forward(on, &x, Affine::None, Some(&mut running)).unwrap();
        assert!(out.y.is_empty() && out.mean.is_empty());
    }
    assert_eq!(running.batches, 6, "accepted batches are counted, empty ones, too");
}

impl Input {
    /// The call of this crate that the input is for; its output is as large as its input.
    fn call<T: Element, B: Sliced>(&self, on: &B) -> Result<()> {
        let dims = &self.input[..];
        let number = |i: usize| self.args[i].as_u64().unwrap() as usize;
        let shape = |i: usize| -> Option<Vec<usize>> {
            let shape = self.args.get(i)?.as_array()?;
            Some(shape.iter().map(|n| n.as_u64().unwrap() as usize).collect())
        };
        let vector = |i: usize| shape(i).map(|dims| Tensor::<T, B>::zeros(on, &dims).unwrap());
        let zeros = |dims: &[usize]| Tensor::<T, B>::zeros(on, dims).unwrap();
        let (x, y) = match self.op.as_str() {
            "native_layer_norm" => {
                let (x, weight, bias) = (zeros(dims), vector(1), vector(2));
                let affine = Affine::Same {
                    weight: weight.as_ref().map(Tensor::data),
                    bias: bias.as_ref().map(Tensor::data),
                };
                let norm = LayerNorm::new(shape(0).unwrap().iter().product());
                let y = norm.forward(on, &x, affine)?.y;
                (x, y)
            }
            "nn.functional.rms_norm" => {
                let (x, weight) = (zeros(dims), vector(1));
                let affine = Affine::Same { weight: weight.as_ref().map(Tensor::data), bias: None };
                let norm = RmsNorm::new(shape(0).unwrap().iter().product());
                let y = norm.forward(on, &x, affine)?.y;
                (x, y)
            }
            "nn.functional.group_norm" => {
                let channels = dims.get(1).copied().unwrap_or(dims[0]);
                let x = zeros(dims);
                let y = GroupNorm::new(number(0), channels).forward(on, &x, Affine::None)?.y;
                (x, y)
            }
            "GroupNorm" => {
                let x = zeros(&[2, number(1), 3]);
                let y = GroupNorm::new(number(0), number(1)).forward(on, &x, Affine::None)?.y;
                (x, y)
            }
            module => {
                let spatial: usize = module.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
                let channels = number(0);
                let x = zeros(&[&[4, channels], &vec![2; spatial][..]].concat());
                let bn = BatchNorm::new(channels).eps(self.kwargs["eps"].as_f64().unwrap() as f32);
                let mut running = RunningStats::new(on, channels)?;
                let y = if self.training {
                    bn.forward_train(on, &x, Affine::None, Some(&mut running))?.y
                } else {
                    bn.forward_eval(on, &x, Affine::None, &running)?
                };
                (x, y)
            }
        };
        assert_eq!((y.dims(), y.to_vec(on)?.len()), (x.dims(), x.len()));
        Ok(())
    }
}
