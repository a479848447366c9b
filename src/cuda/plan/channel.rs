//! Plans of the channel norms.

use super::{
    BLOCKS_PER_SM, Choice, DeviceLimits, MAX_BLOCKS, MAX_COLUMNS, Memo, Plan, THREADS, VEC_BYTES, WARP,
    WORKSPACE_CASES, Work, choose_once, memo,
};
use crate::{DType, backend::WorkspaceLen, shape::ChannelShape};

/// Values of one channel that a thread of a block or warp tile takes at a time; `kSlabChunk` in
/// `kernels/prim/channel_tile.cuh`.
pub(super) const SLAB_CHUNK: usize = 8;
/// Rows that a thread of a column tile takes at a time; `kColumnChunk` there.
pub(super) const COLUMN_CHUNK: usize = 4;

/// Chunks that one accumulator of a thread should take, and the most that it may. The error of a chain of merges grows
/// with its length, and at 512 passes what the tests allow.
const CHAIN: usize = 64;
pub(super) const MAX_CHAIN: usize = 256;

/// Blocks of a team's kernel that an SM has room for by their registers; `kTeamBlocks` in `kernels/prim/team.cuh`.
pub(super) const TEAM_BLOCKS: usize = 2;
/// Bytes side by side below which a column tile is not worth its width: memory is fetched by 64 bytes. By measurements
/// of others on H100, segments of 64 bytes cost 5 % and segments of 32 bytes half.
const MIN_COLUMN_BYTES: usize = 64;

/// Chunks that a block should have before its channel is shared. A guess: below that the second launch costs more than
/// the missing blocks.
const MIN_CHUNKS: usize = 4;
/// Elements of a channel up to which a warp alone takes it, in any case and where there are warps for every SM.
/// Guesses: at 512 each lane has two chunks.
const WARP_CHANNEL: usize = 512;
const WARP_CHANNEL_MANY: usize = 4096;

/// How the threads of a block share the channels of a channel norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChannelTile {
    /// A block owns one channel.
    BlockPerChannel,
    /// Each warp of a block owns a channel of its own.
    WarpPerChannel,
    /// A block owns neighboring channels and walks down the rows; for `inner == 1`.
    Columns,
}

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

/// How the blocks of a team wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Join {
    /// A team is one block.
    Alone,
    /// A team is a cluster.
    Cluster,
    /// By counters, in a cooperative launch: all blocks of the grid are resident together.
    Grid,
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

/// A tensor as channels, and how a grid walks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelWalk {
    /// The tensor.
    pub shape: ChannelShape,
    /// Who owns what.
    pub tile: ChannelTile,
    /// Elements per memory access: 16 bytes' worth, or 1.
    pub vec: usize,
    /// Threads side by side in a column tile, a power of two; else 1.
    pub columns: usize,
    /// Blocks that share a channel.
    pub splits: usize,
    /// Elements of a channel that one block takes.
    pub span: usize,
}

impl ChannelWalk {
    /// A walk over `shape` that shares slabs until `blocks_wanted` blocks have work on each segment.
    fn new(shape: ChannelShape, vec: usize, blocks_wanted: usize, device: DeviceLimits) -> Self {
        let per_slab = shape.per_slab();
        let (tile, columns) = Self::tile(shape, vec, device);
        let (tiles, chunk) = match tile {
            ChannelTile::WarpPerChannel => {
                let span = per_slab.max(1);
                return Self { shape, tile, vec, columns, splits: 1, span };
            }
            ChannelTile::BlockPerChannel => (shape.channels(), THREADS * SLAB_CHUNK),
            ChannelTile::Columns => {
                (shape.channels().div_ceil(columns * vec), THREADS / columns * COLUMN_CHUNK)
            }
        };
        // As if there were one segment: a sample's bits must not depend on how many came with it.
        let to_fill = blocks_wanted.div_ceil(tiles).min(per_slab.div_ceil(MIN_CHUNKS * chunk));
        let for_chains = per_slab.div_ceil(CHAIN * chunk);
        // The block that merges the splits does so in chains of chains, and the grid has an end.
        let most =
            (MAX_CHAIN * MAX_CHAIN * THREADS / columns).min(MAX_BLOCKS / (tiles * shape.segments()).max(1));
        let splits = to_fill.max(for_chains).clamp(1, most);
        let span = per_slab.div_ceil(splits).next_multiple_of(chunk).max(chunk);
        Self { shape, tile, vec, columns, splits: per_slab.div_ceil(span).max(1), span }
    }

    /// Threads that share a slab.
    fn owners(&self) -> usize {
        match self.tile {
            ChannelTile::BlockPerChannel => THREADS,
            ChannelTile::WarpPerChannel => WARP,
            ChannelTile::Columns => THREADS / self.columns,
        }
    }

