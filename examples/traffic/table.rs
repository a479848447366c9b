//! The calls that are counted, and what they moved.

use std::cell::RefCell;

use warpnorm::{
    Activation, Affine, AffineGrad, BatchNorm, BatchNormBackwardTrain, BatchNormTrain, DType, Element,
    Emulated, EmulatedLaunch, GroupNorm, InstanceNorm, LayerNorm, LayerNormBackward, Layout, Result, RmsNorm,
    RmsNormBackward, RunningStats, Statistics, Tensor,
    cuda::plan::{DeviceLimits, Plan, last_choice},
    half::f16,
};

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Dimensions and layout.
    pub(crate) shape: String,
    /// Op and direction.
    pub(crate) op: String,
    pub(crate) dtype: DType,
    /// How the planner had it run; of a call that has but one way, what has run it.
    pub(crate) strategy: String,
    pub(crate) read: u64,
    pub(crate) written: u64,
    /// Bytes that crossed between the L2 cache and memory.
    pub(crate) dram: u64,
    /// Bytes that must be read or written.
    pub(crate) floor: u64,
    pub(crate) launches: usize,
    /// Kernels in their order.
    pub(crate) kernels: String,
}

impl Row {
    /// Bytes moved over the least.
    pub(crate) fn raw(&self) -> f64 {
        (self.read + self.written) as f64 / self.floor as f64
    }
    /// Bytes to and from memory over the least.
    pub(crate) fn dram(&self) -> f64 {
        self.dram as f64 / self.floor as f64
    }
}

const FIRST: bool = false;
const LAST: bool = true;

/// As few SMs and as slow a memory as the small device has, and the shared memory of an H200.
const SMS_OF_H200: DeviceLimits = DeviceLimits {
    smem_per_sm: DeviceLimits::H200.smem_per_sm,
    smem_per_block: DeviceLimits::H200.smem_per_block,
    ..DeviceLimits::SMALL
};

/// Shapes that fit a chip, and such as do not: of 256 KB in shared memory and as much L2 cache.
pub(crate) fn channel_norms() -> Result<Vec<Row>> {
    let on = Emulated::new();
    let mut rows = Vec::new();
    let shapes: [(bool, &[usize]); 7] = [
        (FIRST, &[8, 64, 7, 7]),
        (FIRST, &[8, 16, 32, 32]),
        (FIRST, &[4, 3, 96, 96]),
        (LAST, &[8, 32, 32, 16]),
        (LAST, &[8, 16, 16, 35]),
        (FIRST, &[256, 64]),
        (FIRST, &[2, 2, 256, 256]),
    ];
    for (layout, dims) in shapes {
        let channels = dims[if layout == LAST { dims.len() - 1 } else { 1 }];
        rows.extend(Problem::<f32>::new(on, dims, layout, channels)?.channel_norms()?);
        rows.extend(Problem::<f16>::new(on, dims, layout, channels)?.channel_norms()?);
    }
    Ok(rows)
}

/// Rows that fit the shared memory of an SM, of which the small device has too little.
pub(crate) fn row_norms() -> Result<Vec<Row>> {
    let on = Emulated::describing(SMS_OF_H200);
    let mut rows = Vec::new();
    let shapes: [&[usize]; 3] = [&[64, 1024], &[8, 4096], &[32, 1023]];
    for dims in shapes {
        rows.extend(Problem::<f32>::new(on, dims, FIRST, dims[1])?.row_norms()?);
        rows.extend(Problem::<f16>::new(on, dims, FIRST, dims[1])?.row_norms()?);
    }
    Ok(rows)
}

/// The tensors of a shape.
struct Problem<T: Element> {
    on: Emulated,
    dims: Vec<usize>,
    channels: usize,
    x: Tensor<T, Emulated>,
    dy: Tensor<T, Emulated>,
    /// The residual of a forward pass, or the gradient that reaches it by other ways.
    other: Tensor<T, Emulated>,
    weight: Tensor<T, Emulated>,
    bias: Tensor<T, Emulated>,
    rows: RefCell<Vec<Row>>,
}

impl<T: Element> Problem<T> {
    fn new(on: Emulated, dims: &[usize], channels_last: bool, channels: usize) -> Result<Self> {
        let len: usize = dims.iter().product();
        let wave = |step: f32| -> Result<Tensor<T, Emulated>> {
            let data: Vec<T> = (0..len).map(|i| T::from_f32((i as f32 * step).sin())).collect();
            let tensor = Tensor::from_slice(&on, &data, dims)?;
            Ok(if channels_last { tensor.channels_last() } else { tensor })
        };
        let vector = |value: f32| Tensor::from_slice(&on, &vec![T::from_f32(value); channels], &[channels]);
        Ok(Self {
            on,
            dims: dims.to_vec(),
            channels,
            x: wave(0.37)?,
            dy: wave(0.73)?,
            other: wave(0.11)?,
            weight: vector(1.5)?,
            bias: vector(0.5)?,
            rows: RefCell::default(),
        })
    }

