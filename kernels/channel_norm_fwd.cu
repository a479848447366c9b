// Launcher of BatchNorm forward: looks the plan up, launches, reports.
#include "batch_norm_fwd.cuh"

#include "launchers.cuh"
#include "prim/channel_launch.cuh"

namespace WN_NAMESPACE {
namespace {

/// Statistics known beforehand, or by an earlier launch.
dev::Status launch_apply(const wn_batch_norm_fwd& args, const wn_channel_walk& walk, const ChannelLaunch& on,
                         const float* mean, const float* rstd, const float* var) {
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      return on.launch<Tile, batch_norm_fwd_apply<T, Tile>>(walk, args, walk, mean, rstd, var);
    });
  });
}

dev::Status launch_train(const wn_batch_norm_fwd& args, const wn_channel_walk& walk, const ChannelLaunch& on,
                         const ChannelWorkspace& workspace, bool stats_only) {
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      return on.launch<Tile, batch_norm_fwd_train<T, Tile>>(walk, args, walk, workspace.partials, args.counters,
                                                            stats_only);
    });
  });
}

}  // namespace

int32_t batch_norm_fwd(const wn_batch_norm_fwd* args, const wn_channel_plan* plan, wn_action action,
                       wn_stream stream) {
  const ChannelLaunch on(action, stream);
  if (args->running_only) {
    return launch_apply(*args, plan->apply, on, args->running_mean, nullptr, args->running_var);
  }
  const ChannelWorkspace workspace(args->workspace, plan->stats);
  switch (plan->strategy) {
    case WN_SINGLE: return launch_train(*args, plan->stats, on, workspace, false);
    case WN_SPLIT: {
      wn_batch_norm_fwd saving = *args;
      if (!saving.mean) saving.mean = workspace.statistics;
      if (!saving.rstd) saving.rstd = workspace.statistics + plan->stats.channels;
      const dev::Status status = launch_train(saving, plan->stats, on, workspace, true);
      if (status != dev::kSuccess) return status;
      return launch_apply(saving, plan->apply, on, saving.mean, saving.rstd, nullptr);
    }
  }
  return dev::kInvalidValue;
}

}  // namespace WN_NAMESPACE
