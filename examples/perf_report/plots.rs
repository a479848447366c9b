//! The report as two pictures. A dot is a case: full forward, hollow backward.

use std::{error::Error, ops::Range, path::Path};

use plotters::prelude::*;

use super::join::{Report, Row};

type Outcome = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (1000, 560);
/// The ratios shown; those beyond are drawn at the edge.
const RATIOS: Range<f64> = 0.1..10.0;
/// Likewise.
const SHARES: Range<f64> = 0.0..1.2;
/// Okabe and Ito's colors, which the color-blind can tell apart.
const OPS: [(&str, RGBColor); 5] = [
    ("batch_norm", RGBColor(0, 114, 178)),
    ("group_norm", RGBColor(230, 159, 0)),
    ("instance_norm", RGBColor(0, 158, 115)),
    ("layer_norm", RGBColor(213, 94, 0)),
    ("rms_norm", RGBColor(204, 121, 167)),
];

/// The share of a copy's speed by the floor's bytes.
pub(crate) fn share_of_copy(path: &Path, report: &Report) -> Outcome {
    let megabytes = |row: &Row| row.floor_bytes as f64 / 1e6;
    let least = report.rows.iter().map(megabytes).fold(1.0, f64::min);
    let most = report.rows.iter().map(megabytes).fold(10.0, f64::max);
    let picture = SVGBackend::new(path, SIZE).into_drawing_area();
    picture.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&picture)
        .margin(12)
        .caption("Share of a copy's speed, cold (full: forward, hollow: backward)", ("sans-serif", 20))
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((least / 1.5..most * 1.5).log_scale(), SHARES)?;
    chart
        .configure_mesh()
        .x_desc("bytes that must be moved, MB")
        .y_desc("copy's time / own time")
        .x_label_formatter(&|megabytes| format!("{megabytes}"))
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    let line = [(least / 1.5, 1.0), (most * 1.5, 1.0)];
    chart.draw_series(LineSeries::new(line, BLACK.mix(0.5)))?;
    for (op, color) in OPS {
        let of_op = || report.rows.iter().filter(move |row| row.case.starts_with(op));
        let dots = of_op().filter_map(|row| {
            let share = row.share_of_copy?.clamp(SHARES.start, SHARES.end);
            Some(Circle::new((megabytes(row), share), 4, style(row, color)))
        });
        chart.draw_series(dots)?.label(op).legend(move |(x, y)| Circle::new((x + 9, y), 4, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    picture.present()?;
    Ok(())
}

/// The ratio to the best peer by op: a column each, in which the cases lie side by side in their order.
pub(crate) fn ratio_to_best_peer(path: &Path, report: &Report) -> Outcome {
    let picture = SVGBackend::new(path, SIZE).into_drawing_area();
    picture.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&picture)
        .margin(12)
        .caption("Own time / best peer's, cold (full: forward, hollow: backward)", ("sans-serif", 20))
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..OPS.len() as f64, RATIOS.log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc("below 1: warpnorm is faster")
        .y_label_formatter(&|ratio| format!("{ratio}"))
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    chart.draw_series(LineSeries::new([(0.0, 1.0), (OPS.len() as f64, 1.0)], BLACK.mix(0.5)))?;
    for (column, (op, color)) in OPS.into_iter().enumerate() {
        let rows = report.rows.iter().filter(|row| row.case.starts_with(op));
        let ratios: Vec<(&Row, f64)> = rows.filter_map(|row| Some((row, row.ratio?))).collect();
        let dots = ratios.iter().enumerate().map(|(i, (row, ratio))| {
            let x = column as f64 + 0.1 + 0.8 * (i as f64 + 0.5) / ratios.len() as f64;
            Circle::new((x, ratio.clamp(RATIOS.start, RATIOS.end)), 4, style(row, color))
        });
        chart.draw_series(dots)?;
        let name = format!("{op} ({})", ratios.len());
        let at = (column as f64 + 0.2, RATIOS.start * 1.1);
        chart.draw_series([Text::new(name, at, ("sans-serif", 15).into_font().color(&color))])?;
    }
    picture.present()?;
    Ok(())
}

fn style(row: &Row, color: RGBColor) -> ShapeStyle {
    if row.what().ends_with("bwd") { color.stroke_width(1) } else { color.filled() }
}
