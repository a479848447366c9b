//! Runs a problem on a backend, through the methods that write into the caller's buffers.

// The example `verify` takes this file in by its path, from which these would be looked for beside it.
#[path = "run/channel_norms.rs"]
mod channel_norms;
#[path = "run/row_norms.rs"]
mod row_norms;

use core::{marker::PhantomData, ops::Range};

use warpnorm::{
    Affine, AffineGrad, Backend, BatchNorm, Cpu, Cuda, DType, Element, GroupNorm, InstanceNorm, LayerNorm,
    Layout, Result, RmsNorm, View, ViewMut,
};

use super::{
    judge::Types,
    problem::{Op, Problem, Values},
};

/// A backend whose memory can be borrowed in part, so that tensors may start at any element.
pub(crate) trait Sliced: Backend {
    /// Memory that a caller of the crate owns.
    type Held<T: Element>;

    fn hold<T: Element>(&self, data: &[T]) -> Result<Self::Held<T>>;
    fn slice<T: Element>(held: &Self::Held<T>, range: Range<usize>) -> Self::Ref<'_, T>;
    fn slice_mut<T: Element>(held: &mut Self::Held<T>, range: Range<usize>) -> Self::Mut<'_, T>;
}

impl Sliced for Cpu {
    type Held<T: Element> = Vec<T>;

    fn hold<T: Element>(&self, data: &[T]) -> Result<Vec<T>> {
        Ok(data.to_vec())
    }
    fn slice<T: Element>(held: &Vec<T>, range: Range<usize>) -> &[T] {
        &held[range]
    }
    fn slice_mut<T: Element>(held: &mut Vec<T>, range: Range<usize>) -> &mut [T] {
        &mut held[range]
    }
}

#[cfg(feature = "emulator")]
impl Sliced for warpnorm::Emulated {
    type Held<T: Element> = warpnorm::EmulatedBuf<T>;

    fn hold<T: Element>(&self, data: &[T]) -> Result<Self::Held<T>> {
        self.upload(data)
    }
    fn slice<T: Element>(held: &Self::Held<T>, range: Range<usize>) -> Self::Ref<'_, T> {
        Self::borrow(held).slice(range)
    }
    fn slice_mut<T: Element>(held: &mut Self::Held<T>, range: Range<usize>) -> Self::Mut<'_, T> {
        Self::borrow_mut(held).slice(range)
    }
}

#[cfg(feature = "cuda")]
impl Sliced for Cuda {
    type Held<T: Element> = warpnorm::cudarc::driver::CudaSlice<T>;

    fn hold<T: Element>(&self, data: &[T]) -> Result<Self::Held<T>> {
        self.stream().clone_htod(data).map_err(|error| warpnorm::Error::Driver {
            call: "copying to the device",
            message: error.to_string(),
        })
    }
    fn slice<T: Element>(held: &Self::Held<T>, range: Range<usize>) -> Self::Ref<'_, T> {
        held.slice(range).into()
    }
    fn slice_mut<T: Element>(held: &mut Self::Held<T>, range: Range<usize>) -> Self::Mut<'_, T> {
        held.slice_mut(range).into()
    }
}

/// Without the feature there is no value of the type, and nothing here is ever called.
#[cfg(not(feature = "cuda"))]
impl Sliced for Cuda {
    type Held<T: Element> = Self::Buf<T>;

    fn hold<T: Element>(&self, data: &[T]) -> Result<Self::Held<T>> {
        self.upload(data)
    }
    fn slice<T: Element>(held: &Self::Held<T>, _: Range<usize>) -> Self::Ref<'_, T> {
        Self::borrow(held)
    }
    fn slice_mut<T: Element>(held: &mut Self::Held<T>, _: Range<usize>) -> Self::Mut<'_, T> {
        Self::borrow_mut(held)
    }
}

/// The type that weight and bias, or their gradients, are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Params {
    #[default]
    F32,
    /// The tensor's own.
    Same,
}

impl Params {
    pub(crate) fn dtype(self, data: DType) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Same => data,
        }
    }
}

