//! Which kernel variant runs and how its grid is cut: pure functions of the problem and the device, testable without a
//! GPU. A plan is a value that can be printed.

mod channel;
#[cfg(test)]
mod channel_tests;
mod device;
mod row;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::Hash,
    thread::LocalKey,
};

pub use channel::{
    ChannelPass, ChannelPlan, ChannelProblem, ChannelStrategy, ChannelTeam, ChannelTile, ChannelWalk, Join,
    channel_norm_workspace,
};
pub use device::{DeviceLimits, Work};
pub use row::{Direction, RowCall, RowPlan, RowStrategy, row_norm_workspace};

use crate::DType;
pub use crate::shape::{ChannelShape, RowShape};

/// Threads of a block; `kThreads` in `kernels/prim/reduce.cuh`.
const THREADS: usize = 256;
const WARP: usize = 32;
/// Bytes of the widest memory access.
const VEC_BYTES: usize = 16;
/// The most lanes side by side in a column tile.
const MAX_COLUMNS: usize = 32;
/// A grid's largest x.
const MAX_BLOCKS: usize = i32::MAX as usize;
/// Blocks per SM that a grid should have before channels are no longer shared. A guess: 4 blocks of 256 threads are the
/// least that hides the latency of memory on most GPUs.
const BLOCKS_PER_SM: usize = 4;

/// Every type and alignment that makes a difference to the size of a workspace.
const WORKSPACE_CASES: [(DType, usize); 5] =
    [(DType::F32, 1), (DType::F32, VEC_BYTES), (DType::F16, 1), (DType::F16, 8), (DType::F16, VEC_BYTES)];

/// Whether a launch of `blocks` blocks, of which `resident` fit the device together, should end in a step for which they
/// wait for each other. That saves a launch, but asks for all blocks at once, so that the launch waits for other kernels
/// that hold a part of the device, such as a collective of several GPUs that runs meanwhile. So: where there is room
/// all the same, and where the tensor is so small that launches are most of the time. (The bounds are guesses.)
fn ends_together(blocks: usize, resident: usize, tensor_bytes: usize) -> bool {
    blocks <= resident / 2 || blocks <= resident && tensor_bytes <= SMALL_TENSOR
}

/// Bytes of a tensor up to which a call is one launch.
const SMALL_TENSOR: usize = 1 << 20;

/// A plan of either family.
#[allow(clippy::large_enum_variant)] // a value to look at, of which there is one at a time
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Plan {
    /// Of a channel norm.
    Channel(ChannelPlan),
    /// Of a row norm.
    Row(RowPlan),
}

/// What a call chose among.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What was run.
    pub plan: Plan,
    /// Its place among the candidates.
    pub index: usize,
    /// How many legal plans there were.
    pub candidates: usize,
    /// The place of the one that is predicted to be fastest.
    pub fastest: usize,
    /// The time that is predicted for what was run, in seconds.
    pub seconds: f64,
}

thread_local! {
    static CANDIDATE: Cell<Option<usize>> = const { Cell::new(None) };
    static LAST: Cell<Option<Choice>> = const { Cell::new(None) };
}

/// Runs `body`, in which this thread's calls take candidate `index` of the legal plans in place of the one that is
/// predicted to be fastest, or the last candidate where there are fewer. For sweeps and tests.
pub fn with_candidate<R>(index: usize, body: impl FnOnce() -> R) -> R {
    let before = CANDIDATE.replace(Some(index));
    let result = body();
    CANDIDATE.set(before);
    result
}

/// What this thread's last call chose; `None` before the first.
pub fn last_choice() -> Option<Choice> {
    LAST.get()
}

/// The cheapest of `candidates`, or the one that `with_candidate` asks for. `name` wraps it.
fn choose<P: Copy>(candidates: &[P], seconds: impl Fn(&P) -> f64, name: impl Fn(P) -> Plan) -> (P, Choice) {
    let costs = candidates.iter().map(&seconds).enumerate();
    let (fastest, _) = costs.min_by(|a, b| a.1.total_cmp(&b.1)).expect("no shape is without a plan");
    let index = CANDIDATE.get().map_or(fastest, |index| index.min(candidates.len() - 1));
    let plan = candidates[index];
    let (candidates, seconds) = (candidates.len(), seconds(&plan));
    (plan, Choice { plan: name(plan), index, candidates, fastest, seconds })
}

/// The plan to run for a problem, chosen at its first call on this thread.
fn choose_once<K: Copy + Eq + Hash, P: Copy>(
    known: &'static LocalKey<Memo<K, (P, Choice)>>,
    problem: K,
    candidates: impl FnOnce() -> Vec<P>,
    seconds: impl Fn(&P) -> f64,
    name: impl Fn(P) -> Plan,
) -> P {
    let (plan, choice) = memo(known, problem, || choose(&candidates(), seconds, name));
    LAST.set(Some(choice));
    plan
}

/// Results of pure functions that calls ask for again and again.
struct Memo<K, V>(RefCell<HashMap<K, V>>);

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

/// What `make` made for `key` on this thread; makes it where that is not known. Under `with_candidate` nothing is kept.
fn memo<K: Copy + Eq + Hash, V: Copy>(
    known: &'static LocalKey<Memo<K, V>>,
    key: K,
    make: impl FnOnce() -> V,
) -> V {
    const MOST: usize = 4096;
    if CANDIDATE.get().is_some() {
        return make();
    }
    if let Some(value) = known.with(|memo| memo.0.borrow().get(&key).copied()) {
        return value;
    }
    let value = make();
    known.with(|memo| {
        let mut map = memo.0.borrow_mut();
        if map.len() >= MOST {
            map.clear();
        }
        map.insert(key, value);
    });
    value
}
