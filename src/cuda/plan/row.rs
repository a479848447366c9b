//! Plans of the row norms.

use super::{
    BLOCKS_PER_SM, Choice, DeviceLimits, LAST, MAX_BLOCKS, MAX_COLUMNS, Memo, Plan, THREADS, VEC_BYTES, WARP,
    WORKSPACE_CASES, Work, choose_once, ends_together, memo,
};
use crate::{DType, backend::WorkspaceLen, shape::RowShape};

/// Columns up to which the threads of a warp may share a row, and beyond which those of a block may.
pub(super) const WARP_ROW: usize = 1024;
const BLOCK_ROW: usize = 512;
/// The most threads of a block that holds rows; `kHeldThreads` in `kernels/prim/row.cuh`.
pub(super) const HELD_THREADS: usize = 512;
/// The most blocks of a cluster; more than the portable 8 only for rows that 8 blocks cannot hold well.
pub(super) const MAX_CLUSTER: usize = 16;
const PORTABLE_CLUSTER: usize = 8;
const LARGE_CLUSTER_COLS: usize = 1 << 16;
/// Shared memory that the held kernels declare themselves: room for merges, and backward for sums over the parts; a little
/// more than there is.
pub(super) const fn held_static(direction: Direction) -> usize {
    match direction {
        Direction::Forward => 512,
        Direction::Backward => 2560,
    }
}

/// Columns that a thread may own in the backward pass, and how many threads of such an SM has registers for, with
/// `kHeldThreads` and `held_bwd_threads` in mind.
const OWNED: [Owned; 3] = [
    Owned { cols: 8, block: 256, per_sm: 768 },
    Owned { cols: 16, block: 512, per_sm: 512 },
    Owned { cols: 32, block: 512, per_sm: 512 },
];
/// The same, forward, where the registers do not depend on the columns.
const FORWARD_PER_SM: usize = 1024;

struct Owned {
    cols: usize,
    block: usize,
    per_sm: usize,
}

/// Rows that a thread sums in registers: without sums of sums, and with them; `kernels/row_norm_bwd.cuh`.
pub(super) const FLAT_CHAIN: usize = 16;
pub(super) const DEEP_CHAIN: usize = 8 * 16;
/// Rows of a part where rows are streamed. They are summed with compensation; parts end where the error of that would.
pub(super) const STREAMED_ROWS_PER_PART: usize = 2048;

/// Cycles of an SM in a second, and instructions that its four schedulers issue of 16 warps and more.
const CLOCK: f64 = 1.5e9;
const ISSUED_PER_SM: f64 = CLOCK * 4.0 * 0.75;

/// How the elements of a row are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowStrategy {
    /// The threads of a warp hold one row or several.
    WarpPerRow,
    /// The threads of a block hold one row or several.
    BlockPerRow,
    /// The blocks of a cluster hold a row.
    ClusterPerRow,
    /// A block reads the row twice.
    Streaming,
}

/// Which way a plan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From x to y.
    Forward,
    /// From dy to dx.
    Backward,
}

/// What plans may know of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowCall {
    /// Which way.
    pub direction: Direction,
    /// Rows and columns.
    pub shape: RowShape,
    /// Of the tensors.
    pub dtype: DType,
    /// Divides every address and every distance between rows, in bytes.
    pub align: usize,
    /// Whether there is a residual, or a gradient to add.
    pub extra: bool,
}

/// How to run a row norm. Who owns a row, and in which order, does not depend on the number of rows, so a row's bits do
/// not either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlan {
    /// Who owns a row.
    pub strategy: RowStrategy,
    /// Elements per memory access: 16 bytes' worth, or 1.
    pub vec: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Threads of a block that share a row.
    pub lanes: usize,
    /// Blocks that share a row.
    pub cluster: usize,
    /// Rows that each group of lanes has in shared memory: one to compute, and the next one where there are two.
    pub stages: usize,
    /// Accesses of a thread per row and tensor.
    pub packs: usize,
    /// Backward: there is shared memory for sums of sums of columns.
    pub deep: bool,
    /// Backward: the launch itself adds the partial sums up, as all its blocks are resident together.
    pub folds: bool,
    /// Bytes of shared memory of a block.
    pub smem: usize,
    /// Blocks or clusters. Backward: partial sums of the gradients of weight and bias, each by its own.
    pub parts: usize,
    /// Backward: rows of one part.
    pub span: usize,
}

