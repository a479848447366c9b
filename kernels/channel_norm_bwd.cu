// Launcher of BatchNorm backward: looks the plan up, launches, reports.
#include "batch_norm_bwd.cuh"

#include "launchers.cuh"
#include "prim/channel_launch.cuh"

namespace WN_NAMESPACE {
namespace {

/// `sums` is where a later launch finds the sums, null where there is none.
dev::Status launch_reduce(const wn_batch_norm_bwd& args, const wn_channel_walk& walk, const ChannelLaunch& on,
                          const ChannelWorkspace& workspace, float* sums, bool stats_only) {
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      return on.launch<Tile, batch_norm_bwd_reduce<T, Tile>>(walk, args, walk, workspace.partials, args.counters,
                                                             sums, stats_only);
    });
  });
}

dev::Status launch_combine(const wn_batch_norm_bwd& args, int64_t channels, const ChannelLaunch& on,
                           const ChannelWorkspace& workspace) {
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return on.launch_blocks<batch_norm_bwd_combine<T>>(1, args, channels, workspace.statistics, workspace.totals);
  });
}

dev::Status launch_apply(const wn_batch_norm_bwd& args, const wn_channel_walk& walk, const ChannelLaunch& on,
                         const ChannelWorkspace& workspace) {
  const int64_t count = walk.outer * walk.inner * (args.whole_batch ? walk.channels : 1);
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      return on.launch<Tile, batch_norm_bwd_apply<T, Tile>>(walk, args, walk, workspace.statistics, workspace.totals,
                                                            static_cast<float>(count));
    });
  });
}

}  // namespace

int32_t batch_norm_bwd(const wn_batch_norm_bwd* args, const wn_channel_plan* plan, wn_action action,
                       wn_stream stream) {
  const ChannelLaunch on(action, stream);
  const ChannelWorkspace workspace(args->workspace, plan->stats);
  const bool sums_wanted = args->dweight || args->dbias;
  if (args->running_only) {
    return sums_wanted ? launch_reduce(*args, plan->stats, on, workspace, nullptr, true)
                       : launch_apply(*args, plan->apply, on, workspace);
  }
  switch (plan->strategy) {
    case WN_SINGLE: return launch_reduce(*args, plan->stats, on, workspace, nullptr, args->dx == nullptr);
    case WN_SPLIT: {
      dev::Status status = launch_reduce(*args, plan->stats, on, workspace, workspace.statistics, true);
      if (status != dev::kSuccess || !args->dx) return status;
      if (args->whole_batch) status = launch_combine(*args, plan->stats.channels, on, workspace);
      if (status != dev::kSuccess) return status;
      return launch_apply(*args, plan->apply, on, workspace);
    }
  }
  return dev::kInvalidValue;
}

}  // namespace WN_NAMESPACE
