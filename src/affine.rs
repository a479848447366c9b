use crate::{Backend, Element, Error, Result, Tensor, error::check_len};

/// The scale and shift after normalization, `y = x_hat * weight + bias`, and the type they are stored in.
///
/// `weight` is also called gamma, `bias` beta. A missing weight means ones, a missing bias zeros. Both have the same
/// type: the tensor's own, or `f32` beside 16-bit tensors.
pub enum Affine<'a, T: Element, B: Backend> {
    /// No scale, no shift.
    None,
    /// Parameters in the tensor's own type.
    Same {
        /// The scale.
        weight: Option<B::Ref<'a, T>>,
        /// The shift.
        bias: Option<B::Ref<'a, T>>,
    },
    /// Parameters in `f32`.
    F32 {
        /// The scale.
        weight: Option<B::Ref<'a, f32>>,
        /// The shift.
        bias: Option<B::Ref<'a, f32>>,
    },
}

impl<'a, T: Element, B: Backend> Affine<'a, T, B> {
    /// Both parameters, in the tensor's own type.
    pub fn same(weight: &'a Tensor<T, B>, bias: &'a Tensor<T, B>) -> Self {
        Self::Same { weight: Some(weight.data()), bias: Some(bias.data()) }
    }

    /// Both parameters, in `f32`.
    pub fn f32(weight: &'a Tensor<f32, B>, bias: &'a Tensor<f32, B>) -> Self {
        Self::F32 { weight: Some(weight.data()), bias: Some(bias.data()) }
    }

    /// The same parameters for a shorter time.
    pub fn reborrow(&self) -> Affine<'_, T, B> {
        match self {
            Self::None => Affine::None,
            Self::Same { weight, bias } => Affine::Same {
                weight: weight.as_ref().map(B::reborrow),
                bias: bias.as_ref().map(B::reborrow),
            },
            Self::F32 { weight, bias } => {
                Affine::F32 { weight: weight.as_ref().map(B::reborrow), bias: bias.as_ref().map(B::reborrow) }
            }
        }
    }

    /// Lengths of weight and bias, where there are any.
    pub(crate) fn lens(&self) -> (Option<usize>, Option<usize>) {
        match self {
            Self::None => (None, None),
            Self::Same { weight, bias } => (weight.as_ref().map(B::len), bias.as_ref().map(B::len)),
            Self::F32 { weight, bias } => (weight.as_ref().map(B::len), bias.as_ref().map(B::len)),
        }
    }

    /// Weight and bias on the host, where there are any.
    pub(crate) fn download(&self, on: &B) -> Result<[Option<Vec<f64>>; 2]> {
        fn wide<P: Element, B: Backend>(on: &B, values: Option<&B::Ref<'_, P>>) -> Result<Option<Vec<f64>>> {
            let values = values.map(|values| on.download(values)).transpose()?;
            Ok(values.map(|v| v.iter().map(|v| f64::from(v.to_f32())).collect()))
        }
        Ok(match self {
            Self::None => [None, None],
            Self::Same { weight, bias } => [wide(on, weight.as_ref())?, wide(on, bias.as_ref())?],
            Self::F32 { weight, bias } => [wide(on, weight.as_ref())?, wide(on, bias.as_ref())?],
        })
    }

    /// [`Error::Length`] unless each parameter there is has `len` elements.
    pub(crate) fn check(&self, len: usize) -> Result<()> {
        let (weight, bias) = self.lens();
        weight.map_or(Ok(()), |n| check_len("weight", len, n))?;
        bias.map_or(Ok(()), |n| check_len("bias", len, n))
    }
}

/// Where the gradients of weight and bias go, and the type they are stored in. Each may be left out.
///
/// `f32` keeps sums of many terms as exact as they are computed, and is advised where they are accumulated.
pub enum AffineGrad<'a, T: Element, B: Backend> {
    /// Not wanted.
    None,
    /// In the tensor's own type.
    Same {
        /// Gradient of the scale.
        dweight: Option<B::Mut<'a, T>>,
        /// Gradient of the shift.
        dbias: Option<B::Mut<'a, T>>,
    },
    /// In `f32`.
    F32 {
        /// Gradient of the scale.
        dweight: Option<B::Mut<'a, f32>>,
        /// Gradient of the shift.
        dbias: Option<B::Mut<'a, f32>>,
    },
}

impl<T: Element, B: Backend> AffineGrad<'_, T, B> {
    /// The same borrow for a shorter time.
    pub fn reborrow(&mut self) -> AffineGrad<'_, T, B> {
        match self {
            Self::None => AffineGrad::None,
            Self::Same { dweight, dbias } => AffineGrad::Same {
                dweight: dweight.as_mut().map(B::reborrow_mut),
                dbias: dbias.as_mut().map(B::reborrow_mut),
            },
            Self::F32 { dweight, dbias } => AffineGrad::F32 {
                dweight: dweight.as_mut().map(B::reborrow_mut),
                dbias: dbias.as_mut().map(B::reborrow_mut),
            },
        }
    }

    /// Whether neither gradient is wanted.
    pub fn is_none(&self) -> bool {
        matches!(
            self,
            Self::None | Self::Same { dweight: None, dbias: None } | Self::F32 { dweight: None, dbias: None }
        )
    }

    /// [`Error::Length`] unless each gradient wanted has room for `len` elements.
    pub(crate) fn check(&self, len: usize) -> Result<(), Error> {
        let (dweight, dbias) = match self {
            Self::None => (None, None),
            Self::Same { dweight, dbias } => {
                (dweight.as_ref().map(B::len_mut), dbias.as_ref().map(B::len_mut))
            }
            Self::F32 { dweight, dbias } => {
                (dweight.as_ref().map(B::len_mut), dbias.as_ref().map(B::len_mut))
            }
        };
        dweight.map_or(Ok(()), |n| check_len("dweight", len, n))?;
        dbias.map_or(Ok(()), |n| check_len("dbias", len, n))
    }
}
