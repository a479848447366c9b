// What the launchers of the channel norms share. Host code only.
#pragma once

#include "prim/team.cuh"
#include "prim/visit.cuh"

namespace WN_NAMESPACE {

/// Counters that the teams' barriers take.
inline int team_counters(const wn_channel_team& team) { return team.join == WN_GRID ? 2 * team.teams : 0; }

/// A stream, and whether to enqueue on it or only to load kernels.
class ChannelLaunch {
 public:
  ChannelLaunch(wn_action action, wn_stream stream) {
    config_.block = dim3(kThreads);
    config_.stream = reinterpret_cast<dev::Stream>(stream);
    config_.prepare_only = action == WN_PREPARE;
  }

  /// Launches the blocks that `Tile` needs for a walk.
  template <class Tile, auto kKernel, class... Args>
  dev::Status launch(const wn_channel_walk& walk, Args... args) const {
    const int64_t blocks = Tile::blocks(walk);
    const bool splits_fit = walk.splits == 1 || (walk.splits > 1 && Tile::kCanSplit);
    return splits_fit ? launch_blocks<kKernel>(blocks, args...) : dev::kInvalidValue;
  }

  /// Launches the blocks of all teams, with the shared memory that they hold chunks of `kTensors` tensors in. `together`:
  /// all blocks of the grid wait for each other, and not only those of a team.
  template <class T, class Tile, int kTensors, auto kKernel, class... Args>
  dev::Status launch_team(const wn_channel_team& team, bool together, Args... args) const {
    const bool in_range = team.size >= 1 && team.teams >= 1 && team.chunks >= 1 && team.held >= 0 && team.units >= 1 &&
                          team.tiles >= 1 && (team.walk.splits == 1 || (team.walk.splits > 1 && Tile::kCanSplit)) &&
                          int64_t(team.tiles) * team.walk.splits <= INT32_MAX &&
                          team.size <= team.tiles * team.walk.splits && (team.join != WN_ALONE || team.size == 1);
    if (!in_range) return dev::kInvalidValue;
    dev::LaunchConfig config = config_;
    config.dynamic_smem = Held<T, Tile, kTensors>::bytes(team);
    config.cooperative = together || team.join == WN_GRID;
    if (team.join == WN_CLUSTER) config.cluster = team.size;
    const int64_t blocks = int64_t(team.teams) * team.size;
    if (blocks > INT32_MAX) return dev::kInvalidValue;
    config.grid = dim3(static_cast<unsigned>(blocks));
    return dev::launch<kKernel>(config, args...);
  }

  /// A launch on the same stream whose grid is not yet known.
  const dev::LaunchConfig& config() const { return config_; }

  template <auto kKernel, class... Args> dev::Status launch_blocks(int64_t blocks, Args... args) const {
    if (blocks < 1 || blocks > INT32_MAX) return dev::kInvalidValue;
    dev::LaunchConfig config = config_;
    config.grid = dim3(static_cast<unsigned>(blocks));
    return dev::launch<kKernel>(config, args...);
  }

 private:
  dev::LaunchConfig config_;
};

/// The parts of a channel norm's workspace. `ChannelPlan::workspace` in src/cuda/plan/channel/mod.rs sizes it.
struct ChannelWorkspace {
  float* kept = nullptr;      // [3, slabs]: means, reciprocal deviations and variances, or two sums
  float* totals = nullptr;    // [2, statistics]
  float* partials = nullptr;  // [2, splits, slabs of the walk that gathers]

  ChannelWorkspace(float* words, const wn_channel_walk& apply, int64_t group) {
    if (!words) return;
    const int64_t slabs = apply.segments * apply.channels;
    kept = words;
    totals = kept + 3 * slabs;
    partials = totals + 2 * (slabs / group);
  }
};

}  // namespace WN_NAMESPACE
