//! What the calls read and write.

use warpnorm::{Element, GroupNorm, LayerNorm, View, Workspace};

use super::call::{Call, Method, Op};
use crate::support::run::{Placed, Sliced};

/// Batches counted before the call.
const BEFORE: u64 = 6;

/// Everything that any method reads or writes.
pub(super) struct Buffers<T: Element, B: Sliced> {
    pub(super) x: Placed<T, B>,
    pub(super) residual: Placed<T, B>,
    pub(super) dy: Placed<T, B>,
    pub(super) dh: Placed<T, B>,
    pub(super) weight: Placed<T, B>,
    pub(super) bias: Placed<T, B>,
    pub(super) given_mean: Placed<f32, B>,
    pub(super) given_rstd: Placed<f32, B>,
    pub(super) given_running_mean: Placed<f32, B>,
    pub(super) given_running_var: Placed<f32, B>,
    pub(super) momentum: Placed<f32, B>,
    pub(super) y: Placed<T, B>,
    pub(super) h: Placed<T, B>,
    pub(super) dx: Placed<T, B>,
    pub(super) dresidual: Placed<T, B>,
    pub(super) mean: Placed<f32, B>,
    pub(super) rstd: Placed<f32, B>,
    pub(super) dweight: Placed<f32, B>,
    pub(super) dbias: Placed<f32, B>,
    pub(super) running_mean: Placed<f32, B>,
    pub(super) running_var: Placed<f32, B>,
    pub(super) batches: u64,
    pub(super) workspace: Workspace<B>,
    /// `x` and the residual, which the methods in place write to.
    before: [Vec<f64>; 2],
}

impl<T: Element, B: Sliced> Buffers<T, B> {
    pub(super) fn new(on: &B, call: &Call, workspace: Workspace<B>) -> Self {
        fn ramp<T: Element, B: Sliced>(on: &B, len: usize) -> Placed<T, B> {
            Placed::new(on, &(0..len).map(|i| i as f64 + 1.0).collect::<Vec<_>>(), 0).unwrap()
        }
        fn room<T: Element, B: Sliced>(on: &B, len: usize) -> Placed<T, B> {
            Placed::room(on, len, 0).unwrap()
        }
        let (x, residual) = (ramp(on, call.x.len()), ramp(on, call.residual.len()));
        let before = [&x, &residual].map(|placed: &Placed<T, B>| placed.read(on).unwrap());
        Self {
            x,
            residual,
            dy: ramp(on, call.dy.len()),
            dh: ramp(on, call.dh.len()),
            weight: ramp(on, call.weight),
            bias: ramp(on, call.bias),
            given_mean: ramp(on, call.mean),
            given_rstd: ramp(on, call.rstd),
            given_running_mean: ramp(on, call.running_mean),
            given_running_var: ramp(on, call.running_var),
            momentum: Placed::new(on, &vec![0.5; call.momentum], 0).unwrap(),
            y: room(on, call.y.len()),
            h: room(on, call.h.len()),
            dx: room(on, call.dx.len()),
            dresidual: room(on, call.dresidual.len()),
            mean: room(on, call.mean),
            rstd: room(on, call.rstd),
            dweight: room(on, call.dweight),
            dbias: room(on, call.dbias),
            running_mean: room(on, call.running_mean),
            running_var: room(on, call.running_var),
            batches: BEFORE,
            workspace,
            before,
        }
    }

    pub(super) fn expect_untouched(&self, on: &B, method: Method) {
        assert_eq!(self.batches, BEFORE, "a refused batch is not counted");
        let now = [&self.x, &self.residual].map(|placed| placed.read(on).unwrap());
        assert_eq!(now, self.before, "{method:?} was refused and wrote `x` or `residual`");
        let tensors = [("y", &self.y), ("h", &self.h), ("dx", &self.dx), ("dresidual", &self.dresidual)];
        for (arg, out) in tensors {
            assert!(out.is_unwritten(on), "{method:?} was refused and wrote `{arg}`");
        }
        for (arg, out) in [
            ("mean", &self.mean),
            ("rstd", &self.rstd),
            ("dweight", &self.dweight),
            ("dbias", &self.dbias),
            ("running_mean", &self.running_mean),
            ("running_var", &self.running_var),
        ] {
            assert!(out.is_unwritten(on), "{method:?} was refused and wrote `{arg}`");
        }
    }
}

/// Enough for every shape here: what a workspace is refused for has a test of its own.
pub(super) fn large_workspace<T: Element, B: Sliced>(on: &B, op: Op) -> Workspace<B> {
    let large = Placed::<T, B>::room(on, 64 * 2 * 64, 0).unwrap();
    let view = |dims: &[usize]| View::<T, B>::new(large.data(), dims).unwrap();
    let workspace = if op.is_channel_op() {
        GroupNorm::new(1, 2).workspace_for(on, view(&[64, 2, 64]))
    } else {
        LayerNorm::new(128).workspace_for(on, view(&[64, 128]))
    };
    workspace.unwrap()
}