/// The choices of a run that do not change what is computed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) params: Params,
    pub(crate) grads: Params,
    /// Tensors start 0 to `max_start` elements into their buffers, each elsewhere.
    pub(crate) max_start: usize,
    /// Elements between the entries of a row norm's first dimension, up to three more from tensor to tensor.
    pub(crate) gap: usize,
    /// Forward by the methods that write the output over the input.
    pub(crate) in_place: bool,
    /// The momentum is handed over on the device.
    pub(crate) device_momentum: bool,
    /// Outputs that are not asked for. Without the saved statistics there is no backward pass.
    pub(crate) without: &'static [&'static str],
}

impl Options {
    pub(crate) fn types(&self, data: DType) -> Types {
        Types { data, affine: self.params.dtype(data), grads: self.grads.dtype(data) }
    }

    pub(crate) fn wants(&self, output: &str) -> bool {
        !self.without.contains(&output)
    }
}

/// What lies around the elements of a [`Placed`].
const GUARD: f64 = 77.0;
/// What outputs hold before they are written.
const UNWRITTEN: f64 = -55.0;

/// Elements inside a larger buffer, between guards.
pub(crate) struct Placed<T: Element, B: Sliced> {
    held: B::Held<T>,
    /// Elements and guards.
    len: usize,
    range: Range<usize>,
    /// So many elements lie side by side, before a gap.
    row: usize,
    gap: usize,
}

impl<T: Element, B: Sliced> Placed<T, B> {
    pub(crate) fn new(on: &B, values: &[f64], start: usize) -> Result<Self> {
        Self::with_gaps(on, values, values.len(), 0, start)
    }

    /// Guards lie between the rows, too.
    pub(crate) fn with_gaps(on: &B, values: &[f64], row: usize, gap: usize, start: usize) -> Result<Self> {
        let guards = |n: usize| vec![T::from_f64(GUARD); n];
        let mut all = guards(start);
        for (i, row) in values.chunks(row.max(1)).enumerate() {
            all.extend(guards(if i == 0 { 0 } else { gap }));
            all.extend(row.iter().map(|&v| T::from_f64(v)));
        }
        let range = start..all.len();
        all.extend(guards(16));
        Ok(Self { held: on.hold(&all)?, len: all.len(), range, row, gap })
    }

    pub(crate) fn room(on: &B, len: usize, start: usize) -> Result<Self> {
        Self::new(on, &vec![UNWRITTEN; len], start)
    }

    pub(crate) fn data(&self) -> B::Ref<'_, T> {
        B::slice(&self.held, self.range.clone())
    }

    pub(crate) fn data_mut(&mut self) -> B::Mut<'_, T> {
        B::slice_mut(&mut self.held, self.range.clone())
    }

    pub(crate) fn view(&self, dims: &[usize], layout: Layout) -> Result<View<'_, T, B>> {
        let view = match self.gap {
            0 => View::new(self.data(), dims)?,
            gap => View::strided(self.data(), dims, self.row + gap)?,
        };
        Ok(if layout == Layout::ChannelsLast { view.channels_last() } else { view })
    }

    pub(crate) fn view_mut(&mut self, dims: &[usize], layout: Layout) -> Result<ViewMut<'_, T, B>> {
        let (row, gap) = (self.row, self.gap);
        let view = match gap {
            0 => ViewMut::new(self.data_mut(), dims)?,
            gap => ViewMut::strided(self.data_mut(), dims, row + gap)?,
        };
        Ok(if layout == Layout::ChannelsLast { view.channels_last() } else { view })
    }

    /// Whether the elements are those of [`room`](Self::room). Panics where the guards were written to.
    pub(crate) fn is_unwritten(&self, on: &B) -> bool {
        self.read(on).expect("the backend reads back").iter().all(|&v| v == UNWRITTEN)
    }

    /// The elements. Panics where the guards were written to.
    pub(crate) fn read(&self, on: &B) -> Result<Vec<f64>> {
        let all = on.download(&B::slice(&self.held, 0..self.len))?;
        let is_element = |i: usize| {
            self.range.contains(&i)
                && (self.gap == 0 || (i - self.range.start) % (self.row + self.gap) < self.row)
        };
        for (i, v) in all.iter().enumerate().filter(|(i, _)| !is_element(*i)) {
            assert_eq!(v.to_f32(), GUARD as f32, "wrote to element {i}, a guard of {:?}", self.range);
        }
        let elements = all.iter().enumerate().filter(|(i, _)| is_element(*i));
        Ok(elements.map(|(_, v)| f64::from(v.to_f32())).collect())
    }
}