    /// Elements of a slab that its threads read with one load each.
    fn step(&self) -> usize {
        self.owners() * if self.tile == ChannelTile::Columns { 1 } else { self.vec }
    }

    /// Slabs of a tile.
    fn width(&self) -> usize {
        match self.tile {
            ChannelTile::BlockPerChannel => 1,
            ChannelTile::WarpPerChannel => THREADS / WARP,
            ChannelTile::Columns => self.columns * self.vec,
        }
    }

    /// Blocks of a grid in which each piece has one.
    pub(super) fn blocks(&self) -> usize {
        let tiles = match self.tile {
            ChannelTile::Columns => self.shape.segments() * self.shape.channels().div_ceil(self.width()),
            _ => self.shape.slabs().div_ceil(self.width()),
        };
        tiles * self.splits
    }

    /// Loads of a chunk of a team's tile, as `visit_team_tile` has them.
    pub(super) fn loads_of_chunk(&self, pass: ChannelPass) -> usize {
        match (self.tile, self.vec) {
            (_, 1) => 2 * pass.loads(),
            (ChannelTile::Columns, 8) => pass.loads() / 2,
            _ => pass.loads(),
        }
    }

    /// Tiles and slabs of a team's unit, and how many units there are.
    fn unit(&self) -> (usize, usize, usize) {
        let (shape, width) = (self.shape, self.width());
        if self.tile == ChannelTile::Columns {
            let across = shape.channels().div_ceil(width);
            return match shape.group() {
                1 => (1, 0, shape.segments() * across),
                _ => (across, 0, shape.segments()),
            };
        }
        // So many statistics that no warp is idle, unless that takes too many.
        let group = shape.group();
        let even = (1..=width).find(|n| (n * group).is_multiple_of(width)).unwrap_or(1);
        let slabs = if even * group <= 8 * width { even * group } else { group };
        (slabs.div_ceil(width), slabs, shape.slabs().div_ceil(slabs))
    }

    /// The part of the threads' loads that have elements.
    fn used(&self) -> f64 {
        let loads = self.span.div_ceil(self.step()) * self.step() * self.splits;
        let (tiles, slabs, _) = self.unit();
        let filled = if self.tile == ChannelTile::Columns {
            1.0
        } else {
            slabs as f64 / (tiles * self.width()) as f64
        };
        filled * self.shape.per_slab() as f64 / loads as f64
    }

    /// Shared memory that a team's kernel declares: `block_merge` and `merge_group`.
    fn static_smem(&self, pass: ChannelPass) -> usize {
        let warps = THREADS / WARP;
        match self.tile {
            ChannelTile::BlockPerChannel => warps * pass.stat_bytes(1),
            ChannelTile::WarpPerChannel => 0,
            ChannelTile::Columns => {
                let columns = max_columns(self.vec);
                columns * (warps * pass.stat_bytes(self.vec) + self.vec * pass.stat_bytes(1))
            }
        }
    }

    fn tile(shape: ChannelShape, vec: usize, device: DeviceLimits) -> (ChannelTile, usize) {
        if shape.inner() == 1 && shape.channels() > 1 {
            return (
                ChannelTile::Columns,
                shape.channels().div_ceil(vec).next_power_of_two().min(max_columns(vec)),
            );
        }
        let warps_per_block = THREADS / WARP;
        let per_slab = shape.per_slab();
        let warps_fill = shape.channels() / warps_per_block >= device.sms;
        if per_slab <= WARP_CHANNEL || per_slab <= WARP_CHANNEL_MANY && warps_fill {
            (ChannelTile::WarpPerChannel, 1)
        } else {
            (ChannelTile::BlockPerChannel, 1)
        }
    }
}

/// Teams of blocks that go through units of work; `wn_channel_team` in `kernels/warpnorm.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelTeam {
    /// Who owns what. A tile and a split are a piece.
    pub walk: ChannelWalk,
    /// How blocks wait for each other.
    pub join: Join,
    /// Blocks of a team.
    pub size: usize,
    /// Teams.
    pub teams: usize,
    /// Units: whole statistics, so many that they fill whole tiles.
    pub units: usize,
    /// Tiles of a unit.
    pub tiles: usize,
    /// Slabs of a unit, where the tiles are not columns.
    pub slabs: usize,
    /// Chunks of a piece.
    pub chunks: usize,
    /// Chunks that a block holds in shared memory.
    pub held: usize,
    /// Shared memory of a block: what is held, and what the kernel itself declares.
    pub smem: usize,
    /// Blocks that an SM has room for.
    pub blocks_per_sm: usize,
}

