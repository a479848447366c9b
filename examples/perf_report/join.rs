//! What a run says beside those of its peers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::results::{Measured, Peer, Run};

/// By how much a time must exceed another's to count as slower: runs of one program differ by as much.
pub(crate) const NOISE: f64 = 0.03;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// What was measured with, by name; two values where runs differ.
    pub(crate) machine: BTreeMap<String, String>,
    /// Own first.
    pub(crate) peers: Vec<Peer>,
    pub(crate) rows: Vec<Row>,
    /// By op and pass.
    pub(crate) summary: Vec<Summary>,
    /// What a peer left out, and why: peer, reason, cases.
    pub(crate) left_out: Vec<(String, String, usize)>,
}

/// A case of our own run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) floor_bytes: u64,
    pub(crate) cold_us: f64,
    pub(crate) warm_us: Option<f64>,
    /// Of the floor's bytes, cold.
    pub(crate) gb_per_s: f64,
    /// A copy's cold time by ours: 1 is as fast as a copy.
    pub(crate) share_of_copy: Option<f64>,
    /// Every peer's cold and warm time.
    pub(crate) peers: BTreeMap<String, [Option<f64>; 2]>,
    /// Whose cold time is the least.
    pub(crate) best_peer: Option<Best>,
    /// Our cold time by the best peer's: below 1 we are faster.
    pub(crate) ratio: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Best {
    pub(crate) name: String,
    pub(crate) cold_us: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// As in `batch_norm/fwd`.
    pub(crate) what: String,
    pub(crate) cases: usize,
    pub(crate) median_share: Option<f64>,
    pub(crate) median_ratio: Option<f64>,
    /// Cases that take longer than the best peer's, by more than [`NOISE`].
    pub(crate) slower: usize,
}

impl Row {
    fn new(own: &Measured, peers: &[&Measured]) -> Option<Self> {
        let cold_us = own.cold_us?;
        let best_peer = peers
            .iter()
            .filter_map(|peer| Some(Best { name: peer.peer.clone(), cold_us: peer.cold_us? }))
            .min_by(|a, b| a.cold_us.total_cmp(&b.cold_us));
        Some(Self {
            case: own.case.clone(),
            floor_bytes: own.floor_bytes,
            cold_us,
            warm_us: own.warm_us,
            gb_per_s: own.floor_bytes as f64 / cold_us / 1e3,
            share_of_copy: own.copy_cold_us.map(|copy| copy / cold_us),
            peers: peers
                .iter()
                .filter(|peer| peer.cold_us.is_some())
                .map(|peer| (peer.peer.clone(), [peer.cold_us, peer.warm_us]))
                .collect(),
            ratio: best_peer.as_ref().map(|best| cold_us / best.cold_us),
            best_peer,
        })
    }

    /// `batch_norm/fwd` of `batch_norm/fwd+relu/f16/first/32x64x56x56`; inference is a pass of its own.
    pub(crate) fn what(&self) -> String {
        let mut parts = self.case.split(['/', '+']);
        format!("{}/{}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }

    pub(crate) fn slower(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio > 1.0 + NOISE)
    }
}

/// Joins a run of ours with those of others by the names of the cases. A case that is not in ours is not in the report.
pub(crate) fn join(own: &Run, others: &[Run]) -> Report {
    let runs = || std::iter::once(own).chain(others);
    let mut machine = BTreeMap::new();
    for (name, value) in runs().flat_map(|run| &run.machine) {
        let known: &mut String = machine.entry(name.clone()).or_insert_with(|| value.clone());
        if !known.split(" | ").any(|one| one == value) {
            *known += &format!(" | {value}");
        }
    }
    let mut measured: BTreeMap<&str, Vec<&Measured>> = BTreeMap::new();
    let mut reasons: BTreeMap<(String, String), usize> = BTreeMap::new();
    for result in others.iter().flat_map(|run| &run.results) {
        measured.entry(&result.case).or_default().push(result);
    }
    for result in runs().flat_map(|run| &run.results) {
        if let Some(reason) = &result.left_out {
            *reasons.entry((result.peer.clone(), reason.clone())).or_default() += 1;
        }
    }
    let peers_of = |case: &str| measured.get(case).map_or(&[][..], Vec::as_slice);
    let rows: Vec<Row> = own.results.iter().filter_map(|r| Row::new(r, peers_of(&r.case))).collect();
    Report {
        machine,
        peers: runs().flat_map(|run| run.peers.clone()).collect(),
        summary: summarize(&rows),
        rows,
        left_out: reasons.into_iter().map(|((peer, reason), cases)| (peer, reason, cases)).collect(),
    }
}

fn summarize(rows: &[Row]) -> Vec<Summary> {
    let mut groups: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry(row.what()).or_default().push(row);
    }
    let summary = |(what, rows): (String, Vec<&Row>)| Summary {
        what,
        cases: rows.len(),
        median_share: median(rows.iter().filter_map(|row| row.share_of_copy).collect()),
        median_ratio: median(rows.iter().filter_map(|row| row.ratio).collect()),
        slower: rows.iter().filter(|row| row.slower()).count(),
    };
    groups.into_iter().map(summary).collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}
