//! Weights that `candle_nn`'s layers have saved, and running statistics that these have moved.

use candle::{DType, Device, Module, ModuleT, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use warpnorm_candle as ours;

use super::{assert_near, devices, flat, tensor};

/// A file of its own, which is removed.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("warpnorm-candle-{}-{name}.safetensors", std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

/// Gives variables other values than they are made with.
fn stir(vars: &VarMap) -> Result<()> {
    for (name, var) in vars.data().lock().unwrap().iter() {
        let values = tensor(var.dims(), name.len(), var.device()).abs()?.to_dtype(var.dtype())?;
        var.set(&(values + 0.5)?)?;
    }
    Ok(())
}

#[test]
fn the_same_file_gives_the_same_layers() -> Result<()> {
    for device in devices() {
        let (vars, file) = (VarMap::new(), File::new("layers"));
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &device);
        let theirs = (
            candle_nn::layer_norm(8, 1e-5, vb.pp("ln"))?,
            candle_nn::layer_norm_no_bias(8, 1e-5, vb.pp("ln_no_bias"))?,
            candle_nn::rms_norm(8, 1e-5, vb.pp("rms"))?,
            candle_nn::batch_norm(6, 1e-5, vb.pp("bn"))?,
            candle_nn::group_norm(3, 6, 1e-5, vb.pp("gn"))?,
        );
        stir(&vars)?;
        vars.save(&file.0)?;
        // SAFETY: nobody else writes the file while it is mapped.
        let vb = unsafe { VarBuilder::from_mmaped_safetensors(&[&file.0], DType::F32, &device)? };
        let layers = (
            ours::layer_norm(8, 1e-5, vb.pp("ln"))?,
            ours::layer_norm_no_bias(8, 1e-5, vb.pp("ln_no_bias"))?,
            ours::rms_norm(8, 1e-5, vb.pp("rms"))?,
            ours::batch_norm(6, 1e-5, vb.pp("bn"))?,
            ours::group_norm(3, 6, 1e-5, vb.pp("gn"))?,
        );
        // candle_nn's layers were made before the variables were stirred, but hold the same ones.
        let x = tensor(&[5, 6, 8], 1, &device);
        assert_near("LayerNorm", &layers.0.forward(&x)?, &theirs.0.forward(&x)?, 2e-6);
        assert_near("LayerNorm without bias", &layers.1.forward(&x)?, &theirs.1.forward(&x)?, 2e-6);
        assert_near("RmsNorm", &layers.2.forward(&x)?, &theirs.2.forward(&x)?, 2e-6);
        for train in [false, true, false] {
            assert_near("BatchNorm", &layers.3.forward_t(&x, train)?, &theirs.3.forward_t(&x, train)?, 2e-6);
        }
        assert_near("running mean", layers.3.running_mean(), theirs.3.running_mean(), 2e-6);
        assert_near("running variance", layers.3.running_var(), theirs.3.running_var(), 2e-6);
        assert_near("GroupNorm", &layers.4.forward(&x)?, &theirs.4.forward(&x)?, 2e-6);
    }
    Ok(())
}

#[test]
fn running_statistics_are_saved_and_loaded() -> Result<()> {
    for device in devices() {
        let (vars, file) = (VarMap::new(), File::new("running"));
        let layer = ours::batch_norm(6, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &device))?;
        layer.forward_t(&tensor(&[5, 6, 8], 1, &device), true)?;
        let moved = flat(layer.running_mean());
        assert!(moved.iter().all(|v| *v != 0.0));
        vars.save(&file.0)?;

        let mut vars = VarMap::new();
        let layer = ours::batch_norm(6, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &device))?;
        assert_eq!(flat(layer.running_mean()), [0.0; 6]);
        vars.load(&file.0)?;
        assert_eq!(flat(layer.running_mean()), moved);
    }
    Ok(())
}

#[test]
fn instance_norm_has_parameters_where_it_is_asked_for_them() -> Result<()> {
    let device = &Device::Cpu;
    let x = tensor(&[2, 3, 8], 1, device);
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, device);
    let plain = ours::instance_norm(3, 1e-5, vb.clone())?;
    assert!(vars.all_vars().is_empty() && plain.weight_and_bias().is_none());
    let config = ours::InstanceNormConfig { affine: true, ..Default::default() };
    let affine = ours::instance_norm(3, config, vb)?;
    assert_eq!(vars.all_vars().len(), 2);
    assert_near("ones and zeros", &affine.forward(&x)?, &plain.forward(&x)?, 0.0);
    Ok(())
}

/// A name that both crates have is ours, whichever way it is imported.
#[test]
fn no_name_leads_to_the_other_layers() -> Result<()> {
    let device = &Device::Cpu;
    let weight = || Tensor::ones(4, DType::F32, device);
    let _: ours::LayerNorm = ours::layer_norm::LayerNorm::new_no_bias(weight()?, 1e-5);
    let _: ours::RmsNorm = ours::layer_norm::RmsNorm::new(weight()?, 1e-5);
    let _: ours::GroupNorm = ours::group_norm::GroupNorm::new(weight()?, weight()?, 4, 2, 1e-5)?;
    let _: ours::BatchNorm = ours::batch_norm::BatchNorm::new_no_bias(4, weight()?, weight()?, 1e-5)?;
    let _: candle_nn::Linear = ours::Linear::new(weight()?, None);
    Ok(())
}