impl ChannelTeam {
    /// Pieces of a unit.
    pub fn pieces(&self) -> usize {
        self.tiles * self.walk.splits
    }
    /// Pieces of a unit that a block has, at most.
    pub fn pieces_per_block(&self) -> usize {
        self.pieces().div_ceil(self.size)
    }
    /// Times that a team goes on to another unit.
    pub fn rounds(&self) -> usize {
        self.units.div_ceil(self.teams)
    }
    /// The part of the elements that is read again.
    fn not_held(&self) -> f64 {
        let chunks = self.pieces_per_block() * self.chunks;
        (chunks - self.held) as f64 / chunks as f64
    }
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
        let folds = usize::from(pass != ChannelPass::Forward && shape.segments() > 1);
        // Half of the L2 cache: what is written passes through it too.
        let kept = device.l2 as f64 / 2.0;
        let Some(team) = self.team else {
            let again = if twice <= kept { 1.0 } else { 0.0 };
            let combines = usize::from(pass != ChannelPass::Forward && shape.group() > 1);
            return Work {
                launches: 2 + folds + combines,
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
            launches: 1 + folds,
            dram_bytes: twice + again * (1.0 - hits) + size,
            l2_bytes: again * hits + merging,
            barriers: rounds * waits * exposed,
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
        let counters = if team.join == Join::Grid { 2 * team.teams } else { 0 };
        split.max(WorkspaceLen { counters, words })
    }
}

/// The order in which the sums of a team are taken: all that its bits depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct TeamOrder {
    walk: ChannelWalk,
}

impl TeamOrder {
    /// Numbers of segments that an order is judged by which has to serve any. Guesses: a sample, a batch, a large batch.
    const SEGMENTS: [usize; 3] = [1, 16, 256];

    /// Every order that the kernels can take.
    fn all(problem: ChannelProblem, device: DeviceLimits) -> Vec<Self> {
        let ChannelProblem { shape, dtype, align, pass } = problem;
        let mut all = Vec::new();
        let mut push = |tile, vec, columns| {
            let walk = ChannelWalk { shape, tile, vec, columns, splits: 1, span: shape.per_slab() };
            let step = walk.step();
            let most = shape.per_slab().div_ceil(step);
            let mut last = 0;
            for splits in split_counts(device) {
                if splits > most || tile == ChannelTile::WarpPerChannel && splits > 1 {
                    break;
                }
                let span = shape.per_slab().div_ceil(splits).next_multiple_of(step);
                let splits = shape.per_slab().div_ceil(span);
                if splits != last {
                    last = splits;
                    all.push(Self { walk: ChannelWalk { splits, span, ..walk } });
                }
            }
        };
        if shape.inner() == 1 && shape.channels() > 1 {
            let vec = column_vec(shape, dtype, align, pass);
            let most = shape.channels().div_ceil(vec).next_power_of_two().min(max_columns(vec));
            // Narrower tiles hold more rows; below 64 bytes side by side memory is slower.
            let fewest = (MIN_COLUMN_BYTES / (vec * dtype.size())).clamp(1, most);
            for columns in [most, most / 2, most / 4] {
                if columns >= fewest {
                    push(ChannelTile::Columns, vec, columns);
                }
            }
        } else {
            let vec = channel_vec(shape, dtype, align);
            if shape.per_slab() <= WARP_CHANNEL_MANY {
                push(ChannelTile::WarpPerChannel, vec, 1);
            }
            if shape.per_slab() > WARP_CHANNEL {
                push(ChannelTile::BlockPerChannel, vec, 1);
            }
        }
        all
    }

