// Launches the kernels of teams of the channel norms forward.
#include "channel_norm_fwd_team.cuh"

#include "launchers.cuh"
#include "prim/channel_launch.cuh"

namespace WN_NAMESPACE {

dev::Status channel_norm_fwd_team_launch(const wn_channel_norm_fwd& args, const wn_channel_team& team,
                                         const ChannelLaunch& on, float* partials, float* vars) {
  const bool fused = args.residual || args.activation != WN_ACT_NONE;
  const bool averages = args.running == WN_RUNNING_AVERAGED && team.folds;
  unsigned* const average_counters = averages ? args.counters + team_counters(team) : nullptr;
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return visit_team_tile<T, 4, 8>(team.walk, [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      const auto launch = [&](auto kernel) {
        return on.launch_team<T, Tile, 1, decltype(kernel)::value>(team, averages, args, team, partials, args.counters, vars,
                                                                   average_counters);
      };
      return fused ? launch(KernelTag<channel_norm_fwd_team<T, Tile, true>>{})
                   : launch(KernelTag<channel_norm_fwd_team<T, Tile, false>>{});
    });
  });
}

}  // namespace WN_NAMESPACE
