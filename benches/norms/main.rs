//! `cargo bench`: BatchNorm and LayerNorm on the CPU, and on the GPU where there is one.
//!
//! The calls write into buffers made beforehand; on the GPU a run of calls is timed between two synchronizations, warm.
//! The throughput is that of the floor's bytes: one read and one write of the tensor forward, two reads and one write
//! backward. `benches/peers/torch_norms.py` times PyTorch the same way on the same shapes.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use warpnorm::{
    Affine, AffineGrad, Backend, BatchNorm, BatchNormBackwardTrain, BatchNormTrain, Cpu, Cuda, Element,
    LayerNorm, LayerNormForward, Result, Tensor,
    half::{bf16, f16},
};

/// Dimensions, channels last, and whether it is a LayerNorm.
struct Shape {
    dims: &'static [usize],
    channels_last: bool,
    layer_norm: bool,
}

const fn bn(dims: &'static [usize], channels_last: bool) -> Shape {
    Shape { dims, channels_last, layer_norm: false }
}
const fn ln(dims: &'static [usize]) -> Shape {
    Shape { dims, channels_last: false, layer_norm: true }
}

const CPU_SHAPES: &[Shape] =
    &[bn(&[32, 64, 28, 28], false), bn(&[32, 28, 28, 64], true), bn(&[1024, 256], false), ln(&[1024, 1024])];

const GPU_SHAPES: &[Shape] = &[
    bn(&[256, 64, 112, 112], false),
    bn(&[256, 112, 112, 64], true),
    bn(&[32, 256, 56, 56], false),
    bn(&[32, 56, 56, 256], true),
    bn(&[32, 512, 7, 7], false),
    bn(&[4, 128, 1024, 1024], false),
    bn(&[4096, 1024], false),
    ln(&[16384, 4096]),
    ln(&[8192, 8192]),
    ln(&[131072, 128]),
    ln(&[1024, 12288]),
];

/// Times a number of calls.
trait Timed: Backend {
    fn time(&self, calls: u64, body: &mut dyn FnMut() -> Result<()>) -> Duration;
}

impl Timed for Cpu {
    fn time(&self, calls: u64, body: &mut dyn FnMut() -> Result<()>) -> Duration {
        let start = Instant::now();
        for _ in 0..calls {
            body().expect("the call was accepted once");
        }
        start.elapsed()
    }
}

impl Timed for Cuda {
    fn time(&self, calls: u64, body: &mut dyn FnMut() -> Result<()>) -> Duration {
        self.synchronize().expect("the GPU is there");
        // For the shortest kernels this is the time to enqueue them.
        let start = Instant::now();
        for _ in 0..calls {
            body().expect("the call was accepted once");
        }
        self.synchronize().expect("the work was done");
        start.elapsed()
    }
}

fn run<T: Element, B: Timed>(c: &mut Criterion, on: &B, backend: &str, shape: &Shape) -> Result<()> {
    let len: usize = shape.dims.iter().product();
    let data: Vec<T> = (0..len).map(|i| T::from_f32((i % 8191) as f32 / 4096.0 - 1.0)).collect();
    let tensor = || -> Result<Tensor<T, B>> {
        let tensor = Tensor::from_slice(on, &data, shape.dims)?;
        Ok(if shape.channels_last { tensor.channels_last() } else { tensor })
    };
    let x = tensor()?;
    let mut y = tensor()?;
    let bytes = (len * T::DTYPE.size()) as u64;
    let layout = if shape.channels_last { "last" } else { "first" };
    let name = |op: &str| format!("{op}/{backend}/{:?}/{layout}/{:?}", T::DTYPE, shape.dims).to_lowercase();

    if shape.layer_norm {
        let layer_norm = LayerNorm::new(shape.dims[1]);
        let mut forward = || {
            let (x, y) = (x.view(), y.view_mut());
            layer_norm.forward_into(
                on,
                LayerNormForward { x, y, residual: None, affine: Affine::None, mean: None, rstd: None },
            )
        };
        measure(c, on, &name("layer_norm_fwd"), 2 * bytes, &mut forward);
        return Ok(());
    }
    let channels = if shape.channels_last { shape.dims[shape.dims.len() - 1] } else { shape.dims[1] };
    let batch_norm = BatchNorm::new(channels);
    let mut workspace = batch_norm.workspace(on, &x)?;
    let (mut mean, mut rstd) = (Tensor::zeros(on, &[channels])?, Tensor::zeros(on, &[channels])?);
    let mut forward = || {
        let args = BatchNormTrain {
            x: x.view(),
            residual: None,
            y: y.view_mut(),
            affine: Affine::None,
            mean: Some(mean.data_mut()),
            rstd: Some(rstd.data_mut()),
            running: None,
            workspace: &mut workspace,
        };
        batch_norm.forward_train_into(on, args)
    };
    measure(c, on, &name("batch_norm_fwd"), 2 * bytes, &mut forward);
    let dy = tensor()?;
    let (mut dweight, mut dbias) = (Tensor::zeros(on, &[channels])?, Tensor::zeros(on, &[channels])?);
    let mut backward = || {
        let args = BatchNormBackwardTrain {
            x: x.view(),
            residual: None,
            dy: dy.view(),
            affine: Affine::None,
            mean: mean.data(),
            rstd: rstd.data(),
            dx: Some(y.view_mut()),
            dresidual: None,
            grads: AffineGrad::F32 { dweight: Some(dweight.data_mut()), dbias: Some(dbias.data_mut()) },
            accumulate: false,
            workspace: &mut workspace,
        };
        batch_norm.backward_train_into(on, args)
    };
    measure(c, on, &name("batch_norm_bwd"), 3 * bytes, &mut backward);
    Ok(())
}

fn measure<B: Timed>(
    c: &mut Criterion,
    on: &B,
    name: &str,
    floor_bytes: u64,
    body: &mut dyn FnMut() -> Result<()>,
) {
    body().expect("the shapes fit");
    let mut group = c.benchmark_group("norms");
    group.throughput(Throughput::Bytes(floor_bytes));
    group.bench_function(name, |b| b.iter_custom(|calls| on.time(calls, body)));
    group.finish();
}

fn benches(c: &mut Criterion) {
    for shape in CPU_SHAPES {
        run::<f32, _>(c, &Cpu, "cpu", shape).expect("the CPU takes every shape");
        run::<f16, _>(c, &Cpu, "cpu", shape).expect("the CPU takes every shape");
    }
    match Cuda::new(0) {
        Err(error) => eprintln!("no GPU times: {error}"),
        Ok(on) => {
            // Waiting for and recording an event of each buffer would be timed, too.
            #[cfg(feature = "cuda")]
            // SAFETY: this program uses one stream.
            unsafe {
                on.stream().context().disable_event_tracking();
            }
            for shape in GPU_SHAPES {
                run::<f32, _>(c, &on, "cuda", shape).expect("the GPU takes every shape");
                run::<f16, _>(c, &on, "cuda", shape).expect("the GPU takes every shape");
                run::<bf16, _>(c, &on, "cuda", shape).expect("the GPU takes every shape");
            }
        }
    }
}

criterion_group! {
    name = norms;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = benches
}
criterion_main!(norms);
