// Launches the kernels of teams of the channel norms backward.
#include "channel_norm_bwd_team.cuh"

#include <type_traits>

#include "launchers.cuh"
#include "prim/channel_launch.cuh"

namespace WN_NAMESPACE {

dev::Status channel_norm_bwd_team_launch(const wn_channel_norm_bwd& args, const wn_channel_team& team,
                                         const ChannelLaunch& on, float* partials, float* sums) {
  const bool fused = args.activation != WN_ACT_NONE;
  const bool folds = sums && (args.dweight || args.dbias) && team.folds;
  unsigned* const fold_counters = folds ? args.counters + team_counters(team) : nullptr;
  return visit_dtype(args.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    const auto launch = [&](auto is_fused) {
      constexpr bool kFused = decltype(is_fused)::value;
      return visit_team_tile<T, 2, 4>(team.walk, [&](auto tile) {
        using Tile = typename decltype(tile)::type;
        return on.launch_team<T, Tile, kGradTensors<kFused>, channel_norm_bwd_team<T, Tile, kFused>>(
            team, folds, args, team, partials, args.counters, sums, fold_counters);
      });
    };
    return fused ? launch(std::true_type{}) : launch(std::false_type{});
  });
}

}  // namespace WN_NAMESPACE
