// BatchNorm, GroupNorm and InstanceNorm forward in one launch: teams of blocks gather the statistics of a unit of slabs
// and apply them, holding in shared memory what they have read as far as it fits.
#pragma once

#include "channel_norm_average.cuh"
#include "channel_norm_fwd.cuh"
#include "prim/team.cuh"

namespace WN_NAMESPACE {

/// `average_counters`: where running statistics are averages that this launch takes, two counters; else null.
template <class T, class Tile, bool kFused>
__global__ void __launch_bounds__(kThreads, kTeamBlocks)
    channel_norm_fwd_team(const wn_channel_norm_fwd args, const wn_channel_team team, float* partials,
                          unsigned* counters, float* unbiased_vars, unsigned* average_counters) {
  using Stat = Moments<Tile::kLanes>;
  using Chunk = float[Tile::kLoads][Tile::kVec];
  using Holder = Held<T, Tile, 1>;
  using Slot = typename Holder::Slot;
  DEV_DYN_SHARED(Slot, slots);
  Holder held(team, slots);
  Member member(team);
  const T* x = static_cast<const T*>(args.x);
  const PartialMoments parts(partials, team.walk);
  const int pieces = member.pieces();
  const int chunks = pieces * team.chunks;
  const int held_chunks = team.held < chunks ? team.held : chunks;
  // Where some chunks are read again, the output must not push them out of the cache.
  const Cache output = held_chunks < chunks ? Cache::kPass : Cache::kKeep;
  const bool alone = member.pieces_per_unit() == 1 && args.group == 1;  // the statistics need no one else
  const auto start = [&](const Tile& tile, int piece, int chunk) {
    int64_t at[Tile::kLoads];
    const int loads = tile.chunk(chunk, at);
    held.start(0, piece, chunk, x, at, loads);
    dev::copy_commit();
  };

  member.template begin<Tile>(held_chunks, start);
  for (int64_t unit = member.first_unit(); unit < team.units; unit += team.teams) {
    Stat stat = Stat::empty();
    for (int piece = 0; piece < pieces; ++piece) {
      const Tile tile = member.template tile<Tile>(unit, piece);
      stat = Stat::empty();
      for (int chunk = 0; chunk < team.chunks; ++chunk) {
        const int number = piece * team.chunks + chunk;
        int64_t at[Tile::kLoads];
        const int loads = tile.chunk(chunk, at);
        Chunk values;
        if (number < held_chunks) {
          wait_for_copies(held_chunks - 1 - number);
          held.read(values, 0, piece, chunk, loads);
        } else {
          load_chunk(values, x, at, loads);
        }
        if (loads > 0) stat.push(values, loads);
      }
      stat = tile.merge(stat);
      if (!alone && tile.rank() == 0 && tile.live()) parts.put(tile.slab(), tile.split(), stat);
    }
    if (!alone) member.barrier(counters);

    const bool more = unit + team.teams < team.units;
    int current = -1;
    Tile tile = member.template tile<Tile>(unit, 0);
    Tile next = tile;
    SlabNorm<Tile::kLanes> slab{};  // filled at the first piece
    for (int step = 0; step < chunks; ++step) {
      const int number = second_phase_chunk(step, chunks, held_chunks);
      const int piece = number / team.chunks;
      const int chunk = number - piece * team.chunks;
      if (piece != current) {
        current = piece;
        tile = member.template tile<Tile>(unit, piece);
        if (more) next = member.template tile<Tile>(unit + team.teams, piece);
        float count = stat.count, m2[Tile::kLanes];
        const auto take = [&](int lane, float n, float mean, float sum, float var) {
          count = n;
          slab.mean[lane] = mean;
          m2[lane] = sum;
          slab.rstd[lane] = reciprocal_std(var, args.eps);
        };
        if (args.group > 1) {
          merge_group<Moments<1>>(
              tile, team.walk, args.group, [&](int64_t s, int split) { return parts.get<1>(s, split); },
              [&](int lane, const Moments<1>& all) { take(lane, all.count, all.mean[0], all.m2[0], all.var(0)); });
        } else {
          if (!alone) {
            stat = merge_splits<Stat>(tile, team.walk.splits,
                                      [&](int split) { return parts.get<Tile::kLanes>(tile.slab(), split); });
          }
#pragma unroll
          for (int lane = 0; lane < Tile::kLanes; ++lane)
            take(lane, stat.count, stat.mean[lane], stat.m2[lane], stat.var(lane));
        }
        slab.template read_params<T>(tile, args);
        const bool first_visit = is_first_visit(number, piece, team.chunks, held_chunks);
        if (first_visit && tile.split() == 0 && tile.rank() == 0 && tile.live()) {
#pragma unroll
          for (int lane = 0; lane < Tile::kLanes; ++lane) {
            const int64_t s = tile.slab() + lane;
            const int64_t statistic = statistic_of(s, args.group);
            if (statistic * args.group != s) continue;
            finish_statistic(args, statistic, count, slab.mean[lane], m2[lane], slab.rstd[lane], unbiased_vars);
          }
        }
      }
      int64_t at[Tile::kLoads];
      const int loads = tile.chunk(chunk, at);
      Chunk values;
      if (number < held_chunks) {
        held.read(values, 0, piece, chunk, loads);
        if (more) start(next, piece, chunk);
      } else {
        load_chunk<Cache::kPass>(values, x, at, loads);
      }
      store_norm<T, kFused, Tile>(args, slab, at, loads, values, output);
    }
  }
  member.leave(counters);
  if (average_counters) {
    sum_columns_in_launch(args.mean, unbiased_vars, team.walk.segments, team.walk.channels, average_counters,
                          [&](int64_t channel, const ColumnSums& sums) {
                            move_to_average(args, channel, sums, team.walk.segments);
                          });
  }
}

}  // namespace WN_NAMESPACE
