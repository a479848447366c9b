// BatchNorm, GroupNorm and InstanceNorm forward: statistics of slabs, and
// y = act((x - mean) * rstd * weight + bias + residual).
#pragma once

#include "prim/activation.cuh"
#include "prim/channel_tile.cuh"
#include "prim/stats.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// What a thread knows of its slabs: y = act((x - mean) * rstd * scale + shift + residual).
template <int kLanes> struct SlabNorm {
  float mean[kLanes], rstd[kLanes], scale[kLanes], shift[kLanes];

  /// Reads weights and biases; the statistics are not known yet.
  template <class T, class Tile>
  __device__ __forceinline__ void read_params(const Tile& tile, const wn_channel_norm_fwd& args) {
    const Params<T> weight = weight_params<T>(args.weight, args.param_dtype);
    const Params<T> bias = bias_params<T>(args.bias, args.param_dtype);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      scale[lane] = tile.live() ? weight.at(tile.channel() + lane) : 0.f;
      shift[lane] = tile.live() ? bias.at(tile.channel() + lane) : 0.f;
    }
  }
};

/// Normalizes a chunk and writes it. `kFused` compiles in what follows scale and shift.
template <class T, bool kFused, class Tile>
__device__ __forceinline__ void store_norm(const wn_channel_norm_fwd& args, const SlabNorm<Tile::kLanes>& slab,
                                           const int64_t (&at)[Tile::kLoads], int loads,
                                           float (&values)[Tile::kLoads][Tile::kVec], Cache cache = Cache::kKeep) {
#pragma unroll
  for (int k = 0; k < Tile::kLoads; ++k)
#pragma unroll
    for (int i = 0; i < Tile::kVec; ++i) {
      const int lane = Tile::kLanes == 1 ? 0 : i;
      // In this order: a difference taken first gives exactly `bias` where x = mean, and x_hat is of order one
      // whatever the spread, where rstd * weight might overflow.
      values[k][i] = (values[k][i] - slab.mean[lane]) * slab.rstd[lane] * slab.scale[lane] + slab.shift[lane];
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
  store_chunk(static_cast<T*>(args.y), values, at, loads, cache);
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

/// A split's partial result among those of all slabs: means and sums of squared deviations, [splits, slabs] each.
struct PartialMoments {
  float* means;
  float* m2s;
  int64_t slabs, size, span;

  __device__ __forceinline__ PartialMoments(float* partials, const wn_channel_walk& walk)
      : means(partials),
        m2s(partials + walk.splits * walk.segments * walk.channels),
        slabs(walk.segments * walk.channels),
        size(walk.outer * walk.inner),
        span(walk.span) {}

  template <int kLanes> __device__ __forceinline__ void put(int64_t slab, int64_t split, const Moments<kLanes>& stat) const {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      means[split * slabs + slab + lane] = stat.mean[lane];
      m2s[split * slabs + slab + lane] = stat.m2[lane];
    }
  }

  template <int kLanes> __device__ __forceinline__ Moments<kLanes> get(int64_t slab, int64_t split) const {
    const int64_t left = size - split * span;
    Moments<kLanes> stat;
    stat.count = static_cast<float>(left < span ? left : span);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      stat.mean[lane] = means[split * slabs + slab + lane];
      stat.m2[lane] = m2s[split * slabs + slab + lane];
    }
    return stat;
  }
};

/// Gathers statistics, one per slab of the walk. With several splits each block hands in a partial result, and the last
/// one of a tile merges them.
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_fwd_train(const wn_channel_norm_fwd args, const wn_channel_walk walk, float* partials,
                           unsigned* counters, float* unbiased_vars) {
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
      const PartialMoments parts(partials, walk);
      if (tile.rank() == 0 && tile.live()) parts.put(tile.slab(), tile.split(), stat);
      if (!is_last_block(&counters[tile.tile()], walk.splits)) return;
      stat = merge_splits<Stat>(tile, walk.splits,
                                [&](int split) { return parts.get<Tile::kLanes>(tile.slab(), split); });
    }
  }

  if (tile.rank() != 0 || !tile.live()) return;
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    finish_statistic(args, tile.slab() + lane, stat.count, stat.mean[lane], stat.m2[lane],
                     reciprocal_std(stat.var(lane), args.eps), unbiased_vars);
  }
}

/// Applies statistics that are known: those an earlier launch saved (`var_in` null), or running ones.
template <class T, class Tile, bool kFused>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_fwd_apply(const wn_channel_norm_fwd args, const wn_channel_walk walk, const float* mean_in,
                           const float* rstd_in, const float* var_in) {
  const Tile tile = Tile::of_block(walk);
  if (!tile.live()) return;
  SlabNorm<Tile::kLanes> slab;
  slab.template read_params<T>(tile, args);
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    const int64_t i = statistic_of(tile.slab() + lane, args.group);
    slab.mean[lane] = mean_in[i];
    slab.rstd[lane] = var_in ? reciprocal_std(var_in[i], args.eps) : rstd_in[i];
  }
  tile.walk([&](const int64_t(&at)[Tile::kLoads], int loads) {
    float values[Tile::kLoads][Tile::kVec];
    load_chunk(values, static_cast<const T*>(args.x), at, loads);
    store_norm<T, kFused, Tile>(args, slab, at, loads, values);
  });
}

}  // namespace WN_NAMESPACE
