//! This crate's worker: the calls of `cargo bench`. With `--calls N CASE` it makes so many calls of a case and no
//! conversation, for tools/instruction-counts.

#[allow(dead_code)]
#[path = "../../../../norms/calls.rs"]
mod calls;
#[path = "../../../../norms/noise.rs"]
mod noise;
mod serve;
#[allow(dead_code)]
#[path = "../../../../norms/suite.rs"]
mod suite;

use calls::Problem;
use noise::{Noise, enough};
use serve::{Outcome, Outputs, serve};
use suite::{Case, Extent, Type};
use warpnorm::{Cpu, Element};

impl<T: Element> serve::Problem for Problem<T, Cpu> {
    fn call(&mut self) -> Outcome {
        Ok(self.enqueue()?)
    }

    fn outputs(&mut self) -> Outcome<Outputs> {
        Ok(Problem::outputs(self)?)
    }
}

fn prepare(case: &Case, noise: &mut Noise) -> Outcome<Box<dyn serve::Problem>> {
    fn typed<T: Element>(case: &Case, noise: &mut Vec<T>) -> Outcome<Box<dyn serve::Problem>> {
        Ok(Box::new(Problem::new(&Cpu, case, enough(noise, case.len()))?))
    }
    match case.ty {
        Type::F32 => typed(case, &mut noise.f32),
        Type::F16 => typed(case, &mut noise.f16),
        Type::Bf16 => typed(case, &mut noise.bf16),
    }
}

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut noise = Noise::default();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => serve("of this tree", |case| prepare(case, &mut noise)),
        ["--calls", calls, name] => {
            let case = suite::cases(Extent::Test).into_iter().find(|case| case.name() == name);
            let mut problem = prepare(&case.ok_or("no such case")?, &mut noise)?;
            (0..calls.parse()?).try_for_each(|_| problem.call())
        }
        _ => Err("warpnorm [--calls N CASE]".into()),
    }
}
