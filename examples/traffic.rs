//! How many bytes the kernels move, beside the least that any kernel must: what the emulator counted, per op,
//! direction, layout, type and shape.
//!
//! `cargo run --release --features emulator-check --example traffic`
//!
//! Every read counts, also one that a GPU would answer from its caches: a `Single` or `BlockPerRow` kernel reads its
//! input twice, and the second time it comes from there.

#[cfg(not(feature = "emulator-check"))]
fn main() -> std::process::ExitCode {
    eprintln!("bytes are counted with the feature `emulator-check`: add `--features emulator-check`");
    std::process::ExitCode::FAILURE
}

#[cfg(feature = "emulator-check")]
fn main() -> warpnorm::Result<()> {
    use warpnorm::half::{bf16, f16};

    let on = warpnorm::Emulated::new();
    println!("{}", report::Row::header());
    for case in report::CASES {
        report::measure::<f32>(&on, case)?;
        report::measure::<f16>(&on, case)?;
        report::measure::<bf16>(&on, case)?;
    }
    Ok(())
}

#[cfg(feature = "emulator-check")]
mod report {
    use warpnorm::{
        Affine, AffineGrad, BatchNorm, BatchNormBackwardTrain, Element, Emulated, EmulatedLaunch, LayerNorm,
        Result, RunningStats, Statistics, Tensor,
    };

    pub(crate) struct Case {
        channels_last: bool,
        dims: &'static [usize],
        ops: &'static [Op],
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Op {
        Train,
        WholeBatch,
        Eval,
        LayerNorm,
    }

    const BN: &[Op] = &[Op::Train, Op::WholeBatch, Op::Eval];

    pub(crate) const CASES: &[Case] = &[
        Case { channels_last: false, dims: &[8, 64, 7, 7], ops: BN },
        Case { channels_last: false, dims: &[8, 16, 32, 32], ops: BN },
        Case { channels_last: false, dims: &[4, 3, 96, 96], ops: BN },
        Case { channels_last: true, dims: &[8, 32, 32, 16], ops: BN },
        Case { channels_last: true, dims: &[8, 16, 16, 35], ops: BN },
        Case { channels_last: false, dims: &[1024, 64], ops: BN },
        Case { channels_last: false, dims: &[64, 1024], ops: &[Op::LayerNorm] },
        Case { channels_last: false, dims: &[8, 4096], ops: &[Op::LayerNorm] },
        Case { channels_last: false, dims: &[32, 1023], ops: &[Op::LayerNorm] },
    ];

    /// One line of the table.
    pub(crate) struct Row {
        op: String,
        layout: &'static str,
        dtype: String,
        dims: String,
        launches: Vec<EmulatedLaunch>,
        /// Tensors that have to be read or written once each.
        tensors: usize,
        tensor_bytes: usize,
    }

    impl Row {
        pub(crate) fn header() -> String {
            format!(
                "{:<26}{:<7}{:<6}{:<18}{:<34}{:>9}{:>13}{:>13}{:>8}",
                "op", "layout", "type", "shape", "strategy", "launches", "bytes read", "written", "/floor"
            )
        }

        fn print(&self) {
            let read: u64 = self.launches.iter().map(|l| l.bytes_read).sum();
            let written: u64 = self.launches.iter().map(|l| l.bytes_written).sum();
            let floor = (self.tensors * self.tensor_bytes) as f64;
            println!(
                "{:<26}{:<7}{:<6}{:<18}{:<34}{:>9}{:>13}{:>13}{:>8.3}",
                self.op,
                self.layout,
                self.dtype,
                self.dims,
                strategy(&self.launches),
                self.launches.len(),
                read,
                written,
                (read + written) as f64 / floor
            );
        }
    }