/// Weight and bias, or their gradients, in the type the run asks for.
struct Pair<T: Element, B: Sliced> {
    params: Params,
    same: [Option<Placed<T, B>>; 2],
    f32: [Option<Placed<f32, B>>; 2],
}

impl<T: Element, B: Sliced> Pair<T, B> {
    fn new(on: &B, params: Params, values: [Option<&[f64]>; 2], starts: &mut Starts) -> Result<Self> {
        let mut pair = Self { params, same: [None, None], f32: [None, None] };
        for (i, values) in values.into_iter().enumerate() {
            let Some(values) = values else { continue };
            match params {
                Params::F32 => pair.f32[i] = Some(Placed::new(on, values, starts.next())?),
                Params::Same => pair.same[i] = Some(Placed::new(on, values, starts.next())?),
            }
        }
        Ok(pair)
    }

    fn affine(&self) -> Affine<'_, T, B> {
        let (same, f32) = (self.same.each_ref().map(Option::as_ref), self.f32.each_ref().map(Option::as_ref));
        match (self.params, f32) {
            (Params::F32, [None, None]) => Affine::None,
            (Params::F32, [weight, bias]) => {
                Affine::F32 { weight: weight.map(Placed::data), bias: bias.map(Placed::data) }
            }
            (Params::Same, _) => {
                let [weight, bias] = same;
                Affine::Same { weight: weight.map(Placed::data), bias: bias.map(Placed::data) }
            }
        }
    }

    fn grads(&mut self) -> AffineGrad<'_, T, B> {
        let (same, f32) = (self.same.each_mut().map(Option::as_mut), self.f32.each_mut().map(Option::as_mut));
        match (self.params, f32) {
            (Params::F32, [None, None]) => AffineGrad::None,
            (Params::F32, [dweight, dbias]) => {
                AffineGrad::F32 { dweight: dweight.map(Placed::data_mut), dbias: dbias.map(Placed::data_mut) }
            }
            (Params::Same, _) => {
                let [dweight, dbias] = same;
                AffineGrad::Same {
                    dweight: dweight.map(Placed::data_mut),
                    dbias: dbias.map(Placed::data_mut),
                }
            }
        }
    }

    fn read(&self, on: &B) -> Result<[Option<Vec<f64>>; 2]> {
        let mut values = [None, None];
        for (i, value) in values.iter_mut().enumerate() {
            let same = self.same[i].as_ref().map(|v| v.read(on)).transpose()?;
            let f32 = self.f32[i].as_ref().map(|v| v.read(on)).transpose()?;
            *value = same.or(f32);
        }
        Ok(values)
    }
}

/// Where the next tensor starts in its buffer.
struct Starts {
    next: usize,
    max: usize,
}

impl Starts {
    fn next(&mut self) -> usize {
        // A stride that shares no factor with the vector widths, so that neighbors are aligned differently.
        self.next = (self.next + 3) % (self.max + 1);
        self.next
    }
}

