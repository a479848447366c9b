//! The kernels for the GPU: finds nvcc, compiles each .cu on its own, links cudart statically.

use super::{Result, cargo_var, out_dir, sources};
use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Machine code is made for these unless `WARPNORM_CUDA_ARCHS` says otherwise; PTX of the newest serves
/// the GPUs that come later.
const DEFAULT_ARCHS: &str = "75;80;90";
/// Each names the root of a toolkit.
const ROOT_VARS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
const LOOKED_FOR: &str = "looked at NVCC, at bin/nvcc under CUDA_HOME, CUDA_PATH, CUDA_ROOT and \
    CUDA_TOOLKIT_ROOT_DIR, at PATH, /usr/local/cuda, and nvcc's Python package in VIRTUAL_ENV";

/// Builds and links `warpnorm_kernels_cuda`, or leaves it out with a warning where there is no nvcc.
pub(crate) fn build() -> Result<()> {
    for var in ROOT_VARS.iter().chain(&["NVCC", "VIRTUAL_ENV", "WARPNORM_CUDA_ARCHS"]) {
        println!("cargo:rerun-if-env-changed={var}");
    }
    let wanted = wanted_archs()?;
    match find_toolkit() {
        Ok(toolkit) => compile(&toolkit, &wanted),
        Err(reason) if cfg!(feature = "require-cuda") => Err(format!(
            "{reason}; feature `require-cuda` needs one: install the CUDA toolkit and set CUDA_HOME to it"
        )),
        Err(reason) => {
            println!("cargo:warning={reason}; the GPU kernels are left out");
            // A PATH that changes would otherwise not be looked at again. Once nvcc is found it is not
            // watched: every shell and editor has a different one, and each would compile the kernels anew.
            println!("cargo:rerun-if-env-changed=PATH");
            Ok(())
        }
    }
}

/// The architectures that the user asks for, ascending.
fn wanted_archs() -> Result<Vec<u32>> {
    let text = match env::var("WARPNORM_CUDA_ARCHS") {
        Ok(text) => text,
        Err(env::VarError::NotPresent) => DEFAULT_ARCHS.into(),
        Err(e) => return Err(format!("WARPNORM_CUDA_ARCHS: {e}")),
    };
    let parsed: std::result::Result<Vec<u32>, _> =
        text.split([';', ',']).map(|arch| arch.trim().parse()).collect();
    let mut archs = parsed.map_err(|_| {
        format!("WARPNORM_CUDA_ARCHS is `{text}`; expected numbers between `;`, as in `{DEFAULT_ARCHS}`")
    })?;
    archs.sort_unstable();
    archs.dedup();
    Ok(archs)
}

/// An nvcc that answers.
struct Toolkit {
    nvcc: PathBuf,
    root: PathBuf,
    version: String,
    archs: Vec<u32>,
}

/// The first nvcc that answers. One that does not is passed over with a warning.
fn find_toolkit() -> Result<Toolkit> {
    if cargo_var("CARGO_CFG_TARGET_OS")? != "linux" {
        return Err("the GPU kernels are built for Linux only".into());
    }
    for nvcc in nvcc_candidates().into_iter().filter(|nvcc| nvcc.is_file()) {
        match probe(&nvcc) {
            Ok(toolkit) => return Ok(toolkit),
            Err(reason) => println!("cargo:warning={} is no usable nvcc: {reason}", nvcc.display()),
        }
    }
    Err(format!("no nvcc found ({LOOKED_FOR})"))
}

/// Where an nvcc may be, most explicit first.
fn nvcc_candidates() -> Vec<PathBuf> {
    let path: Vec<PathBuf> = env::var_os("PATH").map(|p| env::split_paths(&p).collect()).unwrap_or_default();
    let on_path = |name: &OsStr| -> Vec<PathBuf> { path.iter().map(|dir| dir.join(name)).collect() };
    let roots = ROOT_VARS.iter().filter_map(env::var_os).map(PathBuf::from);

    let mut candidates = Vec::new();
    match env::var_os("NVCC").map(PathBuf::from) {
        Some(nvcc) if nvcc.components().count() == 1 => candidates.extend(on_path(nvcc.as_os_str())),
        Some(nvcc) => candidates.push(nvcc),
        None => {}
    }
    candidates.extend(roots.map(|root| root.join("bin/nvcc")));
    candidates.extend(on_path(OsStr::new("nvcc")));
    candidates.push("/usr/local/cuda/bin/nvcc".into());
    if let Some(venv) = env::var_os("VIRTUAL_ENV") {
        candidates.extend(packaged_nvcc(Path::new(&venv)));
    }
    candidates
}

/// nvcc's Python package puts it at `lib/pythonX.Y/site-packages/nvidia/cu13/bin/nvcc`.
fn packaged_nvcc(venv: &Path) -> Vec<PathBuf> {
    let Ok(pythons) = fs::read_dir(venv.join("lib")) else { return Vec::new() };
    let packages = pythons.flatten().map(|python| python.path().join("site-packages/nvidia"));
    packages.flat_map(|nvidia| ["cu13", "cuda_nvcc"].map(|name| nvidia.join(name).join("bin/nvcc"))).collect()
}

