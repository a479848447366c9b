//! How many bytes the kernels move, beside the least that any kernel must: what the emulator counted, per op,
//! direction, layout, type and shape.
//!
//! `cargo run --release --no-default-features --features emulator-check --example traffic`
//!
//! The floor is every tensor of the call that is not per channel, row or column, read or written once. Every read
//! counts, also one that a GPU answers from its caches: that of a kernel that reads its input twice, and those of
//! statistics and parameters, which each thread makes for its channel and each row norm for its row. bf16 moves what
//! f16 does.
//!
//! `dram/floor` has what is left of these bytes behind an L2 cache of 256 KiB, empty before the call, by the model in
//! `emulator/README.md`.

#[cfg(feature = "emulator-check")]
mod table;

#[cfg(not(feature = "emulator-check"))]
fn main() -> std::process::ExitCode {
    eprintln!("bytes are counted with the feature `emulator-check`: add `--features emulator-check`");
    std::process::ExitCode::FAILURE
}

#[cfg(feature = "emulator-check")]
fn main() -> warpnorm::Result<()> {
    for rows in [table::channel_norms()?, table::row_norms()?] {
        let mut shape = "";
        for row in &rows {
            if row.shape != shape {
                shape = &row.shape;
                println!(
                    "\n{shape:<40}{:<6}{:<14}{:>12}{:>12}{:>8}{:>12}{:>10}  kernels",
                    "type", "strategy", "bytes read", "written", "/floor", "dram/floor", "launches"
                );
            }
            println!(
                "{:<40}{:<6}{:<14}{:>12}{:>12}{:>8.3}{:>12.3}{:>10}  {}",
                row.op,
                format!("{:?}", row.dtype).to_lowercase(),
                row.strategy,
                row.read,
                row.written,
                row.raw(),
                row.dram(),
                row.launches,
                row.kernels
            );
        }
    }
    Ok(())
}
