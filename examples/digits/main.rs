//! Trains a small convolutional network on handwritten digits, with BatchNorm and without.
//!
//! ```text
//! cargo run --release --example digits
//! ```
//!
//! Three learning rates and two weight initializations, everything else the same: what Ioffe and Szegedy
//! (arXiv:1502.03167) promise is that BatchNorm trains where the plain network fails. Prints a table, writes the loss
//! curves to `target/digits.svg`, and fails if the promise is not kept. BatchNorm is warpnorm's (see `norm.rs`), on the
//! GPU if there is one; the rest is plain code that runs on the host.

mod data;
#[cfg(test)]
mod gradients;
mod layers;
mod matmul;
mod network;
mod norm;
mod plot;
mod rng;
mod train;

use std::{
    error::Error,
    num::NonZero,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use data::Digits;
use train::{EPOCHS, Record, Setting, train};
use warpnorm::{Backend, Cpu, Cuda};

/// Below this the plain network counts as failed.
const FAILED: f32 = 0.5;
/// Settings in which the plain network has to fail.
const FAILURES: usize = 2;

type Run = (Setting, Record);

fn main() -> ExitCode {
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("digits: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let digits = Digits::load();
    println!(
        "{} images to train with, {} to test with; {EPOCHS} epochs each",
        digits.train.len(),
        digits.test.len()
    );
    let runs = train_on_best_backend(&digits)?;
    print_table(&runs);
    let path = Path::new("target/digits.svg");
    plot::write(path, &runs)?;
    println!("\nLoss curves: {}. Took {:.1} s.", path.display(), start.elapsed().as_secs_f64());
    Ok(judge(&runs)?)
}

/// Runs BatchNorm on the GPU if it can be had, and says where and why.
fn train_on_best_backend(digits: &Digits) -> warpnorm::Result<Vec<Run>> {
    match Cuda::new(0) {
        Ok(cuda) => {
            println!("BatchNorm runs on the GPU: this build has the kernels and the machine a GPU for them");
            train_all(&cuda, digits)
        }
        Err(error) => {
            println!("BatchNorm runs on the CPU: {error}");
            train_all(&Cpu, digits)
        }
    }
}

/// Trains under every setting, as many at a time as there are cores. Each stays on one thread, so that the results do
/// not depend on their number.
fn train_all<B: Backend + Sync>(on: &B, digits: &Digits) -> warpnorm::Result<Vec<Run>> {
    let settings = Setting::all();
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut runs = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&setting) = settings.get(index) else { return Ok(runs) };
            let record = train(on, digits, setting)?;
            print_progress(finished.fetch_add(1, Ordering::Relaxed) + 1, settings.len(), setting, &record);
            runs.push((index, (setting, record)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(settings.len());
    let parts: warpnorm::Result<Vec<_>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("no worker panics")).collect()
    });
    let mut runs = parts?.concat();
    runs.sort_by_key(|(index, _)| *index);
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

fn print_progress(finished: usize, all: usize, setting: Setting, record: &Record) {
    let Setting { init, learning_rate, batch_norm } = setting;
    let network = if batch_norm { "BatchNorm" } else { "plain" };
    println!(
        "[{finished:2}/{all}] weights {init:8}  learning rate {learning_rate:<4}  {network:9}  test accuracy {:5.1} %",
        100.0 * record.final_accuracy(),
    );
}

fn print_table(runs: &[Run]) {
    println!();
    println!("                         test accuracy        epochs to 95 %");
    println!("weights   learning rate  BatchNorm    plain   BatchNorm    plain");
    for pair in runs.chunks_exact(2) {
        let [(setting, with), (_, without)] = pair else { unreachable!("chunks of two") };
        let percent = |record: &Record| format!("{:.1} %", 100.0 * record.final_accuracy());
        let epochs =
            |record: &Record| record.epochs_to_goal().map_or("never".into(), |epochs| epochs.to_string());
        println!(
            "{:8}  {:<13}  {:>9}  {:>7}   {:>9}  {:>7}",
            setting.init,
            setting.learning_rate,
            percent(with),
            percent(without),
            epochs(with),
            epochs(without),
        );
    }
}

/// Says whether BatchNorm trained everywhere and the plain network did not; the error is the condition that failed.
fn judge(runs: &[Run]) -> Result<(), String> {
    let (with, without): (Vec<_>, Vec<_>) = runs.iter().partition(|(setting, _)| setting.batch_norm);
    let reached = with.iter().filter(|(_, record)| record.epochs_to_goal().is_some()).count();
    let failed = without.iter().filter(|(_, record)| record.best_accuracy() < FAILED).count();
    if reached < with.len() {
        return Err(format!("BatchNorm reached 95 % in {reached} of {} settings only", with.len()));
    }
    if failed < FAILURES {
        return Err(format!(
            "the plain network stayed below 50 % in {failed} settings, not in {FAILURES} at least"
        ));
    }
    println!(
        "BatchNorm reached 95 % in all {reached} settings; the plain network stayed below 50 % in {failed}."
    );
    Ok(())
}