/// Every tensor that the crate computes for the problem, read back from the backend.
pub(crate) fn run<T: Element, B: Sliced>(on: &B, problem: &Problem, options: &Options) -> Result<Values> {
    let starts = Starts { next: options.max_start, max: options.max_start };
    let (channels, eps, activation) = (|| problem.channels(), problem.eps, problem.activation);
    // Where the device has another, the op's own momentum must not be used.
    let momentum = if options.device_momentum { Some(0.77) } else { problem.momentum };
    let mut run = Run::<T, B> { on, problem, options, starts, element: PhantomData };
    match problem.op {
        Op::BatchNormTrain => run.channel_norm(&batch_norm(problem).momentum(momentum)),
        Op::BatchNormEval => run.fixed_norm(&batch_norm(problem)),
        Op::GroupNorm => {
            run.channel_norm(&GroupNorm::new(problem.groups, channels()).eps(eps).activation(activation))
        }
        Op::InstanceNorm => run.channel_norm(&instance_norm(problem).momentum(momentum)),
        Op::InstanceNormEval => run.fixed_norm(&instance_norm(problem)),
        Op::LayerNorm => run.row_norm(&LayerNorm::new(problem.cols()).eps(eps)),
        Op::RmsNorm => {
            run.row_norm(&RmsNorm::new(problem.cols()).eps(eps).weight_offset(problem.weight_offset))
        }
    }
}

fn batch_norm(problem: &Problem) -> BatchNorm {
    BatchNorm::new(problem.channels())
        .eps(problem.eps)
        .statistics(problem.statistics)
        .virtual_batch(problem.virtual_batch)
        .activation(problem.activation)
}

fn instance_norm(problem: &Problem) -> InstanceNorm {
    InstanceNorm::new(problem.channels()).eps(problem.eps).activation(problem.activation)
}

/// A problem being run: the families go on from here.
struct Run<'a, T: Element, B: Sliced> {
    on: &'a B,
    problem: &'a Problem,
    options: &'a Options,
    starts: Starts,
    element: PhantomData<T>,
}

impl<T: Element, B: Sliced> Run<'_, T, B> {
    /// A tensor shaped like `x`.
    fn tensor(&mut self, values: &[f64]) -> Result<Placed<T, B>> {
        let row = self.problem.dims[1..].iter().product();
        let start = self.starts.next();
        // Tensors have gaps of their own, except that one of a single row, or of none, has none.
        let gap = if self.options.gap == 0 || row == 0 { 0 } else { self.options.gap + start % 4 };
        Placed::with_gaps(self.on, values, row, gap, start)
    }

    fn tensor_if(&mut self, values: Option<&Vec<f64>>) -> Result<Option<Placed<T, B>>> {
        values.map(|values| self.tensor(values)).transpose()
    }

    /// Room for an output shaped like `x`.
    fn room(&mut self) -> Result<Placed<T, B>> {
        self.tensor(&vec![UNWRITTEN; self.problem.dims.iter().product()])
    }

    fn vector(&mut self, values: &[f64]) -> Result<Placed<f32, B>> {
        Placed::new(self.on, values, self.starts.next())
    }

    fn affine(&mut self) -> Result<Pair<T, B>> {
        let Problem { weight, bias, .. } = self.problem;
        Pair::new(self.on, self.options.params, [weight.as_deref(), bias.as_deref()], &mut self.starts)
    }

    /// Room for the gradients of what weight and bias there are, as far as wanted, or what they are added to.
    fn grads(&mut self) -> Result<Pair<T, B>> {
        let Problem { weight, bias, old_grads, .. } = self.problem;
        let room = vec![UNWRITTEN; self.problem.params()];
        let old = |which: usize| old_grads.as_ref().map_or(&room[..], |old| &old[which]);
        let values = [
            (weight.is_some() && self.options.wants("dgamma")).then(|| old(0)),
            (bias.is_some() && self.options.wants("dbeta")).then(|| old(1)),
        ];
        Pair::new(self.on, self.options.grads, values, &mut self.starts)
    }

    /// Adds the outputs that are there to `values`.
    fn insert(
        &self,
        values: &mut Values,
        tensors: &[(&'static str, Option<&Placed<T, B>>)],
        grads: &Pair<T, B>,
    ) -> Result<()> {
        for &(name, tensor) in tensors {
            if let Some(tensor) = tensor {
                values.insert(name, tensor.read(self.on)?);
            }
        }
        let [dweight, dbias] = grads.read(self.on)?;
        values.extend(dweight.map(|v| ("dgamma", v)));
        values.extend(dbias.map(|v| ("dbeta", v)));
        Ok(())
    }
}
