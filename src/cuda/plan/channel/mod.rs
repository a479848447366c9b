//! Plans of the channel norms.

mod team;
mod walk;

pub use team::{ChannelTeam, Join};
pub use walk::{ChannelTile, ChannelWalk};

use self::{team::TeamOrder, walk::channel_vec};
use super::{BLOCKS_PER_SM, Choice, DeviceLimits, Memo, Plan, WORKSPACE_CASES, Work, choose_once, memo};
use crate::{DType, backend::WorkspaceLen, shape::ChannelShape};

/// Values of one channel that a thread of a block or warp tile takes at a time; `kSlabChunk` in
/// `kernels/prim/channel_tile.cuh`.
pub(super) const SLAB_CHUNK: usize = 8;
/// Rows that a thread of a column tile takes at a time; `kColumnChunk` there.
pub(super) const COLUMN_CHUNK: usize = 4;
/// The most chunks that one accumulator of a thread may take. The error of a chain of merges grows with its length, and
/// at 512 passes what the tests allow.
pub(super) const MAX_CHAIN: usize = 256;
/// Blocks of a team's kernel that an SM has room for by their registers; `kTeamBlocks` in `kernels/prim/team.cuh`.
pub(super) const TEAM_BLOCKS: usize = 2;

/// How often a channel norm reads its input, and in how many launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChannelStrategy {
    /// One launch of teams of blocks, whose shared memory holds all that is needed twice: one read.
    Resident,
    /// One launch of teams, which hold a part and read the rest again, last read first, from the L2 cache as far as it
    /// is still there.
    Wave,
    /// One launch for the statistics, blocks sharing channels, and one to apply them.
    Split,
}

/// What a pass of a channel norm in training asks of its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChannelPass {
    /// y.
    Forward,
    /// dx and what else is wanted.
    Backward,
    /// The same behind an activation.
    BackwardFused,
}

impl ChannelPass {
    /// Tensors that are read for the sums and again to apply them.
    pub(super) fn tensors(self) -> usize {
        match self {
            Self::Forward => 1,
            Self::Backward => 2,
            Self::BackwardFused => 3,
        }
    }

    /// Wide loads of a chunk of a team's tile; the `kLoads` that the launchers give `visit_team_tile`.
    fn loads(self) -> usize {
        if self == Self::Forward { 4 } else { 2 }
    }

    /// The most channels of a thread in a column tile; `kMostLanes` there.
    fn most_lanes(self) -> usize {
        if self == Self::Forward { 8 } else { 4 }
    }

    /// Words of a statistic of `lanes` channels: `Moments` or `GradSums` in `kernels/prim/stats.cuh`.
    fn stat_bytes(self, lanes: usize) -> usize {
        if self == Self::Forward { 4 * (1 + 2 * lanes) } else { 16 * lanes }
    }
}

/// What is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelProblem {
    /// The tensor.
    pub shape: ChannelShape,
    /// Its type.
    pub dtype: DType,
    /// Divides every address that vectors go through; 16 and more are the same.
    pub align: usize,
    /// The direction.
    pub pass: ChannelPass,
}

/// How to run a channel norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelPlan {
    /// How often the input is read.
    pub strategy: ChannelStrategy,
    /// The teams; `None` for [`ChannelStrategy::Split`].
    pub team: Option<ChannelTeam>,
    /// The walk that gathers statistics without teams.
    pub stats: ChannelWalk,
    /// The walk that applies them.
    pub apply: ChannelWalk,
}

impl ChannelPlan {
    /// The plan to run.
    pub fn new(problem: ChannelProblem, device: DeviceLimits) -> Self {
        let seconds = |plan: &Self| plan.work(problem, device).seconds(&device);
        choose_once(&PLANS, (problem, device), || Self::candidates(problem, device), seconds, Plan::Channel)
    }

    /// Every legal plan that leaves a sample's bits as they are, however many samples came with it. Of samples that
    /// share no statistics, the order in which sums are taken is therefore fixed beforehand.
    pub fn candidates(problem: ChannelProblem, device: DeviceLimits) -> Vec<Self> {
        let shape = problem.shape;
        let split = Self::split(problem, device);
        if shape.is_empty() {
            return vec![split];
        }
        let mut all = Vec::new();
        if !shape.is_of_samples() {
            for order in TeamOrder::all(problem, device) {
                order.teams(problem, device, &mut all);
            }
        } else {
            match TeamOrder::for_any_number_of_segments(problem, device) {
                Some(order) => order.teams(problem, device, &mut all),
                None => return vec![split],
            }
        }
        let mut plans: Vec<_> = all.into_iter().map(|team| split.with_team(team)).collect();
        if !shape.is_of_samples() || plans.is_empty() {
            plans.push(split);
        }
        plans
    }