impl RowCall {
    /// Elements per memory access.
    fn vec(&self) -> usize {
        let wide = VEC_BYTES / self.dtype.size();
        if self.align.is_multiple_of(VEC_BYTES) && self.shape.cols().is_multiple_of(wide) { wide } else { 1 }
    }

    /// Tensors that a row is held of. The gradient to add is read once, where dx is written.
    fn held(&self) -> usize {
        match self.direction {
            Direction::Forward => 1 + usize::from(self.extra),
            Direction::Backward => 2,
        }
    }

    /// Tensors that are read.
    fn read(&self) -> usize {
        usize::from(self.direction == Direction::Backward) + 1 + usize::from(self.extra)
    }

    /// The same with so many rows that only the bandwidth of memory counts: where strategies are compared, as the choice
    /// must not depend on rows.
    pub(super) fn reference(&self) -> Self {
        const BYTES: usize = 1 << 28;
        let rows = (BYTES / (self.shape.cols().max(1) * self.dtype.size())).max(1024);
        Self { shape: RowShape::new(rows, self.shape.cols()).unwrap_or(self.shape), ..*self }
    }

    /// All legal plans. The last one, which streams, always is.
    pub fn candidates(&self, device: &DeviceLimits) -> Vec<RowPlan> {
        let mut all = Vec::with_capacity(48);
        self.each_candidate(device, |plan| all.push(plan));
        all
    }

    fn each_candidate(&self, device: &DeviceLimits, mut take: impl FnMut(RowPlan)) {
        let mut found = false;
        let backward = self.direction == Direction::Backward;
        self.each_held(backward, device, |plan| {
            found = true;
            take(plan);
        });
        if backward && !found {
            // Without sums of sums parts are short, and the workspace large.
            self.each_held(false, device, &mut take);
        }
        take(self.streaming(self.vec(), device));
    }

    fn each_held(&self, deep: bool, device: &DeviceLimits, mut take: impl FnMut(RowPlan)) {
        let (cols, vec) = (self.shape.cols(), self.vec());
        let accesses = (cols / vec).max(1);
        let mut held = |strategy, threads: usize, lanes: usize, cluster| {
            let packs = accesses.div_ceil(cluster).div_ceil(lanes);
            if self.direction == Direction::Backward {
                let Some(owned) = OWNED.iter().find(|owned| packs * vec <= owned.cols) else { return };
                // Groups of a block merge where the sums of sums are.
                if threads > owned.block || !deep && threads != lanes.max(WARP) {
                    return;
                }
            }
            let behind = if deep { 2 * size_of::<f32>() } else { 0 };
            for stages in [2, 1] {
                let smem = packs * threads * vec * (stages * self.held() * self.dtype.size() + behind);
                let (parts, span) = (1, 1);
                let plan = RowPlan {
                    strategy,
                    vec,
                    threads,
                    lanes,
                    cluster,
                    stages,
                    packs,
                    deep,
                    folds: false,
                    smem,
                    parts,
                    span,
                };
                if let Some(plan) = plan.cut(self, device) {
                    take(plan);
                }
            }
        };
        if cols <= WARP_ROW {
            for lanes in [1, 2, 4, 8, 16, 32] {
                // No more than half of the lanes idle, and no more than 32 accesses each.
                if accesses > lanes / 2 && accesses <= 32 * lanes {
                    held(RowStrategy::WarpPerRow, THREADS, lanes, 1);
                }
            }
        }
        if cols <= BLOCK_ROW {
            return;
        }
        for lanes in [64, 128, THREADS, HELD_THREADS] {
            if accesses > lanes / 2 {
                held(RowStrategy::BlockPerRow, THREADS.max(lanes), lanes, 1);
            }
        }
        let large = cols > LARGE_CLUSTER_COLS && device.cluster >= PORTABLE_CLUSTER;
        let most = if large { MAX_CLUSTER } else { device.cluster };
        for cluster in [2, 4, 8, 16].into_iter().filter(|&cluster| cluster <= most) {
            for threads in [THREADS, HELD_THREADS] {
                if accesses >= cluster * threads {
                    held(RowStrategy::ClusterPerRow, threads, threads, cluster);
                }
            }
        }
    }

