// Running statistics that are averages over the segments.
#pragma once

#include "channel_norm_fwd.cuh"
#include "prim/column_sums.cuh"

namespace WN_NAMESPACE {

/// Moves the running statistics of a channel towards the mean of `segments` ones.
__device__ __forceinline__ void move_to_average(const wn_channel_norm_fwd& args, int64_t channel, const ColumnSums& sums,
                                                int64_t segments) {
  const Momentum momentum(args);
  const float n = static_cast<float>(segments);
  momentum.move(args.running_mean, channel, sums.first.total() / n);
  momentum.move(args.running_var, channel, sums.second.total() / n);
}

}  // namespace WN_NAMESPACE
