//! The same kernels for the emulator, with the host's C++ compiler.

use super::{Result, out_dir, sources};
use std::path::{Path, PathBuf};

/// Builds and links `warpnorm_kernels_emulated`: kernels, planted faults and the emulator itself.
pub(crate) fn build() -> Result<()> {
    let checked = cfg!(feature = "emulator-check");
    let mut kernels = compiler(checked);
    kernels.flag("-x").flag("c++"); // or the compiler takes a .cu for CUDA or for a linker script
    if checked {
        // The sanitizers' instrumentation without their libraries: the emulator's checker answers the
        // calls. -O1, since a stronger optimizer merges accesses, and a merged access is not seen.
        kernels.opt_level(1).debug(true).flag("-fsanitize=thread,undefined").flag("-fno-sanitize=vptr");
    }
    let faults = Path::new("emulator/faults");
    let mut kernel_sources = sources("kernels", "cu")?;
    if faults.is_dir() {
        kernel_sources.extend(sources("emulator/faults", "cu")?);
    }

    let mut objects = compile(&kernels, &kernel_sources, &out_dir("emulated/kernels")?)?;
    objects.extend(compile(&compiler(checked), &sources("emulator", "cpp")?, &out_dir("emulated")?)?);
    cc::Build::new()
        .cpp(true) // links the C++ standard library, after this archive
        .out_dir(out_dir("emulated")?)
        .objects(objects)
        .try_compile("warpnorm_kernels_emulated")
        .map_err(|e| format!("cannot archive the emulated kernels: {e}"))?;
    println!("cargo:rustc-cfg=wn_emulated_kernels");
    Ok(())
}

/// The host's C++ compiler with the flags that every file gets.
fn compiler(checked: bool) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .opt_level(2) // in the dev profile too: the tests run on it
        .warnings(true)
        .extra_warnings(true)
        .flag("-std=c++17")
        .flag("-Wno-unknown-pragmas") // #pragma unroll
        .include("kernels")
        .include("emulator");
    if checked {
        build.define("WN_EMULATOR_CHECK", None);
    }
    build
}

fn compile(build: &cc::Build, files: &[PathBuf], out: &Path) -> Result<Vec<PathBuf>> {
    let made = build.clone().out_dir(out).files(files).try_compile_intermediates();
    made.map_err(|e| format!("the emulated kernels: {e}"))
}
