//! Models of candle-transformers beside themselves with other norm layers, on the same weights.

use std::{env, fs};

use candle::{DType, Device, Module, ModuleT, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models;

/// What the models ask of their own crate.
mod utils {
    pub use candle_transformers::utils::build_causal_mask;
}

#[allow(dead_code)]
mod migrated {
    pub mod autoencoder;
    pub mod convnext;
    pub mod llama2_c;
    pub mod llama2_c_weights; // part of the model before
    pub mod resnet;
}

/// Runs both on weights that the first one's layers have saved, and says how far they are apart.
fn compare(
    name: &str,
    input: &Tensor,
    original: impl Fn(VarBuilder, &Tensor) -> Result<Tensor>,
    migrated: impl Fn(VarBuilder, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    let device = input.device();
    let (vars, file) =
        (VarMap::new(), env::temp_dir().join(format!("{name}-{}.safetensors", std::process::id())));
    original(VarBuilder::from_varmap(&vars, DType::F32, device), input)?;
    for (name, var) in vars.data().lock().unwrap().iter() {
        // Running statistics and weights of norms as they could be, and not those they begin with.
        if name.contains("running_var") || name.contains("norm") && name.ends_with("weight") {
            var.set(&Tensor::rand(0.5f32, 1.5, var.shape(), device)?)?;
        } else if name.contains("running_mean") || name.contains("norm") {
            var.set(&Tensor::randn(0f32, 0.1, var.shape(), device)?)?;
        }
    }
    vars.save(&file)?;
    // SAFETY: nobody else writes the file while it is mapped.
    let saved = || unsafe { VarBuilder::from_mmaped_safetensors(&[&file], DType::F32, device) };
    let (theirs, ours) = (original(saved()?, input)?, migrated(saved()?, input)?);
    let max = |t: &Tensor| -> Result<f32> { t.abs()?.flatten_all()?.max(0)?.to_scalar() };
    let apart = max(&(&theirs - &ours)?)? / max(&theirs)?;
    println!(
        "{name}: {} variables, output {:?}, {apart:.1e} of the largest value apart",
        vars.all_vars().len(),
        ours.dims()
    );
    assert!(apart < 1e-4, "{name}: too far apart");
    fs::remove_file(&file).ok();
    Ok(())
}

fn main() -> Result<()> {
    let device = &Device::Cpu;
    let image = Tensor::randn(0f32, 1.0, (2, 3, 64, 64), device)?;
    compare(
        "resnet18, BatchNorm",
        &image,
        |vb, x| models::resnet::resnet18(10, vb)?.forward_t(x, false),
        |vb, x| migrated::resnet::resnet18(10, vb)?.forward_t(x, false),
    )?;
    compare(
        "convnext, LayerNorm",
        &image,
        |vb, x| models::convnext::convnext(&models::convnext::Config::atto(), 10, vb)?.forward(x),
        |vb, x| migrated::convnext::convnext(&migrated::convnext::Config::atto(), 10, vb)?.forward(x),
    )?;
    let tokens = Tensor::arange(0u32, 48, device)?.reshape((2, 24))?;
    compare(
        "llama2_c, RmsNorm",
        &tokens,
        |vb, x| {
            let config = models::llama2_c::Config::tiny_260k();
            let mut cache = models::llama2_c::Cache::new(false, &config, vb.pp("rot"))?;
            models::llama2_c::Llama::load(vb, config)?.forward(x, 0, &mut cache)
        },
        |vb, x| {
            let config = migrated::llama2_c::Config::tiny_260k();
            let mut cache = migrated::llama2_c::Cache::new(false, &config, vb.pp("rot"))?;
            migrated::llama2_c::Llama::load(vb, config)?.forward(x, 0, &mut cache)
        },
    )?;
    let latent = Tensor::randn(0f32, 1.0, (1, 16, 8, 8), device)?;
    compare(
        "flux autoencoder, GroupNorm",
        &latent,
        |vb, x| {
            let config =
                models::flux::autoencoder::Config { ch: 32, ..models::flux::autoencoder::Config::dev() };
            models::flux::autoencoder::AutoEncoder::new(&config, vb)?.decode(x)
        },
        |vb, x| {
            let config = migrated::autoencoder::Config { ch: 32, ..migrated::autoencoder::Config::dev() };
            migrated::autoencoder::AutoEncoder::new(&config, vb)?.decode(x)
        },
    )
}
