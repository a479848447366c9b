//! A training step's BatchNorm, forward and backward, captured into a CUDA graph and replayed; the result is that of
//! calling it.
//!
//! `cargo run --release --example cuda_graph`; without a GPU it says so.

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use warpnorm::{
        Affine, AffineGrad, BatchNorm, BatchNormBackwardTrain, BatchNormTrain, Cuda, RunningStats,
        RunningStatsMut, Tensor,
        cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
    };

    let on = match Cuda::new(0) {
        Ok(on) => on,
        Err(error) => {
            println!("nothing to show here: {error}");
            return Ok(());
        }
    };
    // cudarc orders streams by events, and an event from outside a capture may not be waited for inside it. This
    // program has one stream.
    // SAFETY: all memory is used on one stream, in order.
    unsafe { on.stream().context().disable_event_tracking() };

    let dims = [16, 32, 14, 14];
    let len: usize = dims.iter().product();
    let wave = |step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
    let x = Tensor::from_slice(&on, &wave(0.37), &dims)?;
    let dy = Tensor::from_slice(&on, &wave(0.73), &dims)?;
    let mut y = Tensor::zeros(&on, &dims)?;
    let mut dx = Tensor::zeros(&on, &dims)?;
    let mut mean = Tensor::zeros(&on, &[dims[1]])?;
    let mut rstd = Tensor::zeros(&on, &[dims[1]])?;

    let bn = BatchNorm::new(dims[1]);
    // On the device, where replays read it: 0 while warming up, so that this leaves no trace.
    let momentum = Tensor::zeros(&on, &[1])?;
    let mut running = RunningStats::new(&on, dims[1])?;
    let mut workspace = bn.workspace(&on, &x)?;
    let mut step = || -> warpnorm::Result<()> {
        bn.forward_train_into(
            &on,
            BatchNormTrain {
                x: x.view(),
                residual: None,
                y: y.view_mut(),
                affine: Affine::None,
                mean: Some(mean.data_mut()),
                rstd: Some(rstd.data_mut()),
                running: Some(RunningStatsMut { momentum: Some(momentum.data()), ..running.borrow_mut() }),
                workspace: &mut workspace,
            },
        )?;
        bn.backward_train_into(
            &on,
            BatchNormBackwardTrain {
                x: x.view(),
                residual: None,
                dy: dy.view(),
                affine: Affine::None,
                mean: mean.data(),
                rstd: rstd.data(),
                dx: Some(dx.view_mut()),
                dresidual: None,
                grads: AffineGrad::None,
                accumulate: false,
                workspace: &mut workspace,
            },
        )
    };

    on.warm_up()?;
    on.synchronize()?;
    on.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let captured = step();
    let graph = on
        .stream()
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?
        .ok_or("the capture recorded nothing")?;
    captured?;
    for _ in 0..3 {
        graph.launch()?;
    }
    on.synchronize()?;
    let replayed = (y.to_vec(&on)?, dx.to_vec(&on)?);

    // The same calls, made directly, into fresh buffers.
    let eager = bn.forward_train(&on, &x, Affine::None, None)?;
    let grads = bn.backward_train(&on, &x, &dy, Affine::None, &eager)?;
    let called = (eager.y.to_vec(&on)?, grads.dx.to_vec(&on)?);
    println!("{on:?}: three replays of one capture, {len} elements of y and of dx");
    if replayed == called { Ok(()) } else { Err("the graph's result differs from the calls'".into()) }
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("nothing to show here: {}", warpnorm::Cuda::new(0).unwrap_err());
}
