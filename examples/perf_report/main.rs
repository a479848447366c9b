//! Joins what `cargo bench` left with what `benches/peers/run.py` did.
//!
//! ```text
//! cargo run --release --example perf_report -- OWN.json [PEERS.json...] FOLDER
//! ```
//!
//! leaves `report.md`, `report.json`, `share_of_copy.svg` and `ratio_to_best_peer.svg` in the folder. A peer that could
//! not be measured is named in them.

mod join;
mod markdown;
mod plots;
#[path = "../../benches/norms/results.rs"]
mod results;

use std::{env, error::Error, fs, path::Path, process::ExitCode};

use results::Run;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [own, peers @ .., folder] = args.as_slice() else {
        eprintln!("usage: perf_report OWN.json [PEERS.json...] FOLDER");
        return ExitCode::from(2);
    };
    match report(own, peers, Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn report(own: &str, peers: &[String], folder: &Path) -> Result<(), Box<dyn Error>> {
    let peers = peers.iter().map(|path| read(path)).collect::<Result<Vec<Run>, _>>()?;
    let report = join::join(&read(own)?, &peers);
    fs::create_dir_all(folder)?;
    fs::write(folder.join("report.md"), markdown::page(&report)?)?;
    fs::write(folder.join("report.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    plots::share_of_copy(&folder.join("share_of_copy.svg"), &report)?;
    plots::ratio_to_best_peer(&folder.join("ratio_to_best_peer.svg"), &report)?;
    let slower = report.rows.iter().filter(|row| row.slower()).count();
    println!("{}: {} cases, {slower} slower than the best peer", folder.display(), report.rows.len());
    Ok(())
}

fn read(path: &str) -> Result<Run, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?)
}
