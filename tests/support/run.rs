//! Runs a problem on a backend, through the methods that write into the caller's buffers.

use core::ops::Range;

use warpnorm::{
    Affine, AffineGrad, Backend, BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval,
    BatchNormTrain, Cpu, Cuda, DType, Element, LayerNorm, LayerNormForward, Layout, Result, RunningStatsMut,
    View, ViewMut,
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
    /// Outputs that are not asked for. Without the saved statistics there is no backward pass.
    pub(crate) without: &'static [&'static str],
}

impl Options {
    pub(crate) fn types(&self, data: DType) -> Types {
        Types { data, affine: self.params.dtype(data), grads: self.grads.dtype(data) }
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
}

impl<T: Element, B: Sliced> Placed<T, B> {
    pub(crate) fn new(on: &B, values: &[f64], start: usize) -> Result<Self> {
        let mut all = vec![T::from_f64(GUARD); start];
        all.extend(values.iter().map(|&v| T::from_f64(v)));
        all.extend([T::from_f64(GUARD); 16]);
        Ok(Self { held: on.hold(&all)?, len: all.len(), range: start..start + values.len() })
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
        let view = View::new(self.data(), dims)?;
        Ok(if layout == Layout::ChannelsLast { view.channels_last() } else { view })
    }

    pub(crate) fn view_mut(&mut self, dims: &[usize], layout: Layout) -> Result<ViewMut<'_, T, B>> {
        let view = ViewMut::new(self.data_mut(), dims)?;
        Ok(if layout == Layout::ChannelsLast { view.channels_last() } else { view })
    }

    /// Whether the elements are those of [`room`](Self::room). Panics where the guards were written to.
    pub(crate) fn is_unwritten(&self, on: &B) -> bool {
        self.read(on).expect("the backend reads back").iter().all(|&v| v == UNWRITTEN)
    }

