//! Teams of blocks, and every one that can take a problem.

use super::{
    super::{DeviceLimits, SMALL_TENSOR, THREADS, VEC_BYTES, ends_together},
    ChannelPass, ChannelPlan, ChannelProblem, ChannelTile, ChannelWalk, MAX_CHAIN, TEAM_BLOCKS,
    walk::{WARP_CHANNEL, WARP_CHANNEL_MANY, channel_vec, max_columns},
};
use crate::{DType, shape::ChannelShape};

/// Bytes side by side below which a column tile is not worth its width: memory is fetched by 64 bytes. By measurements
/// of others on H100, segments of 64 bytes cost 5 % and segments of 32 bytes half.
const MIN_COLUMN_BYTES: usize = 64;

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
    /// The launch itself sums over the segments, as all its blocks are resident together.
    pub folds: bool,
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
    pub(super) fn not_held(&self) -> f64 {
        let chunks = self.pieces_per_block() * self.chunks;
        (chunks - self.held) as f64 / chunks as f64
    }
}

/// The order in which the sums of a team are taken: all that its bits depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TeamOrder {
    walk: ChannelWalk,
}

impl TeamOrder {
    /// Numbers of segments that an order is judged by which has to serve any. Guesses: a sample, a batch, a large batch.
    const SEGMENTS: [usize; 3] = [1, 16, 256];

    /// Every order that the kernels can take.
    pub(super) fn all(problem: ChannelProblem, device: DeviceLimits) -> Vec<Self> {
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
    pub(super) fn for_any_number_of_segments(problem: ChannelProblem, device: DeviceLimits) -> Option<Self> {
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
    pub(super) fn teams(&self, problem: ChannelProblem, device: DeviceLimits, all: &mut Vec<ChannelTeam>) {
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
                    let bytes = walk.shape.len() * dtype.size();
                    let folds = match join {
                        Join::Alone => ends_together(teams, resident, bytes),
                        // Clusters lie within groups of SMs, of which they may leave almost half idle.
                        Join::Cluster => teams * size <= resident / 2,
                        Join::Grid => true,
                    };
                    // Of a small tensor, launches are most of the time. (Forward only averages of running statistics are
                    // folded, but what is planned for does not say whether there are any.)
                    if !folds && walk.shape.segments() > 1 && bytes <= SMALL_TENSOR {
                        continue;
                    }
                    all.push(ChannelTeam {
                        walk,
                        join,
                        size,
                        teams,
                        units,
                        tiles,
                        slabs,
                        chunks,
                        folds,
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

/// Channels of a thread of a team's column tile.
fn column_vec(shape: ChannelShape, dtype: DType, align: usize, pass: ChannelPass) -> usize {
    let vec = (VEC_BYTES / dtype.size()).min(pass.most_lanes());
    let fits = align.is_multiple_of(vec * dtype.size()) && shape.channels().is_multiple_of(vec);
    if fits { vec } else { 1 }
}