    /// A block reads its row twice, a grid of tiles of columns gathers the gradients of weight and bias.
    fn streaming(&self, vec: usize, device: &DeviceLimits) -> RowPlan {
        let rows = self.shape.rows();
        let tiles = self.shape.cols().div_ceil(MAX_COLUMNS * vec).max(1);
        let warps = THREADS / WARP;
        let to_fill = (device.sms * BLOCKS_PER_SM).div_ceil(tiles).min(rows.div_ceil(warps));
        let for_chains = rows.div_ceil(STREAMED_ROWS_PER_PART);
        let span = rows.div_ceil(to_fill.max(for_chains).max(1)).next_multiple_of(warps).max(warps);
        RowPlan {
            strategy: RowStrategy::Streaming,
            vec,
            threads: THREADS,
            lanes: THREADS,
            cluster: 1,
            stages: 1,
            packs: 1,
            deep: false,
            folds: false,
            smem: 0,
            parts: rows.div_ceil(span).max(1),
            span,
        }
    }

    /// The plan that is predicted to be fastest where rows are many, and its grid for the rows there are.
    ///
    /// A norm of a sum has the bits of the sum and then the norm, wherever the device can hold both addends: the order
    /// in which a row's sums are taken is the one that is chosen for calls without another tensor.
    pub fn plan(&self, device: &DeviceLimits) -> RowPlan {
        let order = memo(&ORDERS, (*self, *device), || {
            let fastest = |call: Self| {
                let (many, candidates) = (call.reference(), call.candidates(device));
                let cost = |plan: &&RowPlan| plan.cost_of_many(&many, device);
                let fastest = candidates.iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
                fastest.expect("streaming is for all calls").order()
            };
            let plain = fastest(Self { extra: false, ..*self });
            match self.candidates(device).iter().any(|plan| plan.order() == plain) {
                true => plain,
                false => fastest(*self),
            }
        });
        let reference = self.reference();
        let seconds = |plan: &RowPlan| match plan.order() == order {
            true => plan.cost_of_many(&reference, device),
            false => f64::INFINITY,
        };
        let plan = choose_once(&PLANS, (*self, *device), || self.candidates(device), seconds, Plan::Row);
        // What is predicted is told of this call, and not of the one that strategies are compared for.
        let seconds = plan.work(self, device).seconds(device);
        LAST.set(LAST.get().map(|choice| Choice { seconds, ..choice }));
        plan
    }
}

/// All of a plan that the bits of a row depend on.
type RowOrder = (RowStrategy, usize, usize, usize, usize, usize);

thread_local! {
    static PLANS: Memo<(RowCall, DeviceLimits), (RowPlan, Choice)> = Memo::default();
    static ORDERS: Memo<(RowCall, DeviceLimits), RowOrder> = Memo::default();
    static WORKSPACES: Memo<(RowShape, DeviceLimits), WorkspaceLen> = Memo::default();
}

impl RowPlan {
    pub(super) fn order(&self) -> RowOrder {
        (self.strategy, self.vec, self.threads, self.lanes, self.cluster, self.packs)
    }

    /// Rows that a block has at a time.
    fn groups(&self) -> usize {
        self.threads / self.lanes
    }

    /// Blocks of an SM.
    pub(super) fn per_sm(&self, direction: Direction, device: &DeviceLimits) -> usize {
        let registers = match direction {
            Direction::Forward => FORWARD_PER_SM,
            Direction::Backward => {
                let owned = OWNED.iter().find(|owned| self.packs * self.vec <= owned.cols);
                owned.map_or(0, |owned| owned.per_sm)
            }
        };
        device.blocks_per_sm(self.threads, self.smem + held_static(direction), registers / self.threads)
    }

    /// Blocks, or clusters, that are on the device at a time.
    fn resident(&self, direction: Direction, device: &DeviceLimits) -> usize {
        let blocks = device.sms * self.per_sm(direction, device);
        // A cluster lies within a group of some 16 SMs, of which a large one leaves some idle.
        if self.cluster > PORTABLE_CLUSTER { blocks / (self.cluster + 2) } else { blocks / self.cluster }
    }

