use core::fmt;

use crate::{Backend, Element, Error, Layout, Result, error::check_len, shape::Dims};

/// An owned tensor: elements of type `T` on backend `B`, their dimensions and their [`Layout`].
///
/// Dimensions are given as they lie in memory, slowest first.
pub struct Tensor<T: Element, B: Backend> {
    buf: B::Buf<T>,
    dims: Dims,
}

impl<T: Element, B: Backend> Tensor<T, B> {
    /// Copies `data` to the backend as a tensor of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// [`Error::Length`](crate::Error::Length) where `data` does not fill the dimensions,
    /// [`Error::TooLarge`](crate::Error::TooLarge) where they cannot be counted, and what the backend says.
    pub fn from_slice(on: &B, data: &[T], dims: &[usize]) -> Result<Self> {
        let dims = Dims::new("data", dims)?;
        check_len("data", dims.len(), data.len())?;
        Ok(Self { buf: on.upload(data)?, dims })
    }

    /// A tensor of zeros of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// As [`from_slice`](Self::from_slice).
    pub fn zeros(on: &B, dims: &[usize]) -> Result<Self> {
        let dims = Dims::new("dims", dims)?;
        Ok(Self { buf: on.zeros(dims.len())?, dims })
    }

    pub(crate) fn zeros_like<U: Element>(on: &B, other: &Tensor<U, B>) -> Result<Self> {
        Ok(Self { buf: on.zeros(other.len())?, dims: other.dims })
    }

    /// Says that the last dimension holds the channels. Moves no element.
    #[must_use]
    pub fn channels_last(mut self) -> Self {
        self.dims.layout = Layout::ChannelsLast;
        self
    }

    /// The dimensions, as they lie in memory.
    pub fn dims(&self) -> &[usize] {
        self.dims.as_slice()
    }

    /// Where the channels lie.
    pub fn layout(&self) -> Layout {
        self.dims.layout
    }

    /// Elements in all.
    pub fn len(&self) -> usize {
        self.dims.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Borrows the tensor.
    pub fn view(&self) -> View<'_, T, B> {
        View { data: B::borrow(&self.buf), dims: self.dims }
    }

    /// Borrows the tensor exclusively.
    pub fn view_mut(&mut self) -> ViewMut<'_, T, B> {
        ViewMut { data: B::borrow_mut(&mut self.buf), dims: self.dims }
    }

    /// Borrows the bare elements.
    pub fn data(&self) -> B::Ref<'_, T> {
        B::borrow(&self.buf)
    }

    /// Borrows the bare elements exclusively.
    pub fn data_mut(&mut self) -> B::Mut<'_, T> {
        B::borrow_mut(&mut self.buf)
    }

    /// Copies the elements to the host, after waiting for the work enqueued before.
    ///
    /// # Errors
    ///
    /// What the backend says of that work or the copy.
    pub fn to_vec(&self, on: &B) -> Result<Vec<T>> {
        on.download(&self.data())
    }
}

impl<T: Element, B: Backend> fmt::Debug for Tensor<T, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor<{:?}>({:?})", T::DTYPE, self.dims)
    }
}

/// A tensor borrowed from its owner, or made over memory the user already has.
pub struct View<'a, T: Element, B: Backend> {
    pub(crate) data: B::Ref<'a, T>,
    pub(crate) dims: Dims,
}

impl<'a, T: Element, B: Backend> View<'a, T, B> {
    /// Sees `data` as a tensor of the given dimensions, channels first.
    ///
    /// The backends' own `view` methods do the same with fewer types to spell out.
    ///
    /// # Errors
    ///
    /// [`Error::Length`](crate::Error::Length) where `data` does not fill the dimensions,
    /// [`Error::TooLarge`](crate::Error::TooLarge) where they cannot be counted.
    pub fn new(data: B::Ref<'a, T>, dims: &[usize]) -> Result<Self> {
        let dims = Dims::new("dims", dims)?;
        check_len("data", dims.len(), B::len(&data))?;
        Ok(Self { data, dims })
    }

