//! The file that a run of the benchmark leaves, and those of its peers: what `examples/perf_report` joins.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One run of one program.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Run {
    /// `gpu`, `driver`, `cuda`, `date`, and whatever else was measured with, by name.
    pub(crate) machine: BTreeMap<String, String>,
    /// Who was measured.
    pub(crate) peers: Vec<Peer>,
    /// One for each peer and case that was measured or that it left out.
    pub(crate) results: Vec<Measured>,
}

/// An implementation.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
    /// Why it could not be measured at all.
    pub(crate) missing: Option<String>,
}

/// What a case took.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Measured {
    pub(crate) case: String,
    pub(crate) peer: String,
    /// Tensors read or written once.
    pub(crate) floor_bytes: u64,
    /// The median of calls that find the L2 cache full of something else, in microseconds.
    pub(crate) cold_us: Option<f64>,
    /// A call among calls on the same tensors, likewise.
    pub(crate) warm_us: Option<f64>,
    /// A device-to-device copy that moves as many bytes, in the same program just before the case.
    pub(crate) copy_cold_us: Option<f64>,
    pub(crate) copy_warm_us: Option<f64>,
    /// `graph` where captured calls were replayed, else `calls`.
    pub(crate) how: Option<String>,
    /// Why there are no times.
    pub(crate) left_out: Option<String>,
}
