//! What both examples share: the digits, the training loop, and the picture.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fs,
    path::Path,
    time::Instant,
};

use candle::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss::cross_entropy};
use plotters::prelude::*;

pub(crate) const CLASSES: usize = 10;
const BATCH: usize = 64;
const EPOCHS: usize = 12;
const TRAIN: usize = 1347;
const LEARNING_RATE: f64 = 2e-3;

/// Images of 8 by 8 pixels, and which digits they are.
struct Digits {
    pixels: Tensor,
    classes: Tensor,
}

/// The set in two parts, the same in every run.
fn load() -> Result<[Digits; 2]> {
    let mut lines: Vec<&str> = include_str!("../../../../examples/digits/digits.csv").lines().collect();
    // The file's order is not random. A linear congruential generator (Knuth's MMIX) is enough to shuffle it.
    let mut state = 1797u64;
    for last in (1..lines.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        lines.swap(last, (state >> 33) as usize % (last + 1));
    }
    let part = |lines: &[&str]| -> Result<Digits> {
        let (mut pixels, mut classes) = (Vec::new(), Vec::new());
        for line in lines {
            let values: Vec<u8> =
                line.split(',').map(|v| v.parse().expect("digits.csv holds numbers")).collect();
            let (class, levels) = values.split_last().expect("digits.csv has no empty lines");
            pixels.extend(levels.iter().map(|&level| f32::from(level) / 16.0));
            classes.push(u32::from(*class));
        }
        let len = classes.len();
        Ok(Digits {
            pixels: Tensor::from_vec(pixels, (len, 8, 8), &Device::Cpu)?,
            classes: Tensor::from_vec(classes, len, &Device::Cpu)?,
        })
    };
    let (train, test) = lines.split_at(TRAIN);
    Ok([part(train)?, part(test)?])
}

/// A network of `[samples, 8, 8]` to logits.
pub(crate) trait Network {
    fn logits(&self, pixels: &Tensor, train: bool) -> Result<Tensor>;
}

/// One training of a network.
pub(crate) struct Run {
    name: &'static str,
    losses: Vec<f32>,
}

/// How a network is made of variables.
pub(crate) type Make<'a> = &'a dyn Fn(VarBuilder) -> Result<Box<dyn Network>>;

/// Trains each of the networks from the same values of their variables, which must have the same names.
pub(crate) fn train(networks: &[(&'static str, Make<'_>)]) -> Result<Vec<Run>> {
    let [train, test] = load()?;
    let mut start = HashMap::new();
    let mut runs = Vec::new();
    for (name, make) in networks {
        let vars = VarMap::new();
        let network = make(VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
        for (name, var) in vars.data().lock().unwrap().iter() {
            match start.get(name) {
                Some(values) => var.set(values)?,
                None => drop(start.insert(name.clone(), var.as_tensor().copy()?)),
            }
        }
        println!("{name}");
        runs.push(train_one(name, &vars, network.as_ref(), &train, &test)?);
    }
    Ok(runs)
}

fn train_one(
    name: &'static str,
    vars: &VarMap,
    network: &dyn Network,
    train: &Digits,
    test: &Digits,
) -> Result<Run> {
    let params = ParamsAdamW { lr: LEARNING_RATE, ..ParamsAdamW::default() };
    let mut optimizer = AdamW::new(vars.all_vars(), params)?;
    let mut losses = Vec::new();
    let start = Instant::now();
    for epoch in 0..EPOCHS {
        for first in (0..TRAIN - BATCH).step_by(BATCH) {
            let logits = network.logits(&train.pixels.narrow(0, first, BATCH)?, true)?;
            let loss = cross_entropy(&logits, &train.classes.narrow(0, first, BATCH)?)?;
            let grads = loss.backward()?;
            if epoch == 0 && first == 0 {
                print_gradient_norms(vars, &grads)?;
            }
            optimizer.step(&grads)?;
            losses.push(loss.to_scalar()?);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let right = network.logits(&test.pixels, false)?.argmax(1)?.eq(&test.classes)?;
    let right = right.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()?;
    let last = losses[losses.len() - 20..].iter().sum::<f32>() / 20.0;
    println!("  loss {last:.4} at last, {:.1} % of the test images right, {seconds:.1} s\n", 100.0 * right);
    Ok(Run { name, losses })
}

/// The gradients of the first step, by the first part of the variables' names.
fn print_gradient_norms(vars: &VarMap, grads: &candle::backprop::GradStore) -> Result<()> {
    let mut norms = BTreeMap::<String, (f64, usize, usize)>::new();
    for (name, var) in vars.data().lock().unwrap().iter() {
        if name.contains("running_") {
            continue;
        }
        let (squares, without, all) =
            norms.entry(name.rsplit_once('.').map_or("", |n| n.0).to_owned()).or_default();
        *all += 1;
        match grads.get(var) {
            Some(grad) => *squares += grad.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?,
            None => *without += 1,
        }
    }
    for (name, (squares, without, all)) in norms {
        let lost = if without > 0 { format!(", none for {without} of {all}") } else { String::new() };
        println!("  gradient of {name}: norm {:.4}{lost}", squares.sqrt());
    }
    Ok(())
}

/// Writes the loss curves, means over a third of an epoch.
pub(crate) fn plot(path: &Path, title: &str, runs: &[Run]) -> std::result::Result<(), Box<dyn Error>> {
    const COLORS: [RGBColor; 2] = [RGBColor(213, 94, 0), RGBColor(0, 114, 178)];
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let picture = SVGBackend::new(path, (760, 460)).into_drawing_area();
    picture.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&picture)
        .margin(12)
        .caption(title, ("sans-serif", 20))
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..EPOCHS as f32, (1e-3f32..4.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc("training loss")
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    for (run, color) in runs.iter().zip(COLORS) {
        let steps = run.losses.len() / EPOCHS;
        let points = run.losses.chunks(steps / 3).enumerate().map(|(i, losses)| {
            let mean = losses.iter().sum::<f32>() / losses.len() as f32;
            ((i * (steps / 3)) as f32 / steps as f32, mean.clamp(1e-3, 4.0))
        });
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(run.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerLeft).draw()?;
    picture.present()?;
    println!("loss curves: {}", path.display());
    Ok(())
}
