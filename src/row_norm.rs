//! What LayerNorm and RMSNorm share: the checks, and what is handed to a backend once they have passed.

use crate::{
    Affine, AffineGrad, Backend, Element, Error, Result, View, ViewMut, Workspace,
    backend::WorkspaceMut,
    error::{check_eps, check_len},
    shape::{Dims, RowShape},
};

/// An op of the row family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowOp {
    pub(crate) name: &'static str,
    pub(crate) cols: usize,
    pub(crate) eps: f32,
    pub(crate) weight_offset: f32,
    /// Whether this is RMSNorm, which has no mean.
    pub(crate) rms: bool,
}

/// A tensor added before a row norm, and the sum that is normalized: `h = x + residual`, rounded to the tensor's type,
/// so that the fused op gives the bits of an addition and a norm after another. FlashInfer's and vLLM's fused add, which
/// overwrites both inputs, is `forward_in_place_into`.
pub struct Residual<'a, T: Element, B: Backend> {
    /// What is added, shaped like `x`.
    pub residual: View<'a, T, B>,
    /// The sum, shaped like `x`: the input of the backward pass, and of what comes next on the residual stream.
    pub h: ViewMut<'a, T, B>,
}

impl<T: Element, B: Backend> Residual<'_, T, B> {
    /// The same borrow for a shorter time.
    pub fn reborrow(&mut self) -> Residual<'_, T, B> {
        Residual { residual: self.residual.reborrow(), h: self.h.reborrow() }
    }
}

/// The tensors of a forward pass; without `x`, `y` holds it.
pub(crate) struct ForwardTensors<'a, T: Element, B: Backend> {
    pub(crate) x: Option<View<'a, T, B>>,
    pub(crate) y: ViewMut<'a, T, B>,
    pub(crate) sum: Option<Sum<'a, T, B>>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) mean: Option<B::Mut<'a, f32>>,
    pub(crate) rstd: Option<B::Mut<'a, f32>>,
}

/// What is added to `x`, and the sum.
pub(crate) struct Sum<'a, T: Element, B: Backend> {
    /// `None`: `h` holds it.
    pub(crate) residual: Option<View<'a, T, B>>,
    pub(crate) h: ViewMut<'a, T, B>,
}

/// The tensors of a backward pass, and the gradients wanted.
pub(crate) struct BackwardTensors<'a, T: Element, B: Backend> {
    pub(crate) x: View<'a, T, B>,
    pub(crate) dy: View<'a, T, B>,
    pub(crate) dh: Option<View<'a, T, B>>,
    pub(crate) affine: Affine<'a, T, B>,
    /// `None` for RMSNorm.
    pub(crate) mean: Option<B::Ref<'a, f32>>,
    pub(crate) rstd: B::Ref<'a, f32>,
    pub(crate) dx: Option<ViewMut<'a, T, B>>,
    pub(crate) grads: AffineGrad<'a, T, B>,
    pub(crate) accumulate: bool,
    pub(crate) workspace: &'a mut Workspace<B>,
}

impl RowOp {
    pub(crate) fn shape(&self, dims: &Dims) -> Result<RowShape> {
        check_eps(self.eps)?;
        if ![0.0, 1.0].contains(&self.weight_offset) {
            return Err(Error::WeightOffset(self.weight_offset));
        }
        RowShape::of(self.name, "x", dims, self.cols)
    }

    /// Enough for the backward pass of such a tensor.
    pub(crate) fn workspace<B: Backend>(&self, on: &B, dims: &Dims) -> Result<Workspace<B>> {
        Workspace::new(on, on.row_norm_workspace(self.shape(dims)?))
    }

    pub(crate) fn forward<T: Element, B: Backend>(
        &self,
        on: &B,
        tensors: ForwardTensors<'_, T, B>,
    ) -> Result<()> {
        let ForwardTensors { x, y, sum, affine, mean, rstd } = tensors;
        let x_dims = x.as_ref().map_or(y.dims, |x| x.dims);
        let shape = self.shape(&x_dims)?;
        let rows = Rows { op: self.name, shape, x: &x_dims };
        let y_stride = rows.check("y", &y.dims)?;
        let mut row_sum = None;
        if let Some(Sum { residual, h }) = sum {
            let residual = match residual {
                Some(v) => Some(Strided { stride: rows.check("residual", &v.dims)?, data: v.data }),
                None => None,
            };
            let arg = if residual.is_some() { "h" } else { "residual" };
            row_sum =
                Some(RowSum { residual, h: Strided { stride: rows.check(arg, &h.dims)?, data: h.data } });
        }
        affine.check(shape.cols())?;
        mean.as_ref().map_or(Ok(()), |mean| check_len("mean", shape.rows(), B::len_mut(mean)))?;
        rstd.as_ref().map_or(Ok(()), |rstd| check_len("rstd", shape.rows(), B::len_mut(rstd)))?;
        if shape.is_empty() {
            return Ok(());
        }
        let args = RowNormForward {
            x: x.map(|x| Strided { data: x.data, stride: shape.stride(&x.dims) }),
            y: Strided { data: y.data, stride: y_stride },
            sum: row_sum,
            affine,
            eps: self.eps,
            weight_offset: self.weight_offset,
            rms: self.rms,
            mean,
            rstd,
        };
        on.row_norm_fwd(shape, args)
    }

