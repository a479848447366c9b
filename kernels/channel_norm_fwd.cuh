// BatchNorm forward: statistics of each channel, and y = (x - mean) * rstd * weight + bias.
#pragma once

#include "prim/channel_tile.cuh"
#include "prim/stats.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// Normalizes the elements a thread owns. The statistics are those of its channels.
template <class T, class Tile>
__device__ __forceinline__ void apply_norm(const Tile& tile, const wn_batch_norm_fwd& args,
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
    store_chunk(static_cast<T*>(args.y), values, at, loads);
  });
}

/// Saves the statistics of one channel and moves its running statistics.
__device__ __forceinline__ void finish_channel(const wn_batch_norm_fwd& args, int64_t channel, float count, float mean,
                                               float m2, float rstd) {
  if (args.mean) args.mean[channel] = mean;
  if (args.rstd) args.rstd[channel] = rstd;
  if (args.running_mean) args.running_mean[channel] = args.keep * args.running_mean[channel] + args.take * mean;
  if (args.running_var) {
    args.running_var[channel] = args.keep * args.running_var[channel] + args.take * (m2 / (count - 1.f));
  }
}

/// Gathers statistics. With one split per channel the block has them all and goes on to `apply_norm`, unless another
/// launch is to (`stats_only`). Else each block hands in a partial result, and the last one of a tile merges them.
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads)
    batch_norm_fwd_train(const wn_batch_norm_fwd args, const wn_channel_walk walk, float* partials, unsigned* counters,
                         bool stats_only) {
  using Stat = Moments<Tile::kLanes>;
  const Tile tile(walk);
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
      float* means = partials;
      float* m2s = partials + walk.splits * walk.channels;
      if (tile.rank() == 0 && tile.live()) {
        const int64_t at = tile.split() * walk.channels + tile.channel();
#pragma unroll
        for (int lane = 0; lane < Tile::kLanes; ++lane) {
          means[at + lane] = stat.mean[lane];
          m2s[at + lane] = stat.m2[lane];
        }
      }
      if (!is_last_block(&counters[tile.tile()], walk.splits)) return;
      stat = merge_splits<Stat>(tile, walk.splits, [&](int split) {
        const int64_t left = size - split * walk.span;
        const int64_t at = split * walk.channels + tile.channel();
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
      finish_channel(args, tile.channel() + lane, stat.count, stat.mean[lane], stat.m2[lane], rstd[lane]);
    }
  }
  if (!stats_only) apply_norm<T>(tile, args, stat.mean, rstd);
}

/// Applies statistics that are known: those an earlier launch saved (`var` null), or running ones.
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads)
    batch_norm_fwd_apply(const wn_batch_norm_fwd args, const wn_channel_walk walk, const float* mean_in,
                         const float* rstd_in, const float* var_in) {
  const Tile tile(walk);
  if (!tile.live()) return;
  float mean[Tile::kLanes], rstd[Tile::kLanes];
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    const int64_t i = args.whole_batch ? 0 : tile.channel() + lane;
    mean[lane] = mean_in[i];
    rstd[lane] = var_in ? reciprocal_std(var_in[i], args.eps) : rstd_in[i];
  }
  apply_norm<T>(tile, args, mean, rstd);
}

}  // namespace WN_NAMESPACE
