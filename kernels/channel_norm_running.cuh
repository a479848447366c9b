// The last step of running statistics that are averages over the segments.
#pragma once

#include "channel_norm_fwd.cuh"
#include "prim/column_sums.cuh"

namespace WN_NAMESPACE {

/// Moves running statistics per channel by the mean over the segments of `means` and `vars`, [segments, channels].
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_fwd_running(const wn_channel_norm_fwd args, const float* means, const float* vars, int64_t segments,
                             int64_t channels, int columns) {
  const ColumnBlock block(channels, columns);
  const ColumnSums total = block.sum(means, vars, segments);
  if (!block.writes()) return;
  const Momentum momentum(args);
  const float n = static_cast<float>(segments);
  momentum.move(args.running_mean, block.col(), total.first.total() / n);
  momentum.move(args.running_var, block.col(), total.second.total() / n);
}

}  // namespace WN_NAMESPACE