    pub(crate) fn backward<T: Element, B: Backend>(
        &self,
        on: &B,
        tensors: BackwardTensors<'_, T, B>,
    ) -> Result<()> {
        let BackwardTensors { x, dy, dh, affine, mean, rstd, dx, grads, accumulate, workspace } = tensors;
        let shape = self.shape(&x.dims)?;
        let rows = Rows { op: self.name, shape, x: &x.dims };
        let dy = Strided { stride: rows.check("dy", &dy.dims)?, data: dy.data };
        let dh = match dh {
            Some(dh) => Some(Strided { stride: rows.check("dh", &dh.dims)?, data: dh.data }),
            None => None,
        };
        let dx = match dx {
            Some(dx) => Some(Strided { stride: rows.check("dx", &dx.dims)?, data: dx.data }),
            None => None,
        };
        affine.check(shape.cols())?;
        grads.check(shape.cols())?;
        mean.as_ref().map_or(Ok(()), |mean| check_len("mean", shape.rows(), B::len(mean)))?;
        check_len("rstd", shape.rows(), B::len(&rstd))?;
        let sums_wanted = !grads.is_none() && shape.cols() > 0 && !(shape.is_empty() && accumulate);
        if (dx.is_none() || shape.is_empty()) && !sums_wanted {
            return Ok(());
        }
        workspace.check(on.row_norm_workspace(shape))?;
        let args = RowNormBackward {
            x: Strided { data: x.data, stride: shape.stride(&x.dims) },
            dy,
            dh,
            affine,
            weight_offset: self.weight_offset,
            mean,
            rstd,
            dx,
            grads,
            accumulate,
            workspace: workspace.borrow_mut(),
        };
        on.row_norm_bwd(shape, args)
    }
}

/// The rows of a call: what every tensor of it must be like.
struct Rows<'a> {
    op: &'static str,
    shape: RowShape,
    x: &'a Dims,
}

impl Rows<'_> {
    /// The stride of a tensor that is shaped like `x`.
    fn check(&self, arg: &'static str, dims: &Dims) -> Result<usize> {
        self.x.check_same(arg, dims)?;
        if self.shape.rows() == 1 {
            // The first dimension may be part of the row, which has no gaps.
            dims.check_dense(arg, self.op)?;
        }
        Ok(self.shape.stride(dims))
    }
}

/// Elements whose blocks of rows start `stride` apart.
pub(crate) struct Strided<D> {
    pub(crate) data: D,
    pub(crate) stride: usize,
}

/// A forward pass of the row norms, checked against its shape.
pub struct RowNormForward<'a, T: Element, B: Backend> {
    /// `None`: `y` holds it.
    pub(crate) x: Option<Strided<B::Ref<'a, T>>>,
    pub(crate) y: Strided<B::Mut<'a, T>>,
    pub(crate) sum: Option<RowSum<'a, T, B>>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) eps: f32,
    pub(crate) weight_offset: f32,
    pub(crate) rms: bool,
    pub(crate) mean: Option<B::Mut<'a, f32>>,
    pub(crate) rstd: Option<B::Mut<'a, f32>>,
}

/// What is added to `x`, and the sum.
pub(crate) struct RowSum<'a, T: Element, B: Backend> {
    /// `None`: `h` holds it.
    pub(crate) residual: Option<Strided<B::Ref<'a, T>>>,
    pub(crate) h: Strided<B::Mut<'a, T>>,
}

/// A backward pass of the row norms, checked against its shape.
pub struct RowNormBackward<'a, T: Element, B: Backend> {
    pub(crate) x: Strided<B::Ref<'a, T>>,
    pub(crate) dy: Strided<B::Ref<'a, T>>,
    pub(crate) dh: Option<Strided<B::Ref<'a, T>>>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) weight_offset: f32,
    /// `None` for RMSNorm.
    pub(crate) mean: Option<B::Ref<'a, f32>>,
    pub(crate) rstd: B::Ref<'a, f32>,
    pub(crate) dx: Option<Strided<B::Mut<'a, T>>>,
    pub(crate) grads: AffineGrad<'a, T, B>,
    pub(crate) accumulate: bool,
    #[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))] // the CPU needs none
    pub(crate) workspace: WorkspaceMut<'a, B>,
}
