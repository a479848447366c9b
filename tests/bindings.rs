//! The checked-in bindings are what bindgen makes of the headers.

use std::{env, fs, path::Path, process::Command};

/// Bindings of one header, or `None` where there is no libclang.
fn generate(header: &Path) -> Option<String> {
    // A libclang without clang has no headers of its own; those of the C compiler serve.
    let include = Command::new("cc").arg("-print-file-name=include").output().ok();
    let include = include.map(|o| format!("-isystem{}", String::from_utf8_lossy(&o.stdout).trim()));
    let header = header.to_str()?.to_owned();
    // bindgen panics where it finds no libclang.
    let bindings = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header(header)
            .clang_args(include)
            .allowlist_function("wn_.*")
            .allowlist_type("wn_.*")
            .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
            .derive_debug(true)
            .derive_default(false)
            .merge_extern_blocks(true)
            .generate_comments(false)
            .layout_tests(true)
            .use_core()
            .rust_target("1.85".parse().unwrap())
            .rust_edition(bindgen::RustEdition::Edition2024)
            .formatter(bindgen::Formatter::Prettyplease)
            .generate()
            .expect("the header is plain C")
    });
    bindings.ok().map(|b| b.to_string())
}

fn check(header: &str, checked_in: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(fresh) = generate(&root.join(header)) else {
        assert!(
            env::var_os("WARPNORM_REQUIRE_LIBCLANG").is_none(),
            "WARPNORM_REQUIRE_LIBCLANG is set and there is no libclang"
        );
        eprintln!("skipped: no libclang");
        return;
    };
    let path = root.join(checked_in);
    if env::var_os("WARPNORM_BLESS").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let old = fs::read_to_string(&path).unwrap_or_default();
    assert!(old == fresh, "{checked_in} is not what bindgen makes of {header}: run with WARPNORM_BLESS=1");
}

#[test]
fn cuda_bindings_match_the_header() {
    check("kernels/warpnorm.h", "src/cuda/sys.rs");
}

#[test]
fn emulator_bindings_match_the_header() {
    check("emulator/warpnorm_emulator.h", "src/emulated/sys.rs");
}