/// Asks an nvcc for its version and architectures.
fn probe(nvcc: &Path) -> Result<Toolkit> {
    let version = ask(nvcc, "--version")?;
    let version = version.split_once("release ").and_then(|(_, rest)| rest.split_once(','));
    let (version, _) = version.ok_or("`--version` names no release")?;
    let archs = ask(nvcc, "--list-gpu-code")?;
    let archs = archs.lines().filter_map(|line| line.trim().strip_prefix("sm_")?.parse().ok()).collect();
    // The path may be a link into the toolkit; the libraries lie beside the real one.
    let real = fs::canonicalize(nvcc).map_err(|e| e.to_string())?;
    let root = real.ancestors().nth(2).ok_or("it lies in no toolkit")?;
    Ok(Toolkit { nvcc: nvcc.into(), root: root.into(), version: version.trim().into(), archs })
}

fn ask(nvcc: &Path, question: &str) -> Result<String> {
    let output = Command::new(nvcc).arg(question).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("`{question}`: {}", output.status))
    }
}

fn compile(toolkit: &Toolkit, wanted: &[u32]) -> Result<()> {
    let (archs, unknown): (Vec<u32>, Vec<u32>) = wanted.iter().partition(|arch| toolkit.archs.contains(arch));
    let (nvcc, version) = (toolkit.nvcc.display(), &toolkit.version);
    let Some(newest) = archs.last() else {
        return Err(format!("{nvcc} (CUDA {version}) knows none of the architectures {wanted:?}"));
    };
    if !unknown.is_empty() {
        println!("cargo:warning={nvcc} (CUDA {version}) knows no architecture {unknown:?}; left out");
    }
    println!("cargo:rerun-if-changed={nvcc}");

    let mut nvcc = nvcc_build(toolkit, &out_dir("cuda")?)?;
    for arch in &archs {
        nvcc.flag("-gencode").flag(format!("arch=compute_{arch},code=sm_{arch}"));
    }
    nvcc.flag("-gencode").flag(format!("arch=compute_{newest},code=compute_{newest}"));
    // An eighth of the size, mostly that of the line tables. Before CUDA 13 there are drivers that nvcc's
    // other code still runs with and that cannot unpack this.
    if version.split('.').next().and_then(|major| major.parse().ok()).is_some_and(|major: u32| major >= 13) {
        nvcc.flag("--compress-mode=size");
    }

    // Given several files at once, `cc` makes relocatable device code and a device link, which cost
    // speed and gain nothing here.
    let mut objects = Vec::new();
    for file in sources("kernels", "cu")? {
        let made = nvcc.clone().file(&file).try_compile_intermediates();
        objects.extend(made.map_err(|e| format!("{}: {e}", file.display()))?);
    }
    cc::Build::new()
        .out_dir(out_dir("cuda")?)
        .objects(objects)
        .try_compile("warpnorm_kernels_cuda")
        .map_err(|e| format!("cannot archive the GPU kernels: {e}"))?;

    link_cudart(toolkit)?;
    let archs: Vec<String> = archs.iter().map(u32::to_string).collect();
    println!("cargo:rustc-env=WARPNORM_CUDA_VERSION={version}");
    println!("cargo:rustc-env=WARPNORM_CUDA_ARCHS={}", archs.join(";"));
    println!("cargo:rustc-cfg=wn_cuda_kernels");
    Ok(())
}

/// nvcc with every flag but the architectures.
fn nvcc_build(toolkit: &Toolkit, out: &Path) -> Result<cc::Build> {
    // SAFETY: a build script has one thread up to here. `cc` takes the path of nvcc from nowhere else.
    unsafe { env::set_var("NVCC", &toolkit.nvcc) };
    let mut build = cc::Build::new();
    build
        .cuda(true)
        .cudart("none") // `cc` knows one folder layout only, see `link_cudart`
        .debug(false) // or `cc` passes -G in the dev profile: device code without optimization
        .opt_level(3)
        .warnings(false) // nvcc's generated host code is full of them
        .out_dir(out)
        .include("kernels")
        .flag("-std=c++17")
        .flag("-lineinfo") // for profilers; it costs no speed
        .flag(format!("--threads={}", cargo_var("NUM_JOBS")?))
        // The stubs that nvcc 13 generates hold a guarded static, which would need libstdc++. This
        // undocumented macro, seen by the host compiler only, selects the older stubs without one.
        // tools/codegen-check notices if it ever stops working.
        .flag("-Xcompiler")
        .flag("-fno-exceptions,-fno-rtti,-D__NV_LEGACY_LAUNCH");
    Ok(build)
}

/// Links the CUDA runtime statically: the program then runs, and says so, where there is no driver.
fn link_cudart(toolkit: &Toolkit) -> Result<()> {
    let arch = cargo_var("CARGO_CFG_TARGET_ARCH")?;
    let (targets, debian) = (format!("targets/{arch}-linux/lib"), format!("lib/{arch}-linux-gnu"));
    let dirs =
        ["lib64", &targets, "targets/sbsa-linux/lib", "lib", &debian].map(|dir| toolkit.root.join(dir));
    let dir = dirs.iter().find(|dir| dir.join("libcudart_static.a").is_file());
    let dir = dir.ok_or_else(|| format!("no libcudart_static.a under {}", toolkit.root.display()))?;
    println!("cargo:rustc-link-search=native={}", dir.display());
    // Not bundled, so that a program with another crate's static cudart still has only one.
    println!("cargo:rustc-link-lib=static:-bundle=cudart_static");
    for lib in ["dl", "rt", "pthread"] {
        println!("cargo:rustc-link-lib=dylib={lib}");
    }
    Ok(())
}
