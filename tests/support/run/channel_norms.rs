//! BatchNorm, GroupNorm and InstanceNorm, which take the same buffers, as one.

use warpnorm::{
    Backend, BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval, BatchNormEvalInPlace,
    BatchNormTrain, BatchNormTrainInPlace, Element, GroupNorm, GroupNormBackward, GroupNormForward,
    GroupNormInPlace, InstanceNorm, Result, RunningStatsMut, View, Workspace,
};

use super::{Pair, Placed, Run, Sliced, UNWRITTEN, Values};

/// An op that normalizes with statistics of the tensor at hand.
pub(super) trait ChannelNorm {
    fn saved_len<T: Element, B: Backend>(&self, x: &View<'_, T, B>) -> Result<usize>;
    fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>>;
    fn forward<T: Element, B: Backend>(&self, on: &B, args: BatchNormTrain<'_, T, B>) -> Result<()>;
    fn in_place<T: Element, B: Backend>(&self, on: &B, args: BatchNormTrainInPlace<'_, T, B>) -> Result<()>;
    fn backward<T: Element, B: Backend>(&self, on: &B, args: BatchNormBackwardTrain<'_, T, B>) -> Result<()>;
}

/// An op that normalizes with running statistics.
pub(super) trait FixedNorm {
    fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>>;
    fn forward<T: Element, B: Backend>(&self, on: &B, args: BatchNormEval<'_, T, B>) -> Result<()>;
    fn in_place<T: Element, B: Backend>(&self, on: &B, args: BatchNormEvalInPlace<'_, T, B>) -> Result<()>;
    fn backward<T: Element, B: Backend>(&self, on: &B, args: BatchNormBackwardEval<'_, T, B>) -> Result<()>;
}

macro_rules! channel_norm {
    ($op:ty: $forward:ident, $in_place:ident, $backward:ident) => {
        impl ChannelNorm for $op {
            fn saved_len<T: Element, B: Backend>(&self, x: &View<'_, T, B>) -> Result<usize> {
                <$op>::saved_len(self, x)
            }
            fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
                self.workspace_for(on, x)
            }
            fn forward<T: Element, B: Backend>(&self, on: &B, args: BatchNormTrain<'_, T, B>) -> Result<()> {
                self.$forward(on, args)
            }
            fn in_place<T: Element, B: Backend>(
                &self,
                on: &B,
                args: BatchNormTrainInPlace<'_, T, B>,
            ) -> Result<()> {
                self.$in_place(on, args)
            }
            fn backward<T: Element, B: Backend>(
                &self,
                on: &B,
                args: BatchNormBackwardTrain<'_, T, B>,
            ) -> Result<()> {
                self.$backward(on, args)
            }
        }
    };
}
channel_norm!(BatchNorm: forward_train_into, forward_train_in_place_into, backward_train_into);
channel_norm!(InstanceNorm: forward_into, forward_in_place_into, backward_into);

impl ChannelNorm for GroupNorm {
    fn saved_len<T: Element, B: Backend>(&self, x: &View<'_, T, B>) -> Result<usize> {
        GroupNorm::saved_len(self, x)
    }
    fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
        self.workspace_for(on, x)
    }
    fn forward<T: Element, B: Backend>(&self, on: &B, args: BatchNormTrain<'_, T, B>) -> Result<()> {
        let BatchNormTrain { x, residual, y, affine, mean, rstd, running, workspace } = args;
        assert!(running.is_none(), "GroupNorm has no running statistics");
        self.forward_into(on, GroupNormForward { x, residual, y, affine, mean, rstd, workspace })
    }
    fn in_place<T: Element, B: Backend>(&self, on: &B, args: BatchNormTrainInPlace<'_, T, B>) -> Result<()> {
        let BatchNormTrainInPlace { x, residual, affine, mean, rstd, running, workspace } = args;
        assert!(running.is_none(), "GroupNorm has no running statistics");
        self.forward_in_place_into(on, GroupNormInPlace { x, residual, affine, mean, rstd, workspace })
    }
    fn backward<T: Element, B: Backend>(&self, on: &B, args: BatchNormBackwardTrain<'_, T, B>) -> Result<()> {
        let BatchNormBackwardTrain {
            x,
            residual,
            dy,
            affine,
            mean,
            rstd,
            dx,
            dresidual,
            grads,
            accumulate,
            workspace,
        } = args;
        let args = GroupNormBackward {
            x,
            residual,
            dy,
            affine,
            mean,
            rstd,
            dx,
            dresidual,
            grads,
            accumulate,
            workspace,
        };
        self.backward_into(on, args)
    }
}

macro_rules! fixed_norm {
    ($op:ty) => {
        impl FixedNorm for $op {
            fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
                self.workspace_for(on, x)
            }
            fn forward<T: Element, B: Backend>(&self, on: &B, args: BatchNormEval<'_, T, B>) -> Result<()> {
                self.forward_eval_into(on, args)
            }
            fn in_place<T: Element, B: Backend>(
                &self,
                on: &B,
                args: BatchNormEvalInPlace<'_, T, B>,
            ) -> Result<()> {
                self.forward_eval_in_place_into(on, args)
            }
            fn backward<T: Element, B: Backend>(
                &self,
                on: &B,
                args: BatchNormBackwardEval<'_, T, B>,
            ) -> Result<()> {
                self.backward_eval_into(on, args)
            }
        }
    };
}
fixed_norm!(BatchNorm);
fixed_norm!(InstanceNorm);

impl<T: Element, B: Sliced> Run<'_, T, B> {
    pub(super) fn channel_norm(&mut self, norm: &impl ChannelNorm) -> Result<Values> {
        let (on, problem, options) = (self.on, self.problem, self.options);
        let (dims, layout) = (&problem.dims[..], problem.layout);
        let [mean_name, _, rstd_name] = problem.op.statistics().expect("statistics follow x");
        let affine: Pair<T, B> = self.affine()?;
        let mut x = self.tensor(&problem.x[0])?;
        let residual = self.tensor_if(problem.residual.as_ref())?;
        let mut y = self.room()?;
        let saved = norm.saved_len(&x.view(dims, layout)?)?;
        let mut mean = self.vector(&vec![UNWRITTEN; saved])?;
        let mut rstd = self.vector(&vec![UNWRITTEN; saved])?;
        let mut running = match problem.tracked() {
            Some(r) => Some((self.vector(&r.mean)?, self.vector(&r.var)?, problem.batches)),
            None => None,
        };
        let (mut running_means, mut running_vars) = (Vec::new(), Vec::new());
        let mut workspace = norm.workspace(on, x.view(dims, layout)?)?;

        for (step, batch) in problem.x.iter().enumerate() {
            if step > 0 {
                x = self.tensor(batch)?;
            }
            let momentum = match options.device_momentum {
                true => Some(self.vector(&[problem.momentum_at(step)])?),
                false => None,
            };
            if options.in_place {
                y = self.tensor(batch)?;
                let args = BatchNormTrainInPlace {
                    x: y.view_mut(dims, layout)?,
                    residual: residual.as_ref().map(|v| v.view(dims, layout)).transpose()?,
                    affine: affine.affine(),
                    mean: options.wants(mean_name).then(|| mean.data_mut()),
                    rstd: options.wants(rstd_name).then(|| rstd.data_mut()),
                    running: running.as_mut().map(|(mean, var, batches)| RunningStatsMut {
                        mean: mean.data_mut(),
                        var: var.data_mut(),
                        batches,
                        momentum: momentum.as_ref().map(Placed::data),
                    }),
                    workspace: &mut workspace,
                };
                norm.in_place(on, args)?;
            } else {
                let args = BatchNormTrain {
                    x: x.view(dims, layout)?,
                    residual: residual.as_ref().map(|v| v.view(dims, layout)).transpose()?,
                    y: y.view_mut(dims, layout)?,
                    affine: affine.affine(),
                    mean: options.wants(mean_name).then(|| mean.data_mut()),
                    rstd: options.wants(rstd_name).then(|| rstd.data_mut()),
                    running: running.as_mut().map(|(mean, var, batches)| RunningStatsMut {
                        mean: mean.data_mut(),
                        var: var.data_mut(),
                        batches,
                        momentum: momentum.as_ref().map(Placed::data),
                    }),
                    workspace: &mut workspace,
                };
                norm.forward(on, args)?;
            }
            if let Some((mean, var, batches)) = &running {
                assert_eq!(
                    *batches,
                    problem.batches + step as u64 + 1,
                    "each accepted call counts as one batch"
                );
                running_means.extend(mean.read(on)?);
                running_vars.extend(var.read(on)?);
            }
        }
        let mut values = Values::from([("y", y.read(on)?)]);
        if running.is_some() {
            values.extend([("running_mean", running_means), ("running_var", running_vars)]);
        }
        for (name, saved) in [(mean_name, &mean), (rstd_name, &rstd)] {
            if options.wants(name) {
                values.insert(name, saved.read(on)?);
            }
        }
        if !options.wants(mean_name) || !options.wants(rstd_name) {
            return Ok(values);
        }

        let dy = self.tensor(&problem.dy)?;
        let mut dx = options.wants("dx").then(|| self.room()).transpose()?;
        let dresidual_wanted = problem.residual.is_some() && options.wants("dresidual");
        let mut dresidual = dresidual_wanted.then(|| self.room()).transpose()?;
        let mut grads = self.grads()?;
        let args = BatchNormBackwardTrain {
            x: x.view(dims, layout)?,
            residual: residual.as_ref().map(|v| v.view(dims, layout)).transpose()?,
            dy: dy.view(dims, layout)?,
            affine: affine.affine(),
            mean: mean.data(),
            rstd: rstd.data(),
            dx: dx.as_mut().map(|v| v.view_mut(dims, layout)).transpose()?,
            dresidual: dresidual.as_mut().map(|v| v.view_mut(dims, layout)).transpose()?,
            grads: grads.grads(),
            accumulate: problem.old_grads.is_some(),
            workspace: &mut workspace,
        };
        norm.backward(on, args)?;
        self.insert(&mut values, &[("dx", dx.as_ref()), ("dresidual", dresidual.as_ref())], &grads)?;
        Ok(values)
    }

    pub(super) fn fixed_norm(&mut self, norm: &impl FixedNorm) -> Result<Values> {
        let (on, problem, options) = (self.on, self.problem, self.options);
        let (dims, layout) = (&problem.dims[..], problem.layout);
        let running = problem.running.as_ref().expect("inference has running statistics");
        let affine: Pair<T, B> = self.affine()?;
        let x = self.tensor(problem.last_x())?;
        let residual = self.tensor_if(problem.residual.as_ref())?;
        let mean = self.vector(&running.mean)?;
        let var = self.vector(&running.var)?;
        let mut y;
        if options.in_place {
            y = self.tensor(problem.last_x())?;
            let args = BatchNormEvalInPlace {
                x: y.view_mut(dims, layout)?,
                residual: residual.as_ref().map(|v| v.view(dims, layout)).transpose()?,
                affine: affine.affine(),
                running_mean: mean.data(),
                running_var: var.data(),
            };
            norm.in_place(on, args)?;
        } else {
            y = self.room()?;
            let args = BatchNormEval {
                x: x.view(dims, layout)?,
                residual: residual.as_ref().map(|v| v.view(dims, layout)).transpose()?,
                y: y.view_mut(dims, layout)?,
                affine: affine.affine(),
                running_mean: mean.data(),
                running_var: var.data(),
            };
            norm.forward(on, args)?;
        }

        let dy = self.tensor(&problem.dy)?;
        let mut dx = options.wants("dx").then(|| self.room()).transpose()?;
        let dresidual_wanted = problem.residual.is_some() && options.wants("dresidual");
        let mut dresidual = dresidual_wanted.then(|| self.room()).transpose()?;
        let mut grads = self.grads()?;
        let mut workspace = norm.workspace(on, x.view(dims, layout)?)?;
        let args = BatchNormBackwardEval {
            x: x.view(dims, layout)?,
            residual: residual.as_ref().map(|v| v.view(dims, layout)).transpose()?,
            dy: dy.view(dims, layout)?,
            affine: affine.affine(),
            running_mean: mean.data(),
            running_var: var.data(),
            dx: dx.as_mut().map(|v| v.view_mut(dims, layout)).transpose()?,
            dresidual: dresidual.as_mut().map(|v| v.view_mut(dims, layout)).transpose()?,
            grads: grads.grads(),
            accumulate: problem.old_grads.is_some(),
            workspace: &mut workspace,
        };
        norm.backward(on, args)?;
        let mut values = Values::from([("y", y.read(on)?)]);
        self.insert(&mut values, &[("dx", dx.as_ref()), ("dresidual", dresidual.as_ref())], &grads)?;
        Ok(values)
    }
}
