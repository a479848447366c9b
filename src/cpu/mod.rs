mod activation;
mod channel_norm;
#[allow(unsafe_code)]
mod memory;
mod moments;
mod parallel;
mod params;
#[allow(unsafe_code)] // units of work write to parts of the same tensors
mod row_norm;
#[allow(unsafe_code)]
mod simd;
#[allow(unsafe_code)]
mod totals;

use crate::{
    Affine, AffineGrad, Backend, Element, Result, View, ViewMut,
    backend::WorkspaceLen,
    channel_norm::{ChannelNormBackward, ChannelNormForward},
    row_norm::{RowNormBackward, RowNormForward},
    sealed::Sealed,
    shape::{ChannelShape, RowShape},
};

/// Runs on the calling thread, with sums in `f64`. Its tensors are plain slices and vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu;

impl Cpu {
    /// Sees a slice as a tensor of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view<'a, T: Element>(&self, data: &'a [T], dims: &[usize]) -> Result<View<'a, T, Self>> {
        View::new(data, dims)
    }

    /// Sees an exclusive slice as a tensor of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view_mut<'a, T: Element>(
        &self,
        data: &'a mut [T],
        dims: &[usize],
    ) -> Result<ViewMut<'a, T, Self>> {
        ViewMut::new(data, dims)
    }
}

impl Sealed for Cpu {}

/// What the CPU does with tensors of an element type: compiled once, with this crate, for each of them.
pub trait HostElement: Sized + 'static {
    #[doc(hidden)]
    fn channel_norm_fwd(shape: ChannelShape, args: ChannelNormForward<'_, Self, Cpu>)
    where
        Self: Element;
    #[doc(hidden)]
    fn channel_norm_bwd(shape: ChannelShape, args: ChannelNormBackward<'_, Self, Cpu>)
    where
        Self: Element;
    #[doc(hidden)]
    fn row_norm_fwd(shape: RowShape, args: RowNormForward<'_, Self, Cpu>)
    where
        Self: Element;
    #[doc(hidden)]
    fn row_norm_bwd(shape: RowShape, args: RowNormBackward<'_, Self, Cpu>)
    where
        Self: Element;
}

macro_rules! host_element {
    ($($t:ty)*) => {$(
        impl HostElement for $t {
            fn channel_norm_fwd(shape: ChannelShape, args: ChannelNormForward<'_, Self, Cpu>) {
                channel_norm::forward(shape, args);
            }
            fn channel_norm_bwd(shape: ChannelShape, args: ChannelNormBackward<'_, Self, Cpu>) {
                channel_norm::backward(shape, args);
            }
            fn row_norm_fwd(shape: RowShape, args: RowNormForward<'_, Self, Cpu>) {
                row_norm::forward(shape, args);
            }
            fn row_norm_bwd(shape: RowShape, args: RowNormBackward<'_, Self, Cpu>) {
                row_norm::backward(shape, args);
            }
        }
    )*};
}
host_element!(f32 half::f16 half::bf16);

impl Backend for Cpu {
    type Buf<T: Element> = Vec<T>;
    type Ref<'a, T: Element> = &'a [T];
    type Mut<'a, T: Element> = &'a mut [T];

    fn zeros<T: Element>(&self, len: usize) -> Result<Vec<T>> {
        Ok(vec![T::default(); len])
    }
    fn upload<T: Element>(&self, data: &[T]) -> Result<Vec<T>> {
        Ok(data.to_vec())
    }
    fn download<T: Element>(&self, data: &&[T]) -> Result<Vec<T>> {
        Ok(data.to_vec())
    }

    fn borrow<T: Element>(buf: &Vec<T>) -> &[T] {
        buf
    }
    fn borrow_mut<T: Element>(buf: &mut Vec<T>) -> &mut [T] {
        buf
    }
    fn reborrow<'a, T: Element>(data: &'a &[T]) -> &'a [T] {
        data
    }
    fn reborrow_mut<'a, T: Element>(data: &'a mut &mut [T]) -> &'a mut [T] {
        data
    }
    fn len<T: Element>(data: &&[T]) -> usize {
        data.len()
    }
    fn len_mut<T: Element>(data: &&mut [T]) -> usize {
        data.len()
    }

    fn channel_norm_workspace(&self, _: ChannelShape) -> WorkspaceLen {
        WorkspaceLen::default()
    }
    fn channel_norm_fwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormForward<'_, T, Self>,
    ) -> Result<()> {
        T::channel_norm_fwd(shape, args);
        Ok(())
    }
    fn channel_norm_bwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormBackward<'_, T, Self>,
    ) -> Result<()> {
        T::channel_norm_bwd(shape, args);
        Ok(())
    }
    fn row_norm_workspace(&self, _: RowShape) -> WorkspaceLen {
        WorkspaceLen::default()
    }
    fn row_norm_fwd<T: Element>(&self, shape: RowShape, args: RowNormForward<'_, T, Self>) -> Result<()> {
        T::row_norm_fwd(shape, args);
        Ok(())
    }
    fn row_norm_bwd<T: Element>(&self, shape: RowShape, args: RowNormBackward<'_, T, Self>) -> Result<()> {
        T::row_norm_bwd(shape, args);
        Ok(())
    }
}

/// Weights and biases in `f64`, ones and zeros where there are none.
struct AffineValues {
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl AffineValues {
    fn of<T: Element>(affine: &Affine<'_, T, Cpu>, len: usize) -> Self {
        fn widen<P: Element>(values: Option<&[P]>, len: usize, missing: f64) -> Vec<f64> {
            values.map_or_else(|| vec![missing; len], |v| v.iter().map(|&v| f64::from(v.to_f32())).collect())
        }
        match affine {
            Affine::None => Self { weight: vec![1.0; len], bias: vec![0.0; len] },
            Affine::Same { weight, bias } => {
                Self { weight: widen(*weight, len, 1.0), bias: widen(*bias, len, 0.0) }
            }
            Affine::F32 { weight, bias } => {
                Self { weight: widen(*weight, len, 1.0), bias: widen(*bias, len, 0.0) }
            }
        }
    }
}

fn wide<T: Element>(v: T) -> f64 {
    f64::from(v.to_f32())
}

/// Rounds `values` into `out`, where it is wanted.
fn store<P: Element>(out: Option<&mut [P]>, values: &[f64]) {
    if let Some(out) = out {
        for (out, &v) in out.iter_mut().zip(values) {
            *out = P::from_f64(v);
        }
    }
}

/// Rounds gradients of weight and bias to where they are wanted, or adds them to what is there.
fn store_grads<T: Element>(grads: AffineGrad<'_, T, Cpu>, dweight: &[f64], dbias: &[f64], accumulate: bool) {
    fn put<P: Element>(out: Option<&mut [P]>, values: &[f64], accumulate: bool) {
        for (out, &v) in out.into_iter().flatten().zip(values) {
            *out = P::from_f64(if accumulate { wide(*out) + v } else { v });
        }
    }
    match grads {
        AffineGrad::None => {}
        AffineGrad::Same { dweight: w, dbias: b } => {
            put(w, dweight, accumulate);
            put(b, dbias, accumulate);
        }
        AffineGrad::F32 { dweight: w, dbias: b } => {
            put(w, dweight, accumulate);
            put(b, dbias, accumulate);
        }
    }
}