    /// The order for samples that share nothing, whatever their number: the one that is fastest on average over a few
    /// numbers. `None` where no team can run it.
    fn for_any_number_of_segments(problem: ChannelProblem, device: DeviceLimits) -> Option<Self> {
        let refs: Vec<_> = Self::SEGMENTS
            .iter()
            .filter_map(|&n| Some(ChannelProblem { shape: problem.shape.with_segments(n)?, ..problem }))
            .collect();
        let cost = |order: &Self| {
            let mut sum = 0.0;
            for problem in &refs {
                let order = Self { walk: ChannelWalk { shape: problem.shape, ..order.walk } };
                let mut teams = Vec::new();
                order.teams(*problem, device, &mut teams);
                let split = ChannelPlan::split(*problem, device);
                let seconds = teams
                    .into_iter()
                    .map(|team| split.with_team(team).work(*problem, device).seconds(&device));
                sum += seconds.min_by(f64::total_cmp)?.ln();
            }
            Some(sum)
        };
        let one = ChannelProblem { shape: problem.shape.with_segments(1)?, ..problem };
        let orders = Self::all(one, device).into_iter().filter_map(|order| Some((cost(&order)?, order)));
        let (_, best) = orders.min_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Self { walk: ChannelWalk { shape: problem.shape, ..best.walk } })
    }

    /// Appends the teams that can take this order.
    fn teams(&self, problem: ChannelProblem, device: DeviceLimits, all: &mut Vec<ChannelTeam>) {
        let ChannelProblem { dtype, pass, .. } = problem;
        let walk = self.walk;
        let loads = walk.loads_of_chunk(pass);
        let loads_of_piece = walk.span.div_ceil(walk.step());
        let chunks = loads_of_piece.div_ceil(loads);
        let (tiles, slabs, units) = walk.unit();
        let pieces = tiles * walk.splits;
        if chunks > MAX_CHAIN || pieces * chunks > i32::MAX as usize || units * tiles > i32::MAX as usize {
            return;
        }
        let slot = THREADS * walk.vec * dtype.size() * pass.tensors();
        let fixed = walk.static_smem(pass);
        let mut before = 0;
        for per_block in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024] {
            let size = pieces.div_ceil(per_block.min(pieces));
            if size == before {
                break;
            }
            before = size;
            let of_block = pieces.div_ceil(size);
            let wanted = of_block * loads_of_piece;
            for blocks in [TEAM_BLOCKS, 1] {
                let room = (device.smem_per_sm / blocks)
                    .saturating_sub(DeviceLimits::SMEM_RESERVED)
                    .min(device.smem_per_block);
                let slots = room.saturating_sub(fixed) / slot;
                // Whole chunks, of which the last of a piece may be shorter.
                let held = match slots >= wanted {
                    true => of_block * chunks,
                    false => slots / loads_of_piece * chunks + slots % loads_of_piece / loads,
                };
                let held_loads = held / chunks * loads_of_piece + (held % chunks * loads).min(loads_of_piece);
                let smem = held_loads * slot + fixed;
                let blocks_per_sm = device.blocks_per_sm(THREADS, smem, TEAM_BLOCKS);
                if blocks_per_sm < blocks {
                    continue;
                }
                let resident = device.sms * blocks_per_sm;
                let joins: &[Join] = match size {
                    1 => &[Join::Alone],
                    2 | 4 | 8 if size <= device.cluster => &[Join::Cluster, Join::Grid],
                    _ => &[Join::Grid],
                };
                for &join in joins {
                    if size > resident || units.div_ceil(resident / size) * size > u32::MAX as usize {
                        continue;
                    }
                    let rounds = units.div_ceil(resident / size);
                    let teams = units.div_ceil(rounds);
                    all.push(ChannelTeam {
                        walk,
                        join,
                        size,
                        teams,
                        units,
                        tiles,
                        slabs,
                        chunks,
                        held,
                        smem,
                        blocks_per_sm,
                    });
                }
                if slots >= wanted {
                    break; // fewer blocks would have nothing more to hold
                }
            }
        }
    }
}

/// Numbers of splits that are tried: small ones, and those that divide the blocks of the device among so many teams.
fn split_counts(device: DeviceLimits) -> Vec<usize> {
    let resident = device.sms * TEAM_BLOCKS;
    let mut counts: Vec<_> = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64].into();
    counts.extend((1..=8).flat_map(|teams| [resident / teams, device.sms / teams]));
    counts.retain(|&n| n > 0);
    counts.sort_unstable();
    counts.dedup();
    counts
}

thread_local! {
    static PLANS: Memo<(ChannelProblem, DeviceLimits), (ChannelPlan, Choice)> = Memo::default();
    static WORKSPACES: Memo<(ChannelShape, DeviceLimits), WorkspaceLen> = Memo::default();
}

/// What is enough for all directions, every type and every alignment.
pub fn channel_norm_workspace(shape: ChannelShape, device: DeviceLimits) -> WorkspaceLen {
    memo(&WORKSPACES, (shape, device), || {
        // Counters of as many teams of two blocks as can be resident, whatever the shape.
        let mut enough = WorkspaceLen { counters: device.sms * TEAM_BLOCKS, words: 0 };
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

/// 16 bytes' worth where every access of the walk would be aligned, else 1.
fn channel_vec(shape: ChannelShape, dtype: DType, align: usize) -> usize {
    let wide = VEC_BYTES / dtype.size();
    // Whichever lies side by side: positions of a channel, or channels.
    let run = if shape.inner() == 1 { shape.channels() } else { shape.inner() };
    if !shape.is_empty() && align.is_multiple_of(VEC_BYTES) && run.is_multiple_of(wide) { wide } else { 1 }
}

/// The most threads side by side in a column tile; `ColumnTile::kMaxColumns`.
pub(super) fn max_columns(vec: usize) -> usize {
    if vec == 1 { MAX_COLUMNS } else { MAX_COLUMNS / 2 }
}

/// Channels of a thread of a team's column tile.
fn column_vec(shape: ChannelShape, dtype: DType, align: usize, pass: ChannelPass) -> usize {
    let vec = (VEC_BYTES / dtype.size()).min(pass.most_lanes());
    let fits = align.is_multiple_of(vec * dtype.size()) && shape.channels().is_multiple_of(vec);
    if fits { vec } else { 1 }
}
