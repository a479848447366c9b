//! `--sweep`: every legal plan of a case, timed, beside what the planner predicts and picks.

use std::time::Instant;

use warpnorm::cuda::plan::{self, Choice, Plan};

use crate::{
    Noise,
    suite::Case,
    timing::{self, Cache, Machine, Outcome, SAMPLES},
    with_call,
};

/// A plan and what it takes, in microseconds.
struct Row {
    plan: Plan,
    predicted: f64,
    cold: f64,
    warm: f64,
}

pub(crate) fn all<M: Machine>(machine: &M, cases: &[Case]) -> Outcome {
    let mut noise = Noise::default();
    let start = Instant::now();
    for (i, case) in cases.iter().enumerate() {
        eprintln!("[{}/{}, {} s] {}", i + 1, cases.len(), start.elapsed().as_secs(), case.name());
        let [copy, _] = timing::time_copy(machine, case.floor_bytes(), SAMPLES)?;
        with_call(machine, case, &mut noise, &mut |call| {
            call()?;
            let picked = choice()?;
            let mut rows = Vec::new();
            for index in 0..picked.candidates {
                let this = Box::new(|| plan::with_candidate(index, &mut *call));
                let mut timer = machine.timer(this)?;
                let Choice { plan, seconds, .. } = choice()?;
                let mut time = |cache| timer.time(cache, SAMPLES).map(timing::median);
                let (cold, warm) = (time(Cache::Cold)?, time(Cache::Warm)?);
                rows.push(Row { plan, predicted: seconds * 1e6, cold, warm });
            }
            print(case, copy, picked.fastest, &rows);
            Ok(())
        })?;
    }
    Ok(())
}

fn choice() -> Outcome<Choice> {
    plan::last_choice().ok_or_else(|| "nothing to sweep: this call does not choose among plans".into())
}

fn print(case: &Case, copy: f64, picked: usize, rows: &[Row]) {
    println!("\n{}, a copy of the same bytes: {copy:.1} us", case.name());
    println!("{:>12}{:>10}{:>10}{:>12}  plan", "predicted us", "cold us", "warm us", "copy / cold");
    let fastest = rows.iter().map(|row| row.cold).fold(f64::INFINITY, f64::min);
    for (index, Row { plan, predicted, cold, warm }) in rows.iter().enumerate() {
        let marks = match (index == picked, *cold == fastest) {
            (true, true) => "  <- picked, fastest",
            (true, false) => "  <- picked",
            (false, true) => "  <- fastest",
            (false, false) => "",
        };
        println!("{predicted:>12.1}{cold:>10.1}{warm:>10.1}{:>12.2}  {plan:?}{marks}", copy / cold);
    }
}