    /// With the grid for the rows of a call; `None` where it does not fit the device.
    fn cut(self, call: &RowCall, device: &DeviceLimits) -> Option<Self> {
        let (rows, groups) = (call.shape.rows().max(1), self.groups());
        let resident = match self.resident(call.direction, device) {
            0 if self.per_sm(call.direction, device) > 0 && self.cluster <= device.sms => 1,
            resident => resident,
        };
        if resident == 0 {
            return None;
        }
        let chain = match (call.direction, self.deep) {
            (Direction::Forward, _) => rows,
            (Direction::Backward, true) => DEEP_CHAIN,
            (Direction::Backward, false) => FLAT_CHAIN,
        };
        let waves = rows.div_ceil(resident.saturating_mul(chain.saturating_mul(groups)));
        let parts = resident.saturating_mul(waves).min(rows.div_ceil(groups));
        let span = rows.div_ceil(parts).next_multiple_of(groups);
        let parts = rows.div_ceil(span);
        let slots = device.sms * self.per_sm(call.direction, device);
        let bytes = call.shape.rows() * call.shape.cols() * call.dtype.size();
        let together = match self.cluster {
            1 => ends_together(parts, slots, bytes),
            // A cluster lies within a group of SMs, of which it may leave almost half idle; large ones may find none.
            2..=PORTABLE_CLUSTER => parts * self.cluster <= slots / 2,
            _ => false,
        };
        let folds = call.direction == Direction::Backward && together;
        (parts.saturating_mul(self.cluster) <= MAX_BLOCKS).then_some(Self { parts, span, folds, ..self })
    }

    /// What it is predicted to take where rows are many.
    fn cost_of_many(&self, reference: &RowCall, device: &DeviceLimits) -> f64 {
        let plan = match self.strategy {
            RowStrategy::Streaming => reference.streaming(self.vec, device),
            _ => self.cut(reference, device).unwrap_or(*self),
        };
        plan.work(reference, device).seconds(device)
    }

    /// What it makes the device do.
    ///
    /// The figures of instructions are counted from the sources and from the code for sm_90, and those of latencies are published ones of others for
    /// H100; nothing here is measured.
    pub fn work(&self, call: &RowCall, device: &DeviceLimits) -> Work {
        let (rows, cols) = (call.shape.rows() as f64, call.shape.cols() as f64);
        let tensor = rows * cols * call.dtype.size() as f64;
        let backward = call.direction == Direction::Backward;
        let read = call.read() as f64 * tensor;
        let written = if backward || !call.extra { tensor } else { 2.0 * tensor };
        let partials = if backward { 2.0 * 4.0 * self.parts as f64 * cols } else { 0.0 };
        let mut work = Work {
            launches: 1 + usize::from(backward && !self.folds),
            dram_bytes: read + written + partials + 8.0 * rows,
            l2_bytes: 0.0,
            barriers: f64::from(u8::from(self.folds)),
            busy: 1.0,
        };
        if 2.0 * partials < device.l2 as f64 {
            work.l2_bytes += partials
        } else {
            work.dram_bytes += partials
        }
        if self.strategy == RowStrategy::Streaming {
            work.launches += usize::from(backward);
            let row_bytes = tensor / rows.max(1.0) * call.read() as f64;
            let at_a_time = row_bytes * (device.sms * BLOCKS_PER_SM) as f64;
            let again =
                if 2.0 * at_a_time < device.l2 as f64 { &mut work.l2_bytes } else { &mut work.dram_bytes };
            *again += if backward { 2.0 * tensor } else { tensor };
            if backward {
                work.dram_bytes += 2.0 * tensor; // the kernel of the parameters
            }
        }
        let at_full_speed = (work.dram_bytes + 0.5 * work.l2_bytes) * 1e-9 / device.copy_gb_per_s as f64;
        if self.strategy == RowStrategy::Streaming {
            // Every element is read, widened and standardized twice, or three times.
            let elements = cols * 1.3 * self.instructions_per_element(backward, call.dtype) / WARP as f64;
            let instructions = rows * (elements + self.instructions_of_a_row(backward));
            let issued = device.sms as f64 * ISSUED_PER_SM;
            let busy = (rows / device.sms as f64).clamp(1e-3, 1.0) * 0.9;
            work.busy = busy.min(at_full_speed / (instructions / issued));
            return work;
        }
        work.busy = at_full_speed / at_full_speed.max(self.seconds_held(call, device)).max(1e-12);
        work
    }