    /// The elements. Panics where the guards were written to.
    pub(crate) fn read(&self, on: &B) -> Result<Vec<f64>> {
        let all = on.download(&B::slice(&self.held, 0..self.len))?;
        for (i, v) in all.iter().enumerate().filter(|(i, _)| !self.range.contains(i)) {
            assert_eq!(v.to_f32(), GUARD as f32, "wrote to element {i}, outside of {:?}", self.range);
        }
        Ok(all[self.range.clone()].iter().map(|v| f64::from(v.to_f32())).collect())
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
    match problem.op {
        Op::BatchNormTrain => batch_norm_train::<T, B>(on, problem, options, starts),
        Op::BatchNormEval => batch_norm_eval::<T, B>(on, problem, options, starts),
        Op::LayerNorm => layer_norm::<T, B>(on, problem, options, starts),
    }
}

fn batch_norm(problem: &Problem) -> BatchNorm {
    BatchNorm::new(problem.channels())
        .eps(problem.eps)
        .momentum(problem.momentum)
        .statistics(problem.statistics)
}

fn affine<T: Element, B: Sliced>(
    on: &B,
    problem: &Problem,
    options: &Options,
    starts: &mut Starts,
) -> Result<Pair<T, B>> {
    Pair::new(on, options.params, [problem.weight.as_deref(), problem.bias.as_deref()], starts)
}

/// Room for the gradients of what weight and bias there are, as far as wanted.
fn grads<T: Element, B: Sliced>(
    on: &B,
    problem: &Problem,
    options: &Options,
    starts: &mut Starts,
) -> Result<Pair<T, B>> {
    let room = vec![UNWRITTEN; problem.channels()];
    let wanted = |name, there| (there && !options.without.contains(&name)).then_some(&room[..]);
    let values = [wanted("dgamma", problem.weight.is_some()), wanted("dbeta", problem.bias.is_some())];
    Pair::new(on, options.grads, values, starts)
}

fn batch_norm_train<T: Element, B: Sliced>(
    on: &B,
    problem: &Problem,
    options: &Options,
    mut starts: Starts,
) -> Result<Values> {
    let bn = batch_norm(problem);
    let (len, dims, layout) = (problem.last_x().len(), &problem.dims[..], problem.layout);
    let wanted = |name| !options.without.contains(&name);
    let affine: Pair<T, B> = affine(on, problem, options, &mut starts)?;
    let mut y = Placed::<T, B>::room(on, len, starts.next())?;
    let mut mean = Placed::<f32, B>::room(on, bn.statistics_len(), starts.next())?;
    let mut rstd = Placed::<f32, B>::room(on, bn.statistics_len(), starts.next())?;
    let mut running = match problem.tracked() {
        Some(r) => Some((
            Placed::<f32, B>::new(on, &r.mean, starts.next())?,
            Placed::<f32, B>::new(on, &r.var, starts.next())?,
            problem.batches,
        )),
        None => None,
    };
    let (mut running_means, mut running_vars) = (Vec::new(), Vec::new());
    let mut x = Placed::<T, B>::new(on, &problem.x[0], starts.next())?;
    let mut workspace = bn.workspace_for(on, x.view(dims, layout)?)?;

    for (step, batch) in problem.x.iter().enumerate() {
        if step > 0 {
            x = Placed::new(on, batch, starts.next())?;
        }
        let args = BatchNormTrain {
            x: x.view(dims, layout)?,
            y: y.view_mut(dims, layout)?,
            affine: affine.affine(),
            mean: wanted("batch_mean").then(|| mean.data_mut()),
            rstd: wanted("batch_invstd").then(|| rstd.data_mut()),
            running: running.as_mut().map(|(mean, var, batches)| RunningStatsMut {
                mean: mean.data_mut(),
                var: var.data_mut(),
                batches,
            }),
            workspace: &mut workspace,
        };
        bn.forward_train_into(on, args)?;
        if let Some((mean, var, batches)) = &running {
            assert_eq!(*batches, problem.batches + step as u64 + 1, "each accepted call counts as one batch");
            running_means.extend(mean.read(on)?);
            running_vars.extend(var.read(on)?);
        }
    }
    let mut values = Values::from([("y", y.read(on)?)]);
    if running.is_some() {
        values.extend([("running_mean", running_means), ("running_var", running_vars)]);
    }
    if wanted("batch_mean") {
        values.insert("batch_mean", mean.read(on)?);
    }
    if wanted("batch_invstd") {
        values.insert("batch_invstd", rstd.read(on)?);
    }
    if !wanted("batch_mean") || !wanted("batch_invstd") {
        return Ok(values);
    }

    let dy = Placed::<T, B>::new(on, &problem.dy, starts.next())?;
    let mut dx = Placed::<T, B>::room(on, len, starts.next())?;
    let mut grads: Pair<T, B> = grads(on, problem, options, &mut starts)?;
    let args = BatchNormBackwardTrain {
        x: x.view(dims, layout)?,
        dy: dy.view(dims, layout)?,
        affine: affine.affine(),
        mean: mean.data(),
        rstd: rstd.data(),
        dx: wanted("dx").then(|| dx.view_mut(dims, layout)).transpose()?,
        grads: grads.grads(),
        workspace: &mut workspace,
    };
    bn.backward_train_into(on, args)?;
    insert_gradients(on, &mut values, wanted("dx").then_some(dx), &grads)?;
    Ok(values)
}

fn batch_norm_eval<T: Element, B: Sliced>(
    on: &B,
    problem: &Problem,
    options: &Options,
    mut starts: Starts,
) -> Result<Values> {
    let bn = batch_norm(problem);
    let (len, dims, layout) = (problem.last_x().len(), &problem.dims[..], problem.layout);
    let running = problem.running.as_ref().expect("inference has running statistics");
    let affine: Pair<T, B> = affine(on, problem, options, &mut starts)?;
    let x = Placed::<T, B>::new(on, problem.last_x(), starts.next())?;
    let mut y = Placed::<T, B>::room(on, len, starts.next())?;
    let mean = Placed::<f32, B>::new(on, &running.mean, starts.next())?;
    let var = Placed::<f32, B>::new(on, &running.var, starts.next())?;
    let args = BatchNormEval {
        x: x.view(dims, layout)?,
        y: y.view_mut(dims, layout)?,
        affine: affine.affine(),
        running_mean: mean.data(),
        running_var: var.data(),
    };
    bn.forward_eval_into(on, args)?;

    let wanted = |name| !options.without.contains(&name);
    let dy = Placed::<T, B>::new(on, &problem.dy, starts.next())?;
    let mut dx = Placed::<T, B>::room(on, len, starts.next())?;
    let mut grads: Pair<T, B> = grads(on, problem, options, &mut starts)?;
    let mut workspace = bn.workspace_for(on, x.view(dims, layout)?)?;
    let args = BatchNormBackwardEval {
        x: x.view(dims, layout)?,
        dy: dy.view(dims, layout)?,
        affine: affine.affine(),
        running_mean: mean.data(),
        running_var: var.data(),
        dx: wanted("dx").then(|| dx.view_mut(dims, layout)).transpose()?,
        grads: grads.grads(),
        workspace: &mut workspace,
    };
    bn.backward_eval_into(on, args)?;
    let mut values = Values::from([("y", y.read(on)?)]);
    insert_gradients(on, &mut values, wanted("dx").then_some(dx), &grads)?;
    Ok(values)
}

fn insert_gradients<T: Element, B: Sliced>(
    on: &B,
    values: &mut Values,
    dx: Option<Placed<T, B>>,
    grads: &Pair<T, B>,
) -> Result<()> {
    if let Some(dx) = dx {
        values.insert("dx", dx.read(on)?);
    }
    let [dweight, dbias] = grads.read(on)?;
    values.extend(dweight.map(|v| ("dgamma", v)));
    values.extend(dbias.map(|v| ("dbeta", v)));
    Ok(())
}

fn layer_norm<T: Element, B: Sliced>(
    on: &B,
    problem: &Problem,
    options: &Options,
    mut starts: Starts,
) -> Result<Values> {
    let (len, dims, layout) = (problem.last_x().len(), &problem.dims[..], problem.layout);
    let rows = dims[..dims.len() - problem.norm_dims].iter().product();
    let wanted = |name| !options.without.contains(&name);
    let affine: Pair<T, B> = affine(on, problem, options, &mut starts)?;
    let x = Placed::<T, B>::new(on, problem.last_x(), starts.next())?;
    let mut y = Placed::<T, B>::room(on, len, starts.next())?;
    let mut mean = Placed::<f32, B>::room(on, rows, starts.next())?;
    let mut rstd = Placed::<f32, B>::room(on, rows, starts.next())?;
    let args = LayerNormForward {
        x: x.view(dims, layout)?,
        y: y.view_mut(dims, layout)?,
        affine: affine.affine(),
        mean: wanted("mean").then(|| mean.data_mut()),
        rstd: wanted("rstd").then(|| rstd.data_mut()),
    };
    LayerNorm::new(problem.cols()).eps(problem.eps).forward_into(on, args)?;
    let mut values = Values::from([("y", y.read(on)?)]);
    if wanted("mean") {
        values.insert("mean", mean.read(on)?);
    }
    if wanted("rstd") {
        values.insert("rstd", rstd.read(on)?);
    }
    Ok(values)
}
