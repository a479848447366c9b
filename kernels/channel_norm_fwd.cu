// Launcher of the channel norms forward: looks the plan up, launches, reports.
#include "channel_norm_fwd.cuh"

#include "channel_norm_running.cuh"
#include "launchers.cuh"
#include "prim/channel_launch.cuh"

namespace WN_NAMESPACE {
namespace {

bool is_fused(const wn_channel_norm_fwd& args) { return args.residual || args.activation != WN_ACT_NONE; }

/// Statistics known beforehand, or by an earlier launch.
dev::Status launch_apply(const wn_channel_norm_fwd& args, const wn_channel_walk& walk, const ChannelLaunch& on,
                         const float* mean, const float* rstd, const float* var) {
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      const auto launch = [&](auto kernel) {
        return on.launch<Tile, decltype(kernel)::value>(walk, args, walk, mean, rstd, var);
      };
      return is_fused(args) ? launch(KernelTag<channel_norm_fwd_apply<T, Tile, true>>{})
                            : launch(KernelTag<channel_norm_fwd_apply<T, Tile, false>>{});
    });
  });
}

dev::Status launch_train(const wn_channel_norm_fwd& args, const wn_channel_walk& walk, const ChannelLaunch& on,
                         float* partials, float* vars) {
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      return on.launch<Tile, channel_norm_fwd_train<T, Tile>>(walk, args, walk, partials, args.counters, vars);
    });
  });
}

dev::Status launch_running(const wn_channel_norm_fwd& args, const wn_channel_walk& walk, const ChannelLaunch& on,
                           const float* vars) {
  const int columns = ColumnBlock<>::width(walk.channels);
  return on.launch_blocks<channel_norm_fwd_running>(ColumnBlock<>::blocks(walk.channels), args, args.mean, vars,
                                                    walk.segments, walk.channels, columns);
}

}  // namespace

int32_t channel_norm_fwd(const wn_channel_norm_fwd* args, const wn_channel_plan* plan, wn_action action,
                         wn_stream stream) {
  if (args->group < 1) return dev::kInvalidValue;
  const ChannelLaunch on(action, stream);
  if (args->running == WN_RUNNING_FIXED) {
    return launch_apply(*args, plan->apply, on, args->running_mean, nullptr, args->running_var);
  }
  const ChannelWorkspace workspace(args->workspace, plan->apply, args->group);
  const int64_t slabs = plan->apply.segments * plan->apply.channels;
  const bool averaged = args->running == WN_RUNNING_AVERAGED;
  float* vars = workspace.kept ? workspace.kept + 2 * slabs : nullptr;

  wn_channel_norm_fwd saving = *args;  // what a later launch reads is kept, wanted or not
  const bool split = plan->strategy == WN_SPLIT;
  if (!split && plan->strategy != WN_TEAM) return dev::kInvalidValue;
  if (!saving.mean && (split || averaged)) saving.mean = workspace.kept;
  if (!saving.rstd && split) saving.rstd = workspace.kept ? workspace.kept + slabs : nullptr;

  dev::Status status = split ? launch_train(saving, plan->stats, on, workspace.partials, vars)
                             : channel_norm_fwd_team_launch(saving, plan->team, on, workspace.partials, vars);
  const bool averages_itself = !split && plan->team.folds;
  if (status == dev::kSuccess && averaged && !averages_itself) status = launch_running(saving, plan->apply, on, vars);
  if (status == dev::kSuccess && split) {
    status = launch_apply(saving, plan->apply, on, saving.mean, saving.rstd, nullptr);
  }
  return status;
}

}  // namespace WN_NAMESPACE
