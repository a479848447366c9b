/// Shorthand for results of this crate.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Why a call was refused or failed.
///
/// A refused call has written nothing: not to outputs, not to gradients, not to running statistics. Only
/// [`Error::Launch`] may come later, from the second launch of several.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer's length disagrees with the shape.
    #[error("`{arg}` has {actual} elements, the shape needs {expected}")]
    Length {
        /// The argument.
        arg: &'static str,
        /// Elements the shape asks for.
        expected: usize,
        /// Elements the buffer has.
        actual: usize,
    },
    /// Two tensors of one call have different dimensions or layouts.
    #[error("`{arg}` is {actual}, it must be {expected} like `x`")]
    ShapeMismatch {
        /// The argument.
        arg: &'static str,
        /// Dimensions and layout of `x`.
        expected: String,
        /// Dimensions and layout given.
        actual: String,
    },
    /// A tensor has too few or too many dimensions for the op.
    #[error("`{arg}` has {actual} dimensions, {op} takes {expected}")]
    Rank {
        /// The argument.
        arg: &'static str,
        /// The op.
        op: &'static str,
        /// What the op takes.
        expected: &'static str,
        /// What came.
        actual: usize,
    },
    /// The channel dimension of a tensor is not the op's number of channels.
    #[error("`{arg}` has {actual} channels, this {op} has {expected}")]
    Channels {
        /// The argument.
        arg: &'static str,
        /// The op.
        op: &'static str,
        /// The op's channels.
        expected: usize,
        /// The tensor's channels.
        actual: usize,
    },
    /// The trailing dimensions of a tensor are not what the op normalizes over.
    #[error(
        "the trailing dimensions of `{arg}` are {actual:?}, this {op} normalizes over {expected} elements"
    )]
    NormalizedShape {
        /// The argument.
        arg: &'static str,
        /// The op.
        op: &'static str,
        /// Elements the op normalizes over.
        expected: usize,
        /// The tensor's dimensions.
        actual: Vec<usize>,
    },
    /// The first dimension is not the number of time steps that the statistics are for.
    #[error("`{arg}` has {actual} time steps, this BatchNorm has {expected}")]
    TimeSteps {
        /// The argument.
        arg: &'static str,
        /// The op's time steps.
        expected: usize,
        /// The tensor's.
        actual: usize,
    },
    /// The samples cannot be cut into chunks of the size asked for.
    #[error("`{arg}` has {samples} samples, which are no multiple of the virtual batch of {chunk}")]
    VirtualBatch {
        /// The argument.
        arg: &'static str,
        /// Samples of the tensor.
        samples: usize,
        /// Samples of a chunk.
        chunk: usize,
    },
    /// Channels that cannot be cut into so many groups.
    #[error("{channels} channels cannot be cut into {groups} groups")]
    Groups {
        /// The groups asked for.
        groups: usize,
        /// The channels.
        channels: usize,
    },
    /// A strided view, which the op does not take.
    #[error("`{arg}` has gaps between the entries of its first dimension, {op} takes dense tensors here")]
    Strided {
        /// The argument.
        arg: &'static str,
        /// The op.
        op: &'static str,
    },
    /// A stride that would make rows overlap.
    #[error(
        "`{arg}` has a stride of {stride}, less than the {row} elements of an entry of its first dimension"
    )]
    Stride {
        /// The argument.
        arg: &'static str,
        /// The stride.
        stride: usize,
        /// Elements of an entry.
        row: usize,
    },
    /// Settings that exclude each other.
    #[error("{0}")]
    Unsupported(&'static str),
    /// Training needs a spread: one value has none.
    #[error("`{arg}` holds one value per {per}, training needs more than one")]
    OneValue {
        /// The argument.
        arg: &'static str,
        /// What a statistic is taken over: a channel, a batch, or a channel of a time step, virtual batch or sample.
        per: &'static str,
    },
    /// `eps` must be finite and not negative.
    #[error("`eps` is {0}, it must be finite and not negative")]
    Eps(f32),
    /// `momentum` must be finite.
    #[error("`momentum` is {0}, it must be finite")]
    Momentum(f32),
    /// `weight_offset` must be 0 or 1.
    #[error("`weight_offset` is {0}, it must be 0 or 1")]
    WeightOffset(f32),
    /// A shape whose elements cannot be counted or indexed.
    #[error("`{arg}` of {dims:?} is too large: {limit}")]
    TooLarge {
        /// The argument.
        arg: &'static str,
        /// Its dimensions.
        dims: Vec<usize>,
        /// The limit it passes.
        limit: &'static str,
    },
    /// A tensor with more dimensions than views can describe.
    #[error("`{arg}` has {actual} dimensions, at most {limit} are supported")]
    TooManyDims {
        /// The argument.
        arg: &'static str,
        /// The limit.
        limit: usize,
        /// What came.
        actual: usize,
    },
    /// A workspace made for a smaller problem.
    #[error(
        "`workspace` has {actual} bytes, this call needs {needed}: make it with the op's `workspace` method"
    )]
    Workspace {
        /// Bytes the call needs.
        needed: usize,
        /// Bytes the workspace has.
        actual: usize,
    },
    /// The program was built without the CUDA kernels.
    #[error(
        "warpnorm was built without CUDA kernels: {0}; build again with nvcc on the PATH or CUDA_HOME set, and with \
         the feature `require-cuda` to make its absence a build error"
    )]
    NotCompiled(&'static str),
    /// There is no NVIDIA driver on this machine.
    #[error("no NVIDIA driver: {0}")]
    NoDriver(String),
    /// The driver has no such GPU.
    #[error("no CUDA device {ordinal}: the driver reports {count}")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// Devices there are.
        count: usize,
    },
    /// A GPU that none of the compiled kernels can run on.
    #[error(
        "the GPU has compute capability {actual}, the kernels were built for {built}; build again with \
         WARPNORM_CUDA_ARCHS={actual}"
    )]
    UnsupportedArch {
        /// The device's compute capability, major and minor digits together.
        actual: u32,
        /// The architectures built for.
        built: &'static str,
    },
    /// A buffer of another GPU, or of another `CudaContext` than the op's stream.
    #[error("`{arg}` belongs to another CUDA context than the stream of this call")]
    WrongDevice {
        /// The argument.
        arg: &'static str,
    },
    /// The driver refused an operation on memory, streams or contexts.
    #[error("{call} failed: {message}")]
    Driver {
        /// What was asked of the driver.
        call: &'static str,
        /// Its answer.
        message: String,
    },
    /// A kernel launch failed.
    #[error("{call} failed with cudaError_t {code}{report}")]
    Launch {
        /// The C function that returned it.
        call: &'static str,
        /// The `cudaError_t`.
        code: i32,
        /// The emulator's diagnosis, after a colon; empty on a GPU.
        report: String,
    },
}

/// `Ok` where a buffer has the length the shape needs.
pub(crate) fn check_len(arg: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::Length { arg, expected, actual }) }
}

/// `Ok` where `eps` is what every op takes.
pub(crate) fn check_eps(eps: f32) -> Result<()> {
    if eps >= 0.0 && eps.is_finite() { Ok(()) } else { Err(Error::Eps(eps)) }
}