    fn split(problem: ChannelProblem, device: DeviceLimits) -> Self {
        let ChannelProblem { shape, dtype, align, pass } = problem;
        // Sums of a backward pass are per slab even where the statistics are not.
        let stats_shape = if pass == ChannelPass::Forward { shape.merged() } else { shape };
        let vec = |shape| channel_vec(shape, dtype, align);
        let blocks = device.sms * BLOCKS_PER_SM;
        let stats = ChannelWalk::new(stats_shape, vec(stats_shape), blocks, device);
        // Twice the blocks: a walk that only applies has no partial results to merge.
        let apply = ChannelWalk::new(shape, vec(shape), 2 * blocks, device);
        Self { strategy: ChannelStrategy::Split, team: None, stats, apply }
    }

    fn with_team(self, team: ChannelTeam) -> Self {
        let strategy = match team.held == team.pieces_per_block() * team.chunks {
            true => ChannelStrategy::Resident,
            false => ChannelStrategy::Wave,
        };
        Self { strategy, team: Some(team), ..self }
    }

    /// What it makes the device do.
    pub fn work(&self, problem: ChannelProblem, device: DeviceLimits) -> Work {
        let ChannelProblem { shape, dtype, pass, .. } = problem;
        let size = (shape.len() * dtype.size()) as f64;
        let twice = pass.tensors() as f64 * size;
        let folds = pass != ChannelPass::Forward && shape.segments() > 1;
        // Half of the L2 cache: what is written passes through it too.
        let kept = device.l2 as f64 / 2.0;
        let Some(team) = self.team else {
            let again = if twice <= kept { 1.0 } else { 0.0 };
            let combines = usize::from(pass != ChannelPass::Forward && shape.group() > 1);
            return Work {
                launches: 2 + usize::from(folds) + combines,
                dram_bytes: twice + twice * (1.0 - again) + size,
                l2_bytes: twice * again,
                barriers: 0.0,
                busy: device.busy(self.stats.blocks() as f64, 4.0),
            };
        };
        let rounds = team.rounds() as f64;
        let blocks = (team.teams * team.size) as f64;
        // Blocks that have as many pieces as others, in a team and in the last round.
        let even = team.pieces() as f64 / (team.pieces_per_block() * team.size) as f64;
        let even = even * team.units as f64 / (rounds * team.teams as f64);
        let again = twice * team.not_held();
        let at_once = again / rounds;
        let hits = if at_once > kept { kept / at_once } else { 1.0 };
        // Each block reads what the statistics of its pieces' slabs are merged from.
        let entries = (team.walk.splits * shape.group() * team.walk.width()) as f64;
        let merging = if team.pieces() > 1 {
            blocks * rounds * team.pieces_per_block() as f64 * entries * 8.0
        } else {
            0.0
        };
        let waits = match team.join {
            Join::Alone => 0.0,
            Join::Cluster => 0.25,
            Join::Grid => 1.0,
        };
        // Guesses: with other teams on the same SMs, most of a wait is covered by their work.
        let exposed = if team.teams > 1 && team.blocks_per_sm > 1 { 0.3 } else { 1.0 };
        Work {
            launches: 1 + usize::from(folds && !team.folds),
            dram_bytes: twice + again * (1.0 - hits) + size,
            l2_bytes: again * hits + merging,
            barriers: rounds * waits * exposed + f64::from(u8::from(folds && team.folds)),
            busy: even * device.busy(blocks, team.walk.used()),
        }
    }

    /// What it needs of a workspace; `ChannelWorkspace` in `kernels/prim/channel_launch.cuh` divides the words.
    pub(super) fn workspace(&self) -> WorkspaceLen {
        let (shape, stats) = (self.apply.shape, self.stats.shape.slabs());
        // Statistics, or sums, that a later launch reads: those of segments are summed once more.
        let kept = 3 * shape.slabs() + 2 * shape.statistics();
        let split = WorkspaceLen { counters: stats, words: kept + 2 * self.stats.splits * stats };
        let Some(team) = self.team else { return split };
        let words = kept + 2 * team.walk.splits * shape.slabs();
        let joining = if team.join == Join::Grid { 2 * team.teams } else { 0 };
        let counters = joining + 2; // of sums over the segments
        split.max(WorkspaceLen { counters, words })
    }
}

thread_local! {
    static PLANS: Memo<(ChannelProblem, DeviceLimits), (ChannelPlan, Choice)> = Memo::default();
    static WORKSPACES: Memo<(ChannelShape, DeviceLimits), WorkspaceLen> = Memo::default();
}

/// What is enough for all directions, every type and every alignment.
pub fn channel_norm_workspace(shape: ChannelShape, device: DeviceLimits) -> WorkspaceLen {
    memo(&WORKSPACES, (shape, device), || {
        // Counters of as many teams of two blocks as can be resident, whatever the shape.
        let mut enough = WorkspaceLen { counters: device.sms * TEAM_BLOCKS + 2, words: 0 };
        for (dtype, align) in WORKSPACE_CASES {
            for pass in [ChannelPass::Forward, ChannelPass::Backward, ChannelPass::BackwardFused] {
                for plan in ChannelPlan::candidates(ChannelProblem { shape, dtype, align, pass }, device) {
                    enough = enough.max(plan.workspace());
                }
            }
        }
        enough
    })
}
