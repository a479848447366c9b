// The last step of running statistics that are averages over the segments, in a launch of its own.
#pragma once

#include "channel_norm_average.cuh"

namespace WN_NAMESPACE {

/// Moves running statistics per channel by the mean over the segments of `means` and `vars`, [segments, channels].
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_fwd_running(const wn_channel_norm_fwd args, const float* means, const float* vars, int64_t segments,
                             int64_t channels, int columns) {
  const ColumnBlock<> block(channels, columns, blockIdx.x);
  const ColumnSums total = block.sum(means, vars, segments);
  if (!block.writes()) return;
  move_to_average(args, block.col(), total, segments);
}

}  // namespace WN_NAMESPACE
