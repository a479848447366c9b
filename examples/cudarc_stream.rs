//! BatchNorm on a stream and on memory that the program already has, by way of cudarc.
//!
//! `cargo run --release --example cudarc_stream`; without a GPU it says so.

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use warpnorm::{Affine, BatchNorm, BatchNormTrain, Cpu, Cuda, Tensor, cudarc::driver::CudaContext};

    // Asking warpnorm first finds out, without a panic, whether there is a driver and a GPU.
    if let Err(error) = Cuda::new(0) {
        println!("nothing to show here: {error}");
        return Ok(());
    }
    let stream = CudaContext::new(0)?.new_stream()?;
    let on = Cuda::from_stream(stream.clone())?;

    let dims = [32, 64, 28, 28];
    let host: Vec<f32> = (0..dims.iter().product()).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = stream.clone_htod(&host)?;
    let mut y = stream.alloc_zeros::<f32>(host.len())?;

    let bn = BatchNorm::new(dims[1]);
    let mut workspace = bn.workspace_for(&on, on.view(&x, &dims)?)?;
    let args = BatchNormTrain {
        x: on.view(&x, &dims)?,
        residual: None,
        y: on.view_mut(&mut y, &dims)?,
        affine: Affine::None,
        mean: None,
        rstd: None,
        running: None,
        workspace: &mut workspace,
    };
    bn.forward_train_into(&on, args)?;

    let got = stream.clone_dtoh(&y)?;
    stream.synchronize()?;
    let want = bn
        .forward_train(&Cpu, &Tensor::from_slice(&Cpu, &host, &dims)?, Affine::None, None)?
        .y
        .to_vec(&Cpu)?;
    let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    println!("{on:?}: {} elements, at most {worst:.1e} from the CPU's result", got.len());
    if worst < 1e-5 { Ok(()) } else { Err("GPU and CPU disagree".into()) }
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("nothing to show here: {}", warpnorm::Cuda::new(0).unwrap_err());
}