    fn affine(&self) -> Affine<'_, T, Emulated> {
        Affine::same(&self.weight, &self.bias)
    }

    /// Another tensor like `x`.
    fn like(&self) -> Result<Tensor<T, Emulated>> {
        let tensor = Tensor::zeros(&self.on, &self.dims)?;
        Ok(if self.x.layout() == Layout::ChannelsLast { tensor.channels_last() } else { tensor })
    }

    fn params(&self) -> Result<Tensor<f32, Emulated>> {
        Tensor::zeros(&self.on, &[self.channels])
    }

    /// Makes a call that must read or write so many tensors, and keeps its row.
    fn line<R>(&self, op: &str, tensors: usize, call: impl FnOnce() -> Result<R>) -> Result<R> {
        let (result, launches) = self.on.record(call);
        let result = result?;
        let sum = |bytes: fn(&EmulatedLaunch) -> u64| launches.iter().map(bytes).sum::<u64>();
        let planned = !op.contains("eval");
        let strategy = match last_choice().map(|choice| choice.plan) {
            Some(Plan::Channel(plan)) if planned => format!("{:?}", plan.strategy),
            Some(Plan::Row(plan)) if planned => format!("{:?}", plan.strategy),
            _ => "apply".into(),
        };
        let layout = match (self.dims.len(), self.x.layout()) {
            (2, _) => "",
            (_, Layout::ChannelsFirst) => ", channels first",
            (_, Layout::ChannelsLast) => ", channels last",
        };
        self.rows.borrow_mut().push(Row {
            shape: format!("{:?}{layout}", self.dims),
            op: op.into(),
            dtype: T::DTYPE,
            strategy,
            read: sum(|l| l.bytes_read),
            written: sum(|l| l.bytes_written),
            dram: sum(|l| l.dram_read + l.dram_written),
            floor: (tensors * self.x.len() * T::DTYPE.size()) as u64,
            launches: launches.len(),
            kernels: kernels(&launches),
        });
        Ok(result)
    }

    fn channel_norms(self) -> Result<Vec<Row>> {
        let bn = BatchNorm::new(self.channels);
        self.batch_norm("BatchNorm train", bn)?;
        self.batch_norm("BatchNorm whole batch", bn.statistics(Statistics::WholeBatch))?;
        self.batch_norm("BatchNorm virtual batch", bn.virtual_batch(self.dims[0].div_ceil(4)))?;
        self.batch_norm_residual()?;

        let (on, x, dy) = (&self.on, &self.x, &self.dy);
        let running = RunningStats::new(on, self.channels)?;
        self.line("BatchNorm eval fwd", 2, || bn.forward_eval(on, x, self.affine(), &running))?;
        self.line("BatchNorm eval bwd", 3, || bn.backward_eval(on, x, dy, self.affine(), &running))?;

        let groups = [8, 5].into_iter().find(|g| self.channels.is_multiple_of(*g)).unwrap_or(1);
        let gn = GroupNorm::new(groups, self.channels);
        let name = format!("GroupNorm {groups} groups");
        let saved = self.line(&format!("{name} fwd"), 2, || gn.forward(on, x, self.affine()))?;
        self.line(&format!("{name} bwd"), 3, || gn.backward(on, x, dy, self.affine(), &saved))?;
        if self.dims.len() > 2 {
            let norm = InstanceNorm::new(self.channels);
            let saved = self.line("InstanceNorm fwd", 2, || norm.forward(on, x, self.affine(), None))?;
            self.line("InstanceNorm bwd", 3, || norm.backward(on, x, dy, self.affine(), &saved))?;
        }
        Ok(self.rows.take())
    }

    fn batch_norm(&self, name: &str, bn: BatchNorm) -> Result<()> {
        let (on, x, dy) = (&self.on, &self.x, &self.dy);
        let mut running = RunningStats::new(on, bn.running_len())?;
        let forward = || bn.forward_train(on, x, self.affine(), Some(&mut running));
        let saved = self.line(&format!("{name} fwd"), 2, forward)?;
        self.line(&format!("{name} bwd"), 3, || bn.backward_train(on, x, dy, self.affine(), &saved))?;
        Ok(())
    }

    /// `y = relu(norm(x) + residual)`, as at the end of a residual block.
    fn batch_norm_residual(&self) -> Result<()> {
        let on = &self.on;
        let bn = BatchNorm::new(self.channels).activation(Activation::Relu);
        let mut workspace = bn.workspace(on, &self.x)?;
        let mut y = self.like()?;
        let (mut mean, mut rstd) = (self.params()?, self.params()?);
        let args = BatchNormTrain {
            x: self.x.view(),
            residual: Some(self.other.view()),
            y: y.view_mut(),
            affine: self.affine(),
            mean: Some(mean.data_mut()),
            rstd: Some(rstd.data_mut()),
            running: None,
            workspace: &mut workspace,
        };
        self.line("BatchNorm residual relu fwd", 3, || bn.forward_train_into(on, args))?;

        let (mut dx, mut dresidual) = (self.like()?, self.like()?);
        let (mut dweight, mut dbias) = (self.params()?, self.params()?);
        let args = BatchNormBackwardTrain {
            x: self.x.view(),
            residual: Some(self.other.view()),
            dy: self.dy.view(),
            affine: self.affine(),
            mean: mean.data(),
            rstd: rstd.data(),
            dx: Some(dx.view_mut()),
            dresidual: Some(dresidual.view_mut()),
            grads: both(&mut dweight, &mut dbias),
            accumulate: false,
            workspace: &mut workspace,
        };
        self.line("BatchNorm residual relu bwd", 5, || bn.backward_train_into(on, args))
    }

    /// The bare ones have neither weight nor bias.
    fn row_norms(self) -> Result<Vec<Row>> {
        let (on, x, dy) = (&self.on, &self.x, &self.dy);
        let ln = LayerNorm::new(self.channels);
        let saved = self.line("LayerNorm bare fwd", 2, || ln.forward(on, x, Affine::None))?;
        self.line("LayerNorm bare bwd", 3, || ln.backward(on, x, dy, Affine::None, &saved))?;
        let saved = self.line("LayerNorm fwd", 2, || ln.forward(on, x, self.affine()))?;
        self.line("LayerNorm bwd", 3, || ln.backward(on, x, dy, self.affine(), &saved))?;
        let forward = || ln.forward_residual(on, x, &self.other, self.affine());
        let (h, saved) = self.line("LayerNorm residual fwd", 4, forward)?;
        let (mut dx, mut workspace) = (self.like()?, ln.workspace(on, x)?);
        let (mut dweight, mut dbias) = (self.params()?, self.params()?);
        let args = LayerNormBackward {
            x: h.view(),
            dy: dy.view(),
            dh: Some(self.other.view()),
            affine: self.affine(),
            mean: saved.mean.data(),
            rstd: saved.rstd.data(),
            dx: Some(dx.view_mut()),
            grads: both(&mut dweight, &mut dbias),
            accumulate: false,
            workspace: &mut workspace,
        };
        self.line("LayerNorm residual bwd", 4, || ln.backward_into(on, args))?;

        let rms = RmsNorm::new(self.channels);
        let saved = self.line("RmsNorm bare fwd", 2, || rms.forward(on, x, Affine::None))?;
        self.line("RmsNorm bare bwd", 3, || rms.backward(on, x, dy, Affine::None, &saved))?;
        let saved = self.line("RmsNorm fwd", 2, || rms.forward(on, x, self.affine()))?;
        self.line("RmsNorm bwd", 3, || rms.backward(on, x, dy, self.affine(), &saved))?;
        let forward = || rms.forward_residual(on, x, &self.other, self.affine());
        let (h, saved) = self.line("RmsNorm residual fwd", 4, forward)?;
        let args = RmsNormBackward {
            x: h.view(),
            dy: dy.view(),
            dh: Some(self.other.view()),
            affine: self.affine(),
            rstd: saved.rstd.data(),
            dx: Some(dx.view_mut()),
            grads: both(&mut dweight, &mut dbias),
            accumulate: false,
            workspace: &mut workspace,
        };
        self.line("RmsNorm residual bwd", 4, || rms.backward_into(on, args))?;
        Ok(self.rows.take())
    }
}

fn both<'a, T: Element>(
    dweight: &'a mut Tensor<f32, Emulated>,
    dbias: &'a mut Tensor<f32, Emulated>,
) -> AffineGrad<'a, T, Emulated> {
    AffineGrad::F32 { dweight: Some(dweight.data_mut()), dbias: Some(dbias.data_mut()) }
}

/// The kernels of a call in their order, without what all names of a family and direction begin with, and who owns
/// what in the first of them.
fn kernels(launches: &[EmulatedLaunch]) -> String {
    let first = launches.first().map_or("", |l| l.kernel.as_str());
    let tile = match () {
        () if first.contains("ColumnTile") => " by columns",
        () if first.contains(", 256>") => " by blocks",
        () if first.contains(", 32>") => " by warps",
        () => "",
    };
    let names = launches.iter().map(|launch| {
        let name = launch.kernel.split('<').next().unwrap_or_default();
        let name = name.rsplit("::").next().unwrap_or_default().trim_end_matches("_kernel");
        name.split_once("_fwd_").or(name.split_once("_bwd_")).map_or(name, |(_, step)| step)
    });
    names.collect::<Vec<_>>().join(", ") + tile
}
