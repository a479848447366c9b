//! Compiles `kernels/*.cu` into static libraries: with nvcc for the GPU (feature `cuda`), and with the
//! host's C++ compiler for the emulator (feature `emulator`). Each sets a cfg when its library exists.

#[path = "build/cuda.rs"]
mod cuda;
#[path = "build/emulator.rs"]
mod emulator;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::exit,
};

/// A build step's outcome; the error is a sentence for the user.
type Result<T> = std::result::Result<T, String>;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(wn_cuda_kernels)");
    println!("cargo:rustc-check-cfg=cfg(wn_emulated_kernels)");
    for path in ["build.rs", "build", "kernels", "emulator"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    // docs.rs has no nvcc, and documentation needs no kernels.
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    if let Err(message) = build_kernels() {
        eprintln!("error: {message}");
        exit(1);
    }
}

fn build_kernels() -> Result<()> {
    if cfg!(feature = "cuda") {
        cuda::build()?;
    }
    if cfg!(feature = "emulator") {
        emulator::build()?;
    }
    Ok(())
}

/// The files of `dir` with this extension, sorted, so that the same sources make the same library.
fn sources(dir: &str, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| format!("cannot list {dir}/: {e}"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    Ok(files)
}

/// Cargo's output directory of this build, or a folder in it. Each flavor of the kernels has one of its
/// own: `cc` names objects after their sources, which the flavors share.
fn out_dir(flavor: &str) -> Result<PathBuf> {
    let root = cargo_var("OUT_DIR")?;
    let dir = Path::new(&root).join(flavor);
    fs::create_dir_all(&dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
    Ok(dir)
}

/// A variable that cargo sets for every build script.
fn cargo_var(name: &str) -> Result<String> {
    env::var(name).map_err(|e| format!("{name}: {e}; run this through cargo"))
}