    /// Sees part of `data` as a tensor whose entries of the first dimension start `stride` elements apart, each of them
    /// dense, as the queries in a packed projection of queries, keys and values do. What lies between is not read.
    ///
    /// The row norms take such views; the tensors of one call may have different strides. The channel norms refuse them
    /// with [`Error::Strided`](crate::Error::Strided).
    ///
    /// # Errors
    ///
    /// [`Error::Length`](crate::Error::Length) where `data` ends before the last entry does,
    /// [`Error::Stride`](crate::Error::Stride) where entries would overlap, and
    /// [`Error::TooLarge`](crate::Error::TooLarge) where they cannot be counted.
    pub fn strided(data: B::Ref<'a, T>, dims: &[usize], stride: usize) -> Result<Self> {
        Ok(Self { dims: strided(dims, stride, B::len(&data))?, data })
    }

    /// Says that the last dimension holds the channels.
    #[must_use]
    pub fn channels_last(mut self) -> Self {
        self.dims.layout = Layout::ChannelsLast;
        self
    }

    /// The dimensions, as they lie in memory.
    pub fn dims(&self) -> &[usize] {
        self.dims.as_slice()
    }

    /// The same view for a shorter time.
    pub fn reborrow(&self) -> View<'_, T, B> {
        View { data: B::reborrow(&self.data), dims: self.dims }
    }
}

/// A tensor borrowed exclusively.
pub struct ViewMut<'a, T: Element, B: Backend> {
    pub(crate) data: B::Mut<'a, T>,
    pub(crate) dims: Dims,
}

impl<'a, T: Element, B: Backend> ViewMut<'a, T, B> {
    /// Sees `data` as a tensor of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn new(data: B::Mut<'a, T>, dims: &[usize]) -> Result<Self> {
        let dims = Dims::new("dims", dims)?;
        check_len("data", dims.len(), B::len_mut(&data))?;
        Ok(Self { data, dims })
    }

    /// As [`View::strided`]; what lies between the entries is not touched.
    ///
    /// Query and key norms of an attention with two query heads, one key head and one value head, in place on the
    /// packed projection `[tokens, 4 * head_dim]`:
    ///
    /// ```
    /// use warpnorm::{Affine, Cpu, RmsNorm, RmsNormInPlace, ViewMut};
    ///
    /// const HEAD_DIM: usize = 2;
    /// //                     query heads           key       value
    /// let mut packed = vec![3.0_f32, -3.0, 2.0, 2.0, 5.0, 5.0, 8.0, 9.0];
    /// packed.extend([4.0, 4.0, -1.0, 1.0, 6.0, -6.0, 8.0, 9.0]); // the second token
    /// let row = 4 * HEAD_DIM;
    ///
    /// let norm = RmsNorm::new(HEAD_DIM).eps(0.0);
    /// for (first, heads) in [(0, 2), (2 * HEAD_DIM, 1)] {
    ///     let args = RmsNormInPlace {
    ///         x: ViewMut::strided(&mut packed[first..], &[2, heads, HEAD_DIM], row)?, // [tokens, heads, head_dim]
    ///         residual: None,
    ///         affine: Affine::None,
    ///         rstd: None,
    ///     };
    ///     norm.forward_in_place_into(&Cpu, args)?;
    /// }
    /// assert_eq!(packed[..row], [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 8.0, 9.0]);
    /// assert_eq!(packed[row..], [1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 8.0, 9.0]);
    /// # Ok::<(), warpnorm::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Length`](crate::Error::Length) where `data` ends before the last entry does,
    /// [`Error::Stride`](crate::Error::Stride) where entries would overlap, and
    /// [`Error::TooLarge`](crate::Error::TooLarge) where they cannot be counted.
    pub fn strided(data: B::Mut<'a, T>, dims: &[usize], stride: usize) -> Result<Self> {
        Ok(Self { dims: strided(dims, stride, B::len_mut(&data))?, data })
    }

    /// Says that the last dimension holds the channels.
    #[must_use]
    pub fn channels_last(mut self) -> Self {
        self.dims.layout = Layout::ChannelsLast;
        self
    }

    /// The dimensions, as they lie in memory.
    pub fn dims(&self) -> &[usize] {
        self.dims.as_slice()
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T, B> {
        ViewMut { data: B::reborrow_mut(&mut self.data), dims: self.dims }
    }
}

/// The dimensions of a strided view of so many elements.
fn strided(dims: &[usize], stride: usize, actual: usize) -> Result<Dims> {
    let dims = Dims::strided("dims", dims, stride)?;
    let expected = dims.extent();
    if actual < expected {
        return Err(Error::Length { arg: "data", expected, actual });
    }
    Ok(dims)
}
