//! What can be said of the CUDA backend on any machine, and what takes a GPU.

use warpnorm::{Cuda, Error};

#[test]
fn a_backend_that_cannot_be_had_says_why_without_a_panic() {
    let compiled = cfg!(wn_cuda_kernels);
    match Cuda::new(0) {
        Ok(on) => assert!(compiled, "{on:?} came from nowhere"),
        Err(error @ Error::NotCompiled(_)) => {
            assert!(!compiled);
            let text = error.to_string();
            assert!(text.contains("nvcc") && text.contains("require-cuda"), "what to do is missing: {text}");
        }
        Err(error @ (Error::NoDriver(_) | Error::NoDevice { .. })) => {
            assert!(compiled, "{error}");
            assert!(error.to_string().starts_with("no "), "{error}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_foreign_stream_is_refused_the_same_way() {
    if Cuda::new(0).is_ok() {
        return;
    }
    // SAFETY: there is no backend, so the null stream is not looked at.
    let refused = unsafe { Cuda::from_raw_stream(0, std::ptr::null_mut()) }.unwrap_err();
    assert_eq!(refused, Cuda::new(0).unwrap_err());
}

#[cfg(feature = "cuda")]
mod on_a_gpu {
    use std::{ffi::c_uint, sync::Arc};

    use warpnorm::{
        Affine, BatchNorm, BatchNormEval, BatchNormTrain, Cuda, CudaMut, CudaRef, Error, LayerNorm,
        RunningStats, Tensor,
        cudarc::driver::{
            CudaContext, DevicePtr, DevicePtrMut, result,
            sys::{CUcontext, CUdevice, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode},
        },
        half::f16,
    };

    use crate::support::{data::only_y, gpu, small};

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37).sin()).collect()
    }

    /// More than 2^31 elements: offsets to rows and slabs take 64 bits. Rows repeat, so every one must give the first's.
    #[test]
    fn offsets_beyond_32_bits_reach_their_rows() {
        let Some(on) = gpu() else { return };
        if small() {
            return; // 13 GB
        }
        for [rows, cols] in [[(1 << 22) + 1, 512], [175_000, 12_288]] {
            let row: Vec<f16> = wave(cols).into_iter().map(f16::from_f32).collect();
            let first = Tensor::from_slice(&on, &row, &[1, cols]).unwrap();
            let expected =
                LayerNorm::new(cols).forward(&on, &first, Affine::None).unwrap().y.to_vec(&on).unwrap();
            let x = match Tensor::from_slice(&on, &row.repeat(rows), &[rows, cols]) {
                Ok(x) => x,
                Err(Error::Driver { message, .. }) => {
                    println!("skipped: no memory for 2^31 elements: {message}");
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            let y = LayerNorm::new(cols).forward(&on, &x, Affine::None).unwrap().y.to_vec(&on).unwrap();
            assert!(y.chunks(cols).all(|y| y == expected), "a row of [{rows}, {cols}] differs");
            // As channels: a column of equal values is its channel's mean, so y is exactly 0.
            let bn = BatchNorm::new(cols);
            let y = bn.forward_train(&on, &x, Affine::None, None).unwrap().y.to_vec(&on).unwrap();
            assert!(y.iter().all(|&y| y == f16::ZERO), "a channel of [{rows}, {cols}] differs");
        }
    }

    /// A context of the first GPU beside its primary one. cudarc offers none for the newest versions of CUDA.
    fn second_context() -> Arc<CudaContext> {
        type Create = unsafe extern "C" fn(*mut CUcontext, c_uint, CUdevice) -> CUresult;
        // SAFETY: the driver is loaded already, as there is a GPU; the function has had this signature since CUDA 4,
        // and fills `context`, which the returned value owns.
        unsafe {
            let driver = libloading::Library::new("libcuda.so.1").unwrap();
            let create = driver.get::<Create>(b"cuCtxCreate_v2").unwrap();
            let device = result::device::get(0).unwrap();
            let mut context = std::ptr::null_mut();
            assert_eq!(create(&mut context, 0, device), CUresult::CUDA_SUCCESS);
            CudaContext::from_raw_context(0, device, context).unwrap()
        }
    }

    #[test]
    fn a_buffer_of_another_context_is_refused_by_name() {
        let Some(on) = gpu() else { return };
        // The other one of this GPU's primary context is refused, too: it does not order this one's streams.
        for other in [second_context(), CudaContext::new(0).unwrap()] {
            let x = other.default_stream().clone_htod(&wave(64)).unwrap();
            on.stream().context().bind_to_thread().unwrap();
            let zeros = |len| on.stream().alloc_zeros::<f32>(len).unwrap();
            let (mut y, mean, var) = (zeros(64), zeros(4), zeros(4));
            let args = BatchNormEval {
                x: on.view(&x, &[16, 4]).unwrap(),
                residual: None,
                y: on.view_mut(&mut y, &[16, 4]).unwrap(),
                affine: Affine::None,
                running_mean: CudaRef::from(&mean),
                running_var: CudaRef::from(&var),
            };
            let refused = BatchNorm::new(4).forward_eval_into(&on, args).unwrap_err();
            assert_eq!(refused, Error::WrongDevice { arg: "x" });
            assert_eq!(on.stream().clone_dtoh(&y).unwrap(), [0.0; 64]);
        }
    }

    #[test]
    fn a_raw_stream_and_raw_addresses_give_the_same_bits() {
        let Some(on) = gpu() else { return };
        let x = Tensor::from_slice(&on, &wave(600), &[6, 100]).unwrap();
        let want = LayerNorm::new(100).forward(&on, &x, Affine::None).unwrap().y.to_vec(&on).unwrap();

        let stream = on.stream();
        // SAFETY: the stream outlives `raw`, and belongs to this GPU's primary context.
        let raw = unsafe { Cuda::from_raw_stream(0, stream.cu_stream().cast()) }.unwrap();
        let input = stream.clone_htod(&wave(600)).unwrap();
        let mut output = stream.alloc_zeros::<f32>(600).unwrap();
        {
            let (input, _reading) = input.device_ptr(stream);
            let (output, _writing) = output.device_ptr_mut(stream);
            // SAFETY: both are 600 elements on this GPU, used on the stream that made them.
            let (x, y) =
                unsafe { (CudaRef::<f32>::from_raw(input, 600), CudaMut::<f32>::from_raw(output, 600)) };
            let args = warpnorm::LayerNormForward {
                x: raw.view(x, &[6, 100]).unwrap(),
                residual: None,
                y: raw.view_mut(y, &[6, 100]).unwrap(),
                affine: Affine::None,
                mean: None,
                rstd: None,
            };
            LayerNorm::new(100).forward_into(&raw, args).unwrap();
        }
        assert_eq!(stream.clone_dtoh(&output).unwrap(), want);
    }

    #[test]
    fn a_captured_graph_replays_to_the_bits_of_the_call() {
        let Some(on) = gpu() else { return };
        // SAFETY: all memory of this test is used on one stream, in order.
        unsafe { on.stream().context().disable_event_tracking() };
        for dims in [[4, 8, 5, 5], [16, 4, 64, 64]] {
            let x = Tensor::from_slice(&on, &wave(dims.iter().product()), &dims).unwrap();
            let mut y = Tensor::zeros(&on, &dims).unwrap();
            let mut running = RunningStats::new(&on, dims[1]).unwrap();
            let bn = BatchNorm::new(dims[1]);
            let mut workspace = bn.workspace(&on, &x).unwrap();
            on.warm_up().unwrap();
            on.synchronize().unwrap();
            on.stream().begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
            let args = only_y(&x, &mut y, &mut workspace);
            let args = BatchNormTrain { running: Some(running.borrow_mut()), ..args };
            let captured = bn.forward_train_into(&on, args);
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = on.stream().end_capture(flags).unwrap().unwrap();
            captured.unwrap();
            for _ in 0..3 {
                graph.launch().unwrap();
            }
            let mut eager_running = RunningStats::new(&on, dims[1]).unwrap();
            let mut eager = Vec::new();
            for _ in 0..3 {
                let out = bn.forward_train(&on, &x, Affine::None, Some(&mut eager_running)).unwrap();
                eager = out.y.to_vec(&on).unwrap();
            }
            assert_eq!(y.to_vec(&on).unwrap(), eager);
            assert_eq!(running.var.to_vec(&on).unwrap(), eager_running.var.to_vec(&on).unwrap());
        }
    }
}
