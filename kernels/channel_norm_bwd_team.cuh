// BatchNorm, GroupNorm and InstanceNorm backward in training, in one launch: teams of blocks gather the sums of a unit
// of slabs and make dx from them, holding in shared memory what they have read as far as it fits.
#pragma once

#include <type_traits>

#include "channel_norm_bwd.cuh"
#include "fold_params.cuh"
#include "prim/team.cuh"

namespace WN_NAMESPACE {

/// Tensors that are read in both phases: x, dy, and the residual where the activation's slope depends on it.
template <bool kFused> constexpr int kGradTensors = kFused ? 3 : 2;

/// `sums`, [2, slabs], is where the sums of several segments go, which are added up with two `fold_counters`, or by another
/// launch where these are null; null where there is one segment.
template <class T, class Tile, bool kFused>
__global__ void __launch_bounds__(kThreads, kTeamBlocks)
    channel_norm_bwd_team(const wn_channel_norm_bwd args, const wn_channel_team team, float* partials,
                          unsigned* counters, float* sums, unsigned* fold_counters) {
  using Stat = GradSums<Tile::kLanes>;
  using Chunk = float[Tile::kLoads][Tile::kVec];
  using Holder = Held<T, Tile, kGradTensors<kFused>>;
  using Slot = typename Holder::Slot;
  using Keep = std::integral_constant<Cache, Cache::kKeep>;
  using Pass = std::integral_constant<Cache, Cache::kPass>;
  DEV_DYN_SHARED(Slot, slots);
  Holder held(team, slots);
  Member member(team);
  const T* x = static_cast<const T*>(args.x);
  const T* dy = static_cast<const T*>(args.dy);
  const T* residual = kFused && reads_residual(args) ? static_cast<const T*>(args.residual) : nullptr;
  const PartialSums parts(partials, team.walk);
  const int pieces = member.pieces();
  const int chunks = pieces * team.chunks;
  const int held_chunks = team.held < chunks ? team.held : chunks;
  // Where some chunks are read again, the outputs must not push them out of the cache.
  const Cache outputs = held_chunks < chunks ? Cache::kPass : Cache::kKeep;
  const bool elements_wanted = args.dx || args.dresidual;
  const bool alone = member.pieces_per_unit() == 1 && args.group == 1;  // the sums need no one else
  const auto start = [&](const Tile& tile, int piece, int chunk) {
    int64_t at[Tile::kLoads];
    const int loads = tile.chunk(chunk, at);
    held.start(0, piece, chunk, x, at, loads);
    held.start(1, piece, chunk, dy, at, loads);
    if constexpr (kFused) {
      if (residual) held.start(2, piece, chunk, residual, at, loads);
    }
    dev::copy_commit();
  };
  // Reads a chunk and turns it into d and x_hat.
  const auto read = [&](auto cache, const SlabGrad<Tile::kLanes>& slab, bool is_held, int piece, int chunk,
                        const int64_t(&at)[Tile::kLoads], int loads, Chunk& ds, Chunk& x_hats) {
    constexpr Cache kCache = decltype(cache)::value;
    Chunk residuals;
    if (is_held) {
      held.read(x_hats, 0, piece, chunk, loads);
      held.read(ds, 1, piece, chunk, loads);
      if constexpr (kFused) held.read(residuals, 2, piece, chunk, residual ? loads : 0);
    } else {
      load_chunk<kCache>(x_hats, x, at, loads);
      load_chunk<kCache>(ds, dy, at, loads);
      if constexpr (kFused) load_chunk<kCache>(residuals, residual, at, residual ? loads : 0);
    }
    to_grad<kFused, Tile>(args, slab, ds, x_hats, residuals);
  };

  member.template begin<Tile>(held_chunks, start);
  for (int64_t unit = member.first_unit(); unit < team.units; unit += team.teams) {
    SlabSums<Tile::kLanes> own;
    for (int piece = 0; piece < pieces; ++piece) {
      const Tile tile = member.template tile<Tile>(unit, piece);
      const SlabGrad<Tile::kLanes> slab = SlabGrad<Tile::kLanes>::template read<T, kFused>(tile, args);
      Stat stat = Stat::empty();
      for (int chunk = 0; chunk < team.chunks; ++chunk) {
        const int number = piece * team.chunks + chunk;
        if (number < held_chunks) wait_for_copies(held_chunks - 1 - number);
        int64_t at[Tile::kLoads];
        const int loads = tile.chunk(chunk, at);
        Chunk ds, x_hats;
        read(Keep{}, slab, number < held_chunks, piece, chunk, at, loads, ds, x_hats);
        if (loads > 0) stat.push(ds, x_hats, loads);
      }
      own.take(tile.merge(stat));
      if (!alone && tile.rank() == 0 && tile.live()) parts.put(tile.slab(), tile.split(), own);
    }
    if (!alone) member.barrier(counters);

    const bool more = unit + team.teams < team.units;
    const float count = static_cast<float>(team.walk.outer * team.walk.inner * args.group);
    int current = -1;
    Tile tile = member.template tile<Tile>(unit, 0);
    Tile next = tile;
    SlabGrad<Tile::kLanes> slab{};  // filled at the first piece
    for (int step = 0; step < chunks; ++step) {
      const int number = second_phase_chunk(step, chunks, held_chunks);
      const int piece = number / team.chunks;
      const int chunk = number - piece * team.chunks;
      if (piece != current) {
        current = piece;
        tile = member.template tile<Tile>(unit, piece);
        if (more) next = member.template tile<Tile>(unit + team.teams, piece);
        slab = SlabGrad<Tile::kLanes>::template read<T, kFused>(tile, args);
        const bool writes_sums = tile.split() == 0 && is_first_visit(number, piece, team.chunks, held_chunks);
        if (!alone && (args.group == 1 || writes_sums)) {
          own.take(merge_splits<Stat>(tile, team.walk.splits,
                                      [&](int split) { return parts.get<Tile::kLanes>(tile.slab(), split); }));
        }
        if (writes_sums) store_sums<T>(tile, args, team.walk, own, sums);
        if (args.group > 1) {
          const Params<T> weights = weight_params<T>(args.weight, args.param_dtype);
          merge_group<GradSums<1>>(
              tile, team.walk, args.group,
              [&](int64_t s, int split) {
                return parts.get<1>(s, split, weights.at(static_cast<unsigned>(s) % static_cast<unsigned>(team.walk.channels)));
              },
              [&](int lane, const GradSums<1>& all) {
                slab.mean_g[lane] = all.dy[0].total() / count;
                slab.mean_gx[lane] = all.dy_x_hat[0].total() / count;
              });
        } else {
#pragma unroll
          for (int lane = 0; lane < Tile::kLanes; ++lane) {
            slab.mean_g[lane] = slab.weight[lane] * (own.d[lane] / count);
            slab.mean_gx[lane] = slab.weight[lane] * (own.d_x_hat[lane] / count);
          }
        }
      }
      int64_t at[Tile::kLoads];
      const int loads = tile.chunk(chunk, at);
      Chunk ds, x_hats;
      if (elements_wanted) read(Pass{}, slab, number < held_chunks, piece, chunk, at, loads, ds, x_hats);
      if (more && number < held_chunks) start(next, piece, chunk);
      if (elements_wanted) store_dx<T, Tile>(args, slab, at, loads, ds, x_hats, outputs);
    }
  }
  member.leave(counters);
  if (fold_counters) {
    fold_params_in_launch<T>(param_sums(args, sums, team.walk.segments, team.walk.channels), fold_counters);
  }
}

}  // namespace WN_NAMESPACE