    /// The longest of: what memory takes for what is asked of it at a time; what the SMs take for instructions; and what
    /// a group of threads takes for its rows one after another.
    fn seconds_held(&self, call: &RowCall, device: &DeviceLimits) -> f64 {
        const LATENCY: f64 = 0.9e-6; // of memory under load
        let (rows, cols) = (call.shape.rows() as f64, call.shape.cols() as f64);
        let backward = call.direction == Direction::Backward;
        let groups = self.groups() as f64;
        let resident = self.resident(call.direction, device).max(1).min(self.parts) as f64;
        let rounds = (rows / (groups * resident)).ceil();

        let read = call.read() as f64 * call.dtype.size() as f64;
        let asked = resident * groups * cols * read * if self.stages == 2 { 1.5 } else { 0.6 };
        let whole_lines = (self.lanes * self.vec * call.dtype.size()).min(128) as f64 / 128.0;
        let speed = device.copy_gb_per_s as f64 * 1e9 * (0.8 + 0.2 * whole_lines);
        let share = if backward { 0.67 } else { 0.5 }; // reads of all that is moved
        let memory = rows * cols * read / (speed * share).min(asked / LATENCY);

        let block_warps = self.threads as f64 / WARP as f64;
        let row_warps = self.lanes as f64 * self.cluster as f64 / WARP as f64;
        let lanes_idle = (self.packs * self.vec * self.lanes * self.cluster) as f64;
        let per_element = self.instructions_per_element(backward, call.dtype);
        let instructions =
            rows * (lanes_idle * per_element / WARP as f64 + self.instructions_of_a_row(backward));
        let sms = device.sms as f64;
        let warps_per_sm = (resident * self.cluster as f64 * block_warps / sms).max(0.1);
        let issued = sms * ISSUED_PER_SM * (warps_per_sm / 16.0).min(1.0);

        let waits = match self.strategy {
            RowStrategy::WarpPerRow => 0.2e-6,
            RowStrategy::BlockPerRow => 0.4e-6,
            _ => 1.6e-6,
        };
        let alone = (lanes_idle / row_warps) * per_element / WARP as f64 * 2.0 / CLOCK;
        // A row of each group, with the SM to itself.
        let block_bytes = groups * cols * read / self.cluster as f64;
        let load = LATENCY + block_bytes / (speed * share / sms);
        let round = if self.stages == 2 { load.max(waits + alone) } else { load + waits + alone };
        let chain = LATENCY + rounds * round;
        memory.max(instructions / issued).max(chain)
    }

    /// Those that all warps of a row take for it however long it is: finding it, and merging.
    fn instructions_of_a_row(&self, backward: bool) -> f64 {
        let steps = |lanes: usize| lanes.ilog2() as f64;
        let merges = steps(self.lanes.min(WARP)) + steps((self.lanes / WARP).max(1)) + steps(self.cluster);
        let warps = (self.lanes * self.cluster) as f64 / WARP as f64;
        warps * if backward { 150.0 + merges * 5.0 } else { 60.0 + merges * 20.0 }
    }

    fn instructions_per_element(&self, backward: bool, dtype: DType) -> f64 {
        let owned = self.packs * self.vec;
        // `HeldRegisters` in `kernels/row_norm_bwd.cuh`.
        let in_registers =
            self.strategy != RowStrategy::Streaming && (owned <= 8 || owned <= 16 && dtype.size() == 2);
        match (backward, self.vec) {
            (false, 1) => 25.0,
            (false, _) => 14.0,
            (true, 1) => 45.0,
            (true, _) if in_registers => 15.0,
            (true, _) => 26.0,
        }
    }

    /// What a backward pass needs of a workspace.
    pub(super) fn workspace(&self, shape: RowShape) -> WorkspaceLen {
        WorkspaceLen { counters: 2, words: 2 * self.parts * shape.cols() }
    }
}

/// What is enough for every type and every alignment, and for every legal plan.
pub fn row_norm_workspace(shape: RowShape, device: DeviceLimits) -> WorkspaceLen {
    memo(&WORKSPACES, (shape, device), || {
        let mut enough = WorkspaceLen::default();
        for (dtype, align) in WORKSPACE_CASES {
            for extra in [false, true] {
                let call = RowCall { direction: Direction::Backward, shape, dtype, align, extra };
                call.each_candidate(&device, |plan| enough = enough.max(plan.workspace(shape)));
            }
        }
        enough
    })
}
