//! What plans may know of a device, and what they predict of the time that work takes on it.

/// What a plan may know of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceLimits {
    /// Streaming multiprocessors.
    pub sms: usize,
    /// Shared memory of an SM, in bytes.
    pub smem_per_sm: usize,
    /// The most shared memory that a block may ask for, in bytes.
    pub smem_per_block: usize,
    /// Threads that an SM holds at a time.
    pub threads_per_sm: usize,
    /// The L2 cache, in bytes.
    pub l2: usize,
    /// The most blocks of a cluster on any device of the kind; 1 where there are no clusters.
    pub cluster: usize,
    /// What a copy within the device's memory reaches, in GB/s, bytes read and written both counted.
    pub copy_gb_per_s: usize,
}

impl DeviceLimits {
    /// H200 SXM: 4.8 TB/s on paper, 4.3 in a copy.
    pub const H200: Self = Self {
        sms: 132,
        smem_per_sm: 228 << 10,
        smem_per_block: 227 << 10,
        threads_per_sm: 2048,
        l2: 60 << 20,
        cluster: 8,
        copy_gb_per_s: 4300,
    };
    /// A100 SXM of 40 GB: 1,555 GB/s on paper.
    pub const A100: Self = Self {
        sms: 108,
        smem_per_sm: 164 << 10,
        smem_per_block: 163 << 10,
        threads_per_sm: 2048,
        l2: 40 << 20,
        cluster: 1,
        copy_gb_per_s: 1350,
    };
    /// GeForce RTX 4090: 1,008 GB/s on paper.
    pub const RTX_4090: Self = Self {
        sms: 128,
        smem_per_sm: 100 << 10,
        smem_per_block: 99 << 10,
        threads_per_sm: 1536,
        l2: 72 << 20,
        cluster: 1,
        copy_gb_per_s: 920,
    };
    /// A device so small that small tensors meet its limits: what the emulator describes.
    pub const SMALL: Self = Self {
        sms: 4,
        smem_per_sm: 64 << 10,
        smem_per_block: 63 << 10,
        threads_per_sm: 2048,
        l2: 256 << 10,
        cluster: 8,
        copy_gb_per_s: 130,
    };

    /// The part of the memory's throughput that so many blocks of 256 threads can ask for, of whose loads the part
    /// `used` has elements. Guesses: two blocks on each SM ask for all of it, one for nine tenths; half the loads do.
    pub(crate) fn busy(&self, blocks: f64, used: f64) -> f64 {
        let per_sm = (blocks / self.sms as f64).min(2.0);
        let asked = if per_sm <= 1.0 { 0.9 * per_sm } else { 0.8 + 0.1 * per_sm };
        asked * (2.0 * used).min(1.0)
    }

    /// What the system keeps of an SM's shared memory for each block.
    pub(crate) const SMEM_RESERVED: usize = 1 << 10;

    /// Blocks of `threads` threads and `smem` bytes of shared memory that fit an SM, of a kernel whose registers leave
    /// room for `by_registers`.
    pub(crate) fn blocks_per_sm(&self, threads: usize, smem: usize, by_registers: usize) -> usize {
        if smem > self.smem_per_block {
            return 0;
        }
        let by_smem = self.smem_per_sm / (smem + Self::SMEM_RESERVED);
        by_registers.min(by_smem).min(self.threads_per_sm / threads)
    }
}

/// What a plan makes a device do, as far as it takes time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Kernels, one after another.
    pub launches: usize,
    /// Bytes moved between the device's memory and the chip.
    pub dram_bytes: f64,
    /// Bytes read again that the L2 cache still has.
    pub l2_bytes: f64,
    /// Times that blocks wait for each other with nothing else to do.
    pub barriers: f64,
    /// Parts of the device's throughput that the blocks at work can use, 0 to 1.
    pub busy: f64,
}

impl Work {
    /// A launch from start to end with nothing to do, and what a launch behind another adds, in seconds. Figures of
    /// others for H100-class devices; not measured here.
    const LAUNCH: f64 = 2.0e-6;
    /// A barrier of blocks through the L2 cache, likewise.
    const BARRIER: f64 = 1.2e-6;
    /// How much faster the L2 cache answers than memory. A guess from published figures of 5 to 10 TB/s on H100.
    const L2_SPEEDUP: f64 = 2.0;

    /// The time that it is predicted to take, in seconds.
    pub fn seconds(&self, device: &DeviceLimits) -> f64 {
        let per_byte = 1e-9 / device.copy_gb_per_s as f64;
        let bytes = self.dram_bytes + self.l2_bytes / Self::L2_SPEEDUP;
        self.launches as f64 * Self::LAUNCH
            + self.barriers * Self::BARRIER
            + bytes * per_byte / self.busy.clamp(1e-6, 1.0)
    }
}
