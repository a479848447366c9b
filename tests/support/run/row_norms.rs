//! LayerNorm and RMSNorm as one: RMSNorm has no mean.

use warpnorm::{
    Backend, Element, LayerNorm, LayerNormBackward, LayerNormForward, LayerNormInPlace, Residual, Result,
    RmsNorm, RmsNormBackward, RmsNormForward, RmsNormInPlace, View, Workspace,
};

use super::{Pair, Run, Sliced, UNWRITTEN, Values};

/// An op that normalizes rows. RMSNorm ignores `mean`.
pub(super) trait RowNorm {
    /// Whether the op has a mean.
    const CENTERED: bool;

    fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>>;
    fn forward<T: Element, B: Backend>(&self, on: &B, args: LayerNormForward<'_, T, B>) -> Result<()>;
    fn in_place<T: Element, B: Backend>(&self, on: &B, args: LayerNormInPlace<'_, T, B>) -> Result<()>;
    fn backward<T: Element, B: Backend>(&self, on: &B, args: LayerNormBackward<'_, T, B>) -> Result<()>;
}

impl RowNorm for LayerNorm {
    const CENTERED: bool = true;

    fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
        self.workspace_for(on, x)
    }
    fn forward<T: Element, B: Backend>(&self, on: &B, args: LayerNormForward<'_, T, B>) -> Result<()> {
        self.forward_into(on, args)
    }
    fn in_place<T: Element, B: Backend>(&self, on: &B, args: LayerNormInPlace<'_, T, B>) -> Result<()> {
        self.forward_in_place_into(on, args)
    }
    fn backward<T: Element, B: Backend>(&self, on: &B, args: LayerNormBackward<'_, T, B>) -> Result<()> {
        self.backward_into(on, args)
    }
}

impl RowNorm for RmsNorm {
    const CENTERED: bool = false;

    fn workspace<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
        self.workspace_for(on, x)
    }
    fn forward<T: Element, B: Backend>(&self, on: &B, args: LayerNormForward<'_, T, B>) -> Result<()> {
        let LayerNormForward { x, y, residual, affine, mean: _, rstd } = args;
        self.forward_into(on, RmsNormForward { x, y, residual, affine, rstd })
    }
    fn in_place<T: Element, B: Backend>(&self, on: &B, args: LayerNormInPlace<'_, T, B>) -> Result<()> {
        let LayerNormInPlace { x, residual, affine, mean: _, rstd } = args;
        self.forward_in_place_into(on, RmsNormInPlace { x, residual, affine, rstd })
    }
    fn backward<T: Element, B: Backend>(&self, on: &B, args: LayerNormBackward<'_, T, B>) -> Result<()> {
        let LayerNormBackward { x, dy, dh, affine, mean: _, rstd, dx, grads, accumulate, workspace } = args;
        self.backward_into(on, RmsNormBackward { x, dy, dh, affine, rstd, dx, grads, accumulate, workspace })
    }
}

impl<T: Element, B: Sliced> Run<'_, T, B> {
    pub(super) fn row_norm<N: RowNorm>(&mut self, norm: &N) -> Result<Values> {
        let (on, problem, options) = (self.on, self.problem, self.options);
        let (dims, layout) = (&problem.dims[..], problem.layout);
        let rows: usize = dims[..dims.len() - problem.norm_dims].iter().product();
        let affine: Pair<T, B> = self.affine()?;
        let x = self.tensor(problem.last_x())?;
        let residual = self.tensor_if(problem.residual.as_ref())?;
        let mut mean = self.vector(&vec![UNWRITTEN; rows])?;
        let mut rstd = self.vector(&vec![UNWRITTEN; rows])?;
        let mean_wanted = N::CENTERED && options.wants("mean");
        let (mut y, mut h);
        if options.in_place {
            y = self.tensor(problem.last_x())?;
            h = self.tensor_if(problem.residual.as_ref())?;
            let args = LayerNormInPlace {
                x: y.view_mut(dims, layout)?,
                residual: h.as_mut().map(|h| h.view_mut(dims, layout)).transpose()?,
                affine: affine.affine(),
                mean: mean_wanted.then(|| mean.data_mut()),
                rstd: options.wants("rstd").then(|| rstd.data_mut()),
            };
            norm.in_place(on, args)?;
        } else {
            y = self.room()?;
            h = residual.is_some().then(|| self.room()).transpose()?;
            let sum = match (&residual, &mut h) {
                (Some(residual), Some(h)) => {
                    Some(Residual { residual: residual.view(dims, layout)?, h: h.view_mut(dims, layout)? })
                }
                _ => None,
            };
            let args = LayerNormForward {
                x: x.view(dims, layout)?,
                y: y.view_mut(dims, layout)?,
                residual: sum,
                affine: affine.affine(),
                mean: mean_wanted.then(|| mean.data_mut()),
                rstd: options.wants("rstd").then(|| rstd.data_mut()),
            };
            norm.forward(on, args)?;
        }
        let mut values = Values::from([("y", y.read(on)?)]);
        if let Some(h) = &h {
            values.insert("h", h.read(on)?);
        }
        if mean_wanted {
            values.insert("mean", mean.read(on)?);
        }
        if options.wants("rstd") {
            values.insert("rstd", rstd.read(on)?);
        }
        if N::CENTERED && !mean_wanted || !options.wants("rstd") {
            return Ok(values);
        }

        let dy = self.tensor(&problem.dy)?;
        let dh = self.tensor_if(problem.dh.as_ref())?;
        let mut dx = options.wants("dx").then(|| self.room()).transpose()?;
        let mut grads = self.grads()?;
        let normalized = h.as_ref().unwrap_or(&x);
        let mut workspace = norm.workspace(on, normalized.view(dims, layout)?)?;
        let args = LayerNormBackward {
            x: normalized.view(dims, layout)?,
            dy: dy.view(dims, layout)?,
            dh: dh.as_ref().map(|dh| dh.view(dims, layout)).transpose()?,
            affine: affine.affine(),
            mean: mean.data(),
            rstd: rstd.data(),
            dx: dx.as_mut().map(|dx| dx.view_mut(dims, layout)).transpose()?,
            grads: grads.grads(),
            accumulate: problem.old_grads.is_some(),
            workspace: &mut workspace,
        };
        norm.backward(on, args)?;
        self.insert(&mut values, &[("dx", dx.as_ref())], &grads)?;
        Ok(values)
    }
}
