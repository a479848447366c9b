use core::fmt;

use crate::{
    Element, Error, Result,
    channel_norm::{ChannelNormBackward, ChannelNormForward},
    row_norm::{RowNormBackward, RowNormForward},
    sealed::Sealed,
    shape::{ChannelShape, RowShape},
};

/// Where an op runs and where its tensors live. Sealed: [`Cpu`](crate::Cpu), [`Cuda`](crate::Cuda) and, for tests,
/// `Emulated`.
///
/// `Ref` and `Mut` borrow elements the backend can reach, `Buf` owns them. A buffer of one backend handed to another is
/// a type error.
pub trait Backend: Sealed + Clone + fmt::Debug + 'static {
    /// Owned elements.
    type Buf<T: Element>;
    /// A shared borrow of elements.
    type Ref<'a, T: Element>: Clone;
    /// An exclusive borrow of elements.
    type Mut<'a, T: Element>;

    /// Allocates `len` zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] or [`Error::Launch`] where the memory cannot be had.
    fn zeros<T: Element>(&self, len: usize) -> Result<Self::Buf<T>>;
    /// Allocates a copy of `data`.
    ///
    /// # Errors
    ///
    /// As [`zeros`](Self::zeros).
    fn upload<T: Element>(&self, data: &[T]) -> Result<Self::Buf<T>>;
    /// Copies elements back to the host, after waiting for the work enqueued before.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] or [`Error::Launch`] where that work or the copy failed.
    fn download<T: Element>(&self, data: &Self::Ref<'_, T>) -> Result<Vec<T>>;

    /// Borrows all of a buffer.
    fn borrow<T: Element>(buf: &Self::Buf<T>) -> Self::Ref<'_, T>;
    /// Borrows all of a buffer exclusively.
    fn borrow_mut<T: Element>(buf: &mut Self::Buf<T>) -> Self::Mut<'_, T>;
    /// The same borrow for a shorter time.
    fn reborrow<'a, T: Element>(data: &'a Self::Ref<'_, T>) -> Self::Ref<'a, T>;
    /// The same exclusive borrow for a shorter time.
    fn reborrow_mut<'a, T: Element>(data: &'a mut Self::Mut<'_, T>) -> Self::Mut<'a, T>;
    /// Elements behind a shared borrow.
    fn len<T: Element>(data: &Self::Ref<'_, T>) -> usize;
    /// Elements behind an exclusive borrow.
    fn len_mut<T: Element>(data: &Self::Mut<'_, T>) -> usize;

    /// What a channel norm needs of a workspace, enough for every direction, type and alignment.
    #[doc(hidden)]
    fn channel_norm_workspace(&self, shape: ChannelShape) -> WorkspaceLen;
    /// The arguments have been checked against `shape`.
    #[doc(hidden)]
    fn channel_norm_fwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormForward<'_, T, Self>,
    ) -> Result<()>;
    /// The arguments have been checked against `shape`, which may be empty but for its channels.
    #[doc(hidden)]
    fn channel_norm_bwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormBackward<'_, T, Self>,
    ) -> Result<()>;
    /// What a row norm needs of a workspace, enough for every type and alignment.
    #[doc(hidden)]
    fn row_norm_workspace(&self, shape: RowShape) -> WorkspaceLen;
    /// The arguments have been checked against `shape`.
    #[doc(hidden)]
    fn row_norm_fwd<T: Element>(&self, shape: RowShape, args: RowNormForward<'_, T, Self>) -> Result<()>;
    /// The arguments have been checked against `shape`, which may be empty but for its columns.
    #[doc(hidden)]
    fn row_norm_bwd<T: Element>(&self, shape: RowShape, args: RowNormBackward<'_, T, Self>) -> Result<()>;
}

/// Scratch memory of an op, made once by the op's `workspace` method and used for many calls. It serves any other op
/// that needs no more.
///
/// It belongs to one stream at a time: two calls that may run at the same time need two. An op leaves its counters
/// zeroed, so a captured graph can be replayed without touching it.
pub struct Workspace<B: Backend> {
    /// Blocks that have handed in their part, apart from everything else because they must stay zero between calls.
    counters: B::Buf<f32>,
    words: B::Buf<f32>,
    len: WorkspaceLen,
}

impl<B: Backend> Workspace<B> {
    pub(crate) fn new(on: &B, len: WorkspaceLen) -> Result<Self> {
        Ok(Self { counters: on.zeros(len.counters)?, words: on.zeros(len.words)?, len })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.len.bytes()
    }

    pub(crate) fn check(&self, needed: WorkspaceLen) -> Result<()> {
        let enough = self.len.max(needed);
        if enough == self.len {
            return Ok(());
        }
        // A workspace of another kind of op may have more counters than are needed, and too few words.
        let needed = if needed.bytes() > self.bytes() { needed } else { enough };
        Err(Error::Workspace { needed: needed.bytes(), actual: self.bytes() })
    }

    pub(crate) fn borrow_mut(&mut self) -> WorkspaceMut<'_, B> {
        WorkspaceMut { counters: B::borrow_mut(&mut self.counters), words: B::borrow_mut(&mut self.words) }
    }
}

impl<B: Backend> fmt::Debug for Workspace<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workspace({} bytes)", self.bytes())
    }
}

/// A workspace borrowed for one call.
#[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))] // the CPU needs none
pub(crate) struct WorkspaceMut<'a, B: Backend> {
    pub(crate) counters: B::Mut<'a, f32>,
    pub(crate) words: B::Mut<'a, f32>,
}

/// The size of a workspace, in words of 4 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceLen {
    /// Counters of blocks.
    pub(crate) counters: usize,
    /// Everything else.
    pub(crate) words: usize,
}

impl WorkspaceLen {
    /// What is enough for both.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { counters: self.counters.max(other.counters), words: self.words.max(other.words) }
    }

    fn bytes(self) -> usize {
        (self.counters + self.words) * size_of::<f32>()
    }
}