    /// The strategy, as the first kernel's name and the number of launches tell.
    fn strategy(launches: &[EmulatedLaunch]) -> String {
        let first = launches.first().map_or("", |l| l.kernel.as_str());
        let tile = if first.contains("ColumnTile") {
            "Columns"
        } else if first.contains("row_norm_fwd_warp") {
            return "WarpPerRow".into();
        } else if first.contains("row_norm_fwd_block") {
            return "BlockPerRow".into();
        } else if first.contains(", 32>") {
            "WarpPerChannel"
        } else {
            "BlockPerChannel"
        };
        let reads = match launches.len() {
            1 if first.contains("_train") || first.contains("_reduce") => "Single",
            1 => "Apply",
            _ => "Split",
        };
        format!("{reads} {tile}")
    }

    pub(crate) fn measure<T: Element>(on: &Emulated, case: &Case) -> Result<()> {
        let len: usize = case.dims.iter().product();
        let wave = |step: f32| (0..len).map(|i| T::from_f32((i as f32 * step).sin())).collect::<Vec<_>>();
        let tensor = |data: &[T]| -> Result<Tensor<T, Emulated>> {
            let tensor = Tensor::from_slice(on, data, case.dims)?;
            Ok(if case.channels_last { tensor.channels_last() } else { tensor })
        };
        let (x, dy) = (tensor(&wave(0.37))?, tensor(&wave(0.73))?);
        let row = |op: &str, tensors, launches| Row {
            op: op.into(),
            layout: if case.channels_last { "last" } else { "first" },
            dtype: format!("{:?}", T::DTYPE).to_lowercase(),
            dims: format!("{:?}", case.dims),
            launches,
            tensors,
            tensor_bytes: len * T::DTYPE.size(),
        };
        for &op in case.ops {
            match op {
                Op::Train | Op::WholeBatch => {
                    let (name, statistics) = match op {
                        Op::WholeBatch => ("whole batch", Statistics::WholeBatch),
                        _ => ("train", Statistics::PerChannel),
                    };
                    let channels = case.dims[if case.channels_last { case.dims.len() - 1 } else { 1 }];
                    let bn = BatchNorm::new(channels).statistics(statistics);
                    let (out, launches) = on.record(|| bn.forward_train(on, &x, Affine::None, None));
                    let out = out?;
                    row(&format!("BatchNorm {name} fwd"), 2, launches).print();
                    let mut dx = tensor(&wave(0.0))?;
                    let mut dweight = Tensor::zeros(on, &[channels])?;
                    let mut workspace = bn.workspace(on, &x)?;
                    let args = BatchNormBackwardTrain {
                        x: x.view(),
                        dy: dy.view(),
                        affine: Affine::None,
                        mean: out.mean.data(),
                        rstd: out.rstd.data(),
                        dx: Some(dx.view_mut()),
                        grads: AffineGrad::F32 { dweight: Some(dweight.data_mut()), dbias: None },
                        workspace: &mut workspace,
                    };
                    let (done, launches) = on.record(|| bn.backward_train_into(on, args));
                    done?;
                    row(&format!("BatchNorm {name} bwd"), 3, launches).print();
                }
                Op::Eval => {
                    let channels = case.dims[if case.channels_last { case.dims.len() - 1 } else { 1 }];
                    let bn = BatchNorm::new(channels);
                    let running = RunningStats::new(on, channels)?;
                    let weight = Tensor::from_slice(on, &vec![1.0; channels], &[channels])?;
                    let bias = Tensor::zeros(on, &[channels])?;
                    let (y, launches) =
                        on.record(|| bn.forward_eval(on, &x, Affine::f32(&weight, &bias), &running));
                    y?;
                    row("BatchNorm eval fwd", 2, launches).print();
                    let affine = Affine::f32(&weight, &bias);
                    let (grads, launches) = on.record(|| bn.backward_eval(on, &x, &dy, affine, &running));
                    grads?;
                    row("BatchNorm eval bwd", 3, launches).print();
                }
                Op::LayerNorm => {
                    let ln = LayerNorm::new(case.dims[1]);
                    let (out, launches) = on.record(|| ln.forward(on, &x, Affine::None));
                    out?;
                    row("LayerNorm fwd", 2, launches).print();
                }
            }
        }
        Ok(())
    }
}
