// Launcher of the channel norms backward: looks the plan up, launches, reports.
#include "channel_norm_bwd.cuh"

#include "fold_params.cuh"
#include "launchers.cuh"
#include "prim/channel_launch.cuh"

namespace WN_NAMESPACE {
namespace {

/// One call's arguments, plan and workspace.
struct Call {
  const wn_channel_norm_bwd& args;
  const wn_channel_plan& plan;
  const ChannelLaunch on;
  const ChannelWorkspace workspace;

  const wn_channel_walk& walk() const { return plan.stats; }
  int64_t slabs() const { return walk().segments * walk().channels; }
  bool is_fused() const { return args.activation != WN_ACT_NONE; }
  bool sums_wanted() const { return args.dweight || args.dbias; }
  bool elements_wanted() const { return args.dx || args.dresidual; }
};

/// `sums` is where a later launch finds the sums, null where there is none.
dev::Status launch_reduce(const Call& call, float* sums) {
  return visit_dtype(call.args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(call.walk(), [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      const auto launch = [&](auto kernel) {
        return call.on.launch<Tile, decltype(kernel)::value>(call.walk(), call.args, call.walk(),
                                                             call.workspace.partials, call.args.counters, sums);
      };
      return call.is_fused() ? launch(KernelTag<channel_norm_bwd_reduce<T, Tile, true>>{})
                             : launch(KernelTag<channel_norm_bwd_reduce<T, Tile, false>>{});
    });
  });
}

dev::Status launch_combine(const Call& call) {
  return visit_dtype(call.args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return call.on.launch_blocks<channel_norm_bwd_combine<T>>(call.slabs() / call.args.group, call.args,
                                                              call.walk().channels, call.slabs(),
                                                              call.workspace.kept, call.workspace.totals);
  });
}

dev::Status launch_apply(const Call& call) {
  const wn_channel_walk& walk = call.plan.apply;
  const int64_t count = walk.outer * walk.inner * call.args.group;
  return visit_dtype(call.args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_tile<T>(walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      const auto launch = [&](auto kernel) {
        return call.on.launch<Tile, decltype(kernel)::value>(walk, call.args, walk, call.workspace.kept,
                                                             call.workspace.totals, call.slabs() / call.args.group,
                                                             static_cast<float>(count));
      };
      return call.is_fused() ? launch(KernelTag<channel_norm_bwd_apply<T, Tile, true>>{})
                             : launch(KernelTag<channel_norm_bwd_apply<T, Tile, false>>{});
    });
  });
}

/// dweight and dbias from the sums of all segments.
dev::Status launch_fold(const Call& call) {
  const ParamSums sums =
      param_sums(call.args, call.workspace.kept, call.walk().segments, call.walk().channels);
  return fold_params(sums, call.on.config());
}

dev::Status launch_gradients(const Call& call) {
  const bool segmented = call.walk().segments > 1;
  float* const kept = call.workspace.kept;
  dev::Status status = dev::kSuccess;
  if (call.args.running_only && !call.sums_wanted()) return launch_apply(call);
  if (call.args.running_only) {
    status = launch_reduce(call, segmented ? kept : nullptr);
  } else if (call.plan.strategy == WN_TEAM) {
    status = channel_norm_bwd_team_launch(call.args, call.plan.team, call.on, call.workspace.partials,
                                          segmented ? kept : nullptr);
  } else if (call.plan.strategy == WN_SPLIT) {
    status = launch_reduce(call, kept);
    if (call.elements_wanted()) {
      if (status == dev::kSuccess && call.args.group > 1) status = launch_combine(call);
      if (status == dev::kSuccess) status = launch_apply(call);
    }
  } else {
    return dev::kInvalidValue;
  }
  const bool folds_itself = !call.args.running_only && call.plan.strategy == WN_TEAM && call.plan.team.folds;
  const bool to_fold = segmented && call.sums_wanted() && !folds_itself;
  return status == dev::kSuccess && to_fold ? launch_fold(call) : status;
}

}  // namespace

int32_t channel_norm_bwd(const wn_channel_norm_bwd* args, const wn_channel_plan* plan, wn_action action,
                         wn_stream stream) {
  if (args->group < 1) return dev::kInvalidValue;
  const Call call{*args, *plan, ChannelLaunch(action, stream),
                  ChannelWorkspace(args->workspace, plan->apply, args->group)};
  // Without slabs there is nothing to gather, but the sums over nothing are asked for.
  return call.slabs() == 0 ? launch_fold(call) : launch_gradients(call);
}

}  // namespace WN_NAMESPACE
