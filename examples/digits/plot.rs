//! The loss curves as a picture: a panel for each initialization and learning rate, with BatchNorm and without.

use std::{error::Error, fs, ops::Range, path::Path};

use plotters::{coord::Shift, prelude::*};

use crate::{
    Run,
    train::{EPOCHS, LEARNING_RATES, POINTS_PER_EPOCH, Record, Setting},
};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Outcome = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (1080, 700);
const TITLE: &str = "Digits: training loss with BatchNorm and without";
const NOTE: &str = "Means over a third of an epoch. Losses beyond the axis are drawn at its edge; \
    a curve ends where the loss is no longer finite.";
/// The losses shown, on a logarithmic axis.
const LOSSES: Range<f32> = 1e-4..10.0;
const BATCH_NORM: RGBColor = RGBColor(0, 114, 178);
const PLAIN: RGBColor = RGBColor(213, 94, 0);

/// Writes the picture, and makes its folder where there is none.
pub(crate) fn write(path: &Path, runs: &[Run]) -> Outcome {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let picture = SVGBackend::new(path, SIZE).into_drawing_area();
    picture.fill(&WHITE)?;
    let picture = picture.margin(8, 0, 0, 8);
    let (note, panels) = picture.titled(TITLE, ("sans-serif", 22))?.split_vertically(22);
    note.draw(&Text::new(NOTE, (16, 0), ("sans-serif", 14)))?;
    let columns = LEARNING_RATES.len();
    let panels = panels.split_evenly((runs.len() / 2 / columns, columns));
    for (panel, pair) in panels.iter().zip(runs.chunks_exact(2)) {
        draw_panel(panel, pair)?;
    }
    picture.present()?;
    Ok(())
}

/// Draws the runs of one initialization and learning rate.
fn draw_panel(panel: &Area<'_>, runs: &[Run]) -> Outcome {
    let Setting { init, learning_rate, .. } = runs[0].0;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .caption(format!("weights {init}, learning rate {learning_rate}"), ("sans-serif", 16))
        .x_label_area_size(38)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..EPOCHS as f32, LOSSES.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc("training loss")
        .x_labels(4)
        .x_label_formatter(&|epoch| format!("{epoch:.0}"))
        .y_label_formatter(&|loss| format!("{loss}"))
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    for (setting, record) in runs {
        let (name, color) = if setting.batch_norm { ("BatchNorm", BATCH_NORM) } else { ("plain", PLAIN) };
        chart
            .draw_series(LineSeries::new(points(record), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

/// Epochs passed and loss, as far as the loss is finite.
fn points(record: &Record) -> impl Iterator<Item = (f32, f32)> {
    let finite = record.losses.iter().take_while(|loss| loss.is_finite());
    finite.enumerate().map(|(i, loss)| {
        let epoch = (i + 1) as f32 / POINTS_PER_EPOCH as f32;
        (epoch, loss.clamp(LOSSES.start, LOSSES.end))
    })
}
