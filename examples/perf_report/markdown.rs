//! The report as a page.

use std::fmt::{Result, Write};

use super::join::{NOISE, Report, Row};

pub(crate) fn page(report: &Report) -> std::result::Result<String, std::fmt::Error> {
    let mut page = String::new();
    head(&mut page, report)?;
    summary(&mut page, report)?;
    for what in report.summary.iter().map(|summary| &summary.what) {
        writeln!(page, "\n## {what}\n")?;
        writeln!(page, "| case | us, cold | GB/s | share of copy | best peer | ratio | us, warm |")?;
        writeln!(page, "|---|---|---|---|---|---|---|")?;
        for row in report.rows.iter().filter(|row| row.what() == *what) {
            line(&mut page, row)?;
        }
    }
    Ok(page)
}

fn head(page: &mut String, report: &Report) -> Result {
    writeln!(page, "# Normalization on {}\n", report.machine.get("gpu").map_or("an unknown GPU", |gpu| gpu))?;
    for (name, value) in &report.machine {
        writeln!(page, "- {name}: {value}")?;
    }
    for peer in report.peers.iter().filter(|peer| peer.missing.is_none()) {
        writeln!(page, "- measured: {} {}", peer.name, peer.version.as_deref().unwrap_or_default())?;
    }
    for peer in &report.peers {
        if let Some(reason) = &peer.missing {
            writeln!(page, "- **missing: {}** ({reason})", peer.name)?;
        }
    }
    for (peer, reason, cases) in &report.left_out {
        writeln!(page, "- {peer}, cases left out: {cases} ({reason})")?;
    }
    writeln!(
        page,
        "\nCold: before each call the L2 cache is filled with something else. Warm: calls one after another on the same \
        tensors. Medians of at least 50. GB/s count every tensor of a call once; the copy moves as many bytes, in the \
        same program just before. A ratio below 1 means that warpnorm is faster than the best peer, both cold. Cold \
        times below some 10 us are mostly those of the start."
    )
}

fn summary(page: &mut String, report: &Report) -> Result {
    let slower: Vec<&Row> = report.rows.iter().filter(|row| row.slower()).collect();
    let compared = report.rows.iter().filter(|row| row.ratio.is_some()).count();
    let percent = NOISE * 100.0;
    writeln!(
        page,
        "\n{} cases, {compared} of them with a peer; {} slower than the best peer by more than {percent} %.\n",
        report.rows.len(),
        slower.len()
    )?;
    writeln!(page, "| | cases | median share of copy | median ratio | slower than the best peer |")?;
    writeln!(page, "|---|---|---|---|---|")?;
    for group in &report.summary {
        let (share, ratio) = (number(group.median_share), number(group.median_ratio));
        writeln!(page, "| {} | {} | {share} | {ratio} | {} |", group.what, group.cases, group.slower)?;
    }
    writeln!(page)?;
    for row in slower {
        let best = row.best_peer.as_ref().map_or("", |best| &best.name);
        writeln!(page, "- slower: {}, {} times {best}", row.case, number(row.ratio))?;
    }
    Ok(())
}

fn line(page: &mut String, row: &Row) -> Result {
    let best = row.best_peer.as_ref();
    let best = best.map_or("none".into(), |best| format!("{} {:.1}", best.name, best.cold_us));
    let warm = row.warm_us.map_or("-".into(), |us| format!("{us:.1}"));
    let (share, ratio) = (number(row.share_of_copy), number(row.ratio));
    let Row { case, cold_us, gb_per_s, .. } = row;
    writeln!(page, "| {case} | {cold_us:.1} | {gb_per_s:.0} | {share} | {best} | {ratio} | {warm} |")
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.2}"))
}
