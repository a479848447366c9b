// BatchNorm, GroupNorm and InstanceNorm forward: statistics of slabs, and
// y = act((x - mean) * rstd * weight + bias + residual).
#pragma once

#include "prim/activation.cuh"
#include "prim/channel_tile.cuh"
#include "prim/column_sums.cuh"
#include "prim/stats.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// Normalizes the elements a thread owns. The statistics are those of its slabs. `kFused` compiles in what follows scale
/// and shift.
template <class T, bool kFused, class Tile>
__device__ __forceinline__ void apply_norm(const Tile& tile, const wn_channel_norm_fwd& args,
                                           const float (&mean)[Tile::kLanes], const float (&rstd)[Tile::kLanes]) {
  if (!tile.live()) return;
  const Params<T> weight = weight_params<T>(args.weight, args.param_dtype);
  const Params<T> bias = bias_params<T>(args.bias, args.param_dtype);
  float scale[Tile::kLanes], shift[Tile::kLanes];
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    scale[lane] = weight.at(tile.channel() + lane);
    shift[lane] = bias.at(tile.channel() + lane);
  }
  tile.walk([&](const int64_t(&at)[Tile::kLoads], int loads) {
    float values[Tile::kLoads][Tile::kVec];
    load_chunk(values, static_cast<const T*>(args.x), at, loads);
#pragma unroll
    for (int k = 0; k < Tile::kLoads; ++k)
#pragma unroll
      for (int i = 0; i < Tile::kVec; ++i) {
        const int lane = Tile::kLanes == 1 ? 0 : i;
        // In this order: a difference taken first gives exactly `bias` where x = mean, and x_hat is of order one
        // whatever the spread, where rstd * weight might overflow.
        values[k][i] = (values[k][i] - mean[lane]) * rstd[lane] * scale[lane] + shift[lane];
      }
    if constexpr (kFused) {
      if (args.residual) {
        float residuals[Tile::kLoads][Tile::kVec];
        load_chunk(residuals, static_cast<const T*>(args.residual), at, loads);
#pragma unroll
        for (int k = 0; k < Tile::kLoads; ++k)
#pragma unroll
          for (int i = 0; i < Tile::kVec; ++i) values[k][i] += residuals[k][i];
      }
#pragma unroll
      for (int k = 0; k < Tile::kLoads; ++k)
#pragma unroll
        for (int i = 0; i < Tile::kVec; ++i) values[k][i] = activate(args.activation, values[k][i]);
    }
    store_chunk(static_cast<T*>(args.y), values, at, loads);
  });
}

/// How far running statistics move: running = keep * running + take * new.
struct Momentum {
  float keep, take;

  __device__ __forceinline__ explicit Momentum(const wn_channel_norm_fwd& args) : keep(args.keep), take(args.take) {
    if (!args.momentum) return;
    take = *args.momentum;
    keep = 1.f - take;
  }

  /// A factor of 0 leaves the old value alone, even where the new one is NaN.
  __device__ __forceinline__ void move(float* running, int64_t i, float value) const {
    if (take != 0.f) running[i] = keep * running[i] + take * value;
  }
};

/// Saves a statistic, and moves the running one that belongs to it or leaves the unbiased variance for another launch.
__device__ __forceinline__ void finish_statistic(const wn_channel_norm_fwd& args, int64_t statistic, float count,
                                                 float mean, float m2, float rstd, float* unbiased_vars) {
  if (args.mean) args.mean[statistic] = mean;
  if (args.rstd) args.rstd[statistic] = rstd;
  if (args.running == WN_RUNNING_EACH) {
    const Momentum momentum(args);
    momentum.move(args.running_mean, statistic, mean);
    momentum.move(args.running_var, statistic, m2 / (count - 1.f));
  }
  if (args.running == WN_RUNNING_AVERAGED) unbiased_vars[statistic] = m2 / (count - 1.f);
}

/// Gathers statistics, one per slab of the walk. With one split per slab the block has them all and goes on to
/// `apply_norm`, unless another launch is to (`stats_only`). Else each block hands in a partial result, and the last one
/// of a tile merges them.
template <class T, class Tile, bool kFused>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_fwd_train(const wn_channel_norm_fwd args, const wn_channel_walk walk, float* partials,
                           unsigned* counters, float* unbiased_vars, bool stats_only) {
  using Stat = Moments<Tile::kLanes>;
  const Tile tile = Tile::of_block(walk);
  Stat stat = Stat::empty();
  tile.walk([&](const int64_t(&at)[Tile::kLoads], int loads) {
    float values[Tile::kLoads][Tile::kVec];
    load_chunk(values, static_cast<const T*>(args.x), at, loads);
    stat.push(values, loads);
  });
  stat = tile.merge(stat);

  if constexpr (Tile::kCanSplit) {
    if (walk.splits > 1) {
      const int64_t size = walk.outer * walk.inner;
      const int64_t slabs = walk.segments * walk.channels;
      float* means = partials;
      float* m2s = partials + walk.splits * slabs;
      if (tile.rank() == 0 && tile.live()) {
        const int64_t at = tile.split() * slabs + tile.slab();
#pragma unroll
        for (int lane = 0; lane < Tile::kLanes; ++lane) {
          means[at + lane] = stat.mean[lane];
          m2s[at + lane] = stat.m2[lane];
        }
      }
      if (!is_last_block(&counters[tile.tile()], walk.splits)) return;
      stat = merge_splits<Stat>(tile, walk.splits, [&](int split) {
        const int64_t left = size - split * walk.span;
        const int64_t at = split * slabs + tile.slab();
        Stat partial;
        partial.count = static_cast<float>(left < walk.span ? left : walk.span);
#pragma unroll
        for (int lane = 0; lane < Tile::kLanes; ++lane) {
          partial.mean[lane] = means[at + lane];
          partial.m2[lane] = m2s[at + lane];
        }
        return partial;
      });
    }
  }

  float rstd[Tile::kLanes];
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    rstd[lane] = reciprocal_std(stat.var(lane), args.eps);
    if (tile.rank() == 0 && tile.live()) {
      finish_statistic(args, tile.slab() + lane, stat.count, stat.mean[lane], stat.m2[lane], rstd[lane],
                       unbiased_vars);
    }
  }
  if (!stats_only) apply_norm<T, kFused>(tile, args, stat.mean, rstd);
}

/// Applies statistics that are known: those an earlier launch saved (`var_in` null), or running ones.
template <class T, class Tile, bool kFused>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_fwd_apply(const wn_channel_norm_fwd args, const wn_channel_walk walk, const float* mean_in,
                           const float* rstd_in, const float* var_in) {
  const Tile tile = Tile::of_block(walk);
  if (!tile.live()) return;
  float mean[Tile::kLanes], rstd[Tile::kLanes];
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    const int64_t i = statistic_of(tile.slab() + lane, args.group);
    mean[lane] = mean_in[i];
    rstd[lane] = var_in ? reciprocal_std(var_in[i], args.eps) : rstd_in[i];
  }
  apply_norm<T, kFused>(tile, args, mean, rstd);
}

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
