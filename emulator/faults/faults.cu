// The table of planted faults.
#include "faults.h"

#include "block_faults.cuh"
#include "copy_faults.cuh"
#include "fixture.cuh"
#include "grid_faults.cuh"
#include "l2_passes.cuh"
#include "memory_faults.cuh"

namespace WN_NAMESPACE {
namespace faults {
namespace {

struct Fault {
  const char* name;
  const char* tool;
  bool needs_checks;
  int32_t (*planted)();
  int32_t (*clean)();
};

constexpr bool kNeedsChecks = true;
constexpr bool kAnyBuild = false;

#define WN_FAULT(function, tool, needs_checks) \
  Fault { #function, tool, needs_checks, &function<true>, &function<false> }

constexpr Fault kFaults[] = {
    WN_FAULT(missing_barrier_before_partials, "racecheck|initcheck", kNeedsChecks),
    WN_FAULT(read_of_unwritten_shared_memory, "initcheck", kNeedsChecks),
    WN_FAULT(full_mask_shuffle_in_divergent_branch, "synccheck", kAnyBuild),
    WN_FAULT(shuffle_from_lane_outside_mask, "synccheck", kAnyBuild),
    WN_FAULT(shared_write_out_of_bounds, "memcheck|ubsan", kNeedsChecks),
    WN_FAULT(divergent_barrier, "synccheck", kAnyBuild),
    WN_FAULT(missing_barrier_before_broadcast, "racecheck", kNeedsChecks),
    WN_FAULT(shared_memory_reused_without_barrier, "racecheck", kNeedsChecks),
    WN_FAULT(missing_syncwarp, "racecheck", kNeedsChecks),
    WN_FAULT(early_return_before_barrier, "synccheck", kAnyBuild),
    WN_FAULT(early_return_before_shuffle, "synccheck", kAnyBuild),
    WN_FAULT(threads_wait_at_different_barriers, "synccheck", kAnyBuild),
    WN_FAULT(vector_access_to_unaligned_shared_array, "memcheck", kAnyBuild),
    WN_FAULT(dynamic_shared_memory_too_short, "memcheck", kNeedsChecks),
    WN_FAULT(dynamic_shared_memory_over_limit, "launch", kAnyBuild),
    WN_FAULT(missing_fence_before_ticket, "racecheck", kNeedsChecks),
    WN_FAULT(missing_fence_after_ticket, "racecheck", kNeedsChecks),
    WN_FAULT(ticket_is_not_atomic, "racecheck", kNeedsChecks),
    WN_FAULT(blocks_add_without_atomic, "racecheck", kNeedsChecks),
    WN_FAULT(block_barrier_in_place_of_grid_sync, "racecheck|initcheck", kNeedsChecks),
    WN_FAULT(grid_sync_without_cooperative_launch, "synccheck", kAnyBuild),
    WN_FAULT(cooperative_grid_not_resident, "launch", kAnyBuild),
    WN_FAULT(block_barrier_in_place_of_cluster_sync, "racecheck|initcheck", kNeedsChecks),
    WN_FAULT(block_exits_while_its_shared_memory_is_read, "memcheck", kNeedsChecks),
    WN_FAULT(cluster_does_not_divide_grid, "launch", kAnyBuild),
    WN_FAULT(copy_read_before_it_lands, "initcheck", kNeedsChecks),
    WN_FAULT(wait_for_too_few_copies, "initcheck", kNeedsChecks),
    WN_FAULT(misaligned_copy, "memcheck", kAnyBuild),
    WN_FAULT(exit_with_copies_on_their_way, "synccheck", kAnyBuild),
    WN_FAULT(missing_fence_before_counter, "racecheck", kNeedsChecks),
    WN_FAULT(missing_fence_after_poll, "racecheck", kNeedsChecks),
    WN_FAULT(plain_read_of_a_polled_counter, "racecheck", kNeedsChecks),
    WN_FAULT(wait_for_a_block_that_never_comes, "synccheck", kAnyBuild),
    WN_FAULT(empty_grid, "launch", kAnyBuild),
    WN_FAULT(block_too_large, "launch", kAnyBuild),
    WN_FAULT(grid_too_large_along_y, "launch", kAnyBuild),
    WN_FAULT(vector_read_out_of_bounds, "memcheck", kNeedsChecks),
    WN_FAULT(scalar_read_out_of_bounds_by_one, "memcheck", kNeedsChecks),
    WN_FAULT(scalar_write_out_of_bounds_by_one, "memcheck", kNeedsChecks),
    WN_FAULT(misaligned_vector_read, "memcheck", kAnyBuild),
    WN_FAULT(partial_never_written, "initcheck", kNeedsChecks),
    WN_FAULT(index_overflows_32_bits, "ubsan", kNeedsChecks),
    WN_FAULT(host_pointer_passed_to_kernel, "memcheck", kNeedsChecks),
    WN_FAULT(null_pointer_passed_to_kernel, "memcheck|ubsan", kNeedsChecks),
    WN_FAULT(write_after_free, "memcheck", kNeedsChecks),
};

template <bool kExtraRead> dev::Status probe_traffic(wn_emulated_launch* seen) {
  constexpr int kCount = 1000;
  const Floats x = Floats::inputs(kCount);
  const Floats y(kCount);
  wn_emulated_log_start(0);
  const dev::Status status = dev::launch<copy_floats<kExtraRead>>(
      grid_of((kCount - 1) / kThreads + 1), x.data(), y.data(), kCount);
  wn_emulated_log_stop();
  return status != dev::kSuccess ? status : wn_emulated_log_get(0, seen);
}

}  // namespace
}  // namespace faults
}  // namespace WN_NAMESPACE

using namespace WN_NAMESPACE::faults;

int32_t wn_emulated_fault_count(void) { return sizeof kFaults / sizeof kFaults[0]; }

const char* wn_emulated_fault_name(int32_t i) { return kFaults[i].name; }

const char* wn_emulated_fault_tool(int32_t i) { return kFaults[i].tool; }

int32_t wn_emulated_fault_needs_checks(int32_t i) { return kFaults[i].needs_checks; }

int32_t wn_emulated_fault_run(int32_t i, int32_t planted) {
  return planted ? kFaults[i].planted() : kFaults[i].clean();
}

int32_t wn_emulated_traffic_probe(int32_t extra_read, uint64_t* read, uint64_t* written) {
  wn_emulated_launch seen{};
  const int32_t status = extra_read ? probe_traffic<true>(&seen) : probe_traffic<false>(&seen);
  *read = seen.bytes_read;
  *written = seen.bytes_written;
  return status;
}

int32_t wn_emulated_l2_probe(wn_emulated_pass* passes, int32_t count, int32_t floats,
                             uint64_t l2_bytes) {
  return run_passes(passes, count, floats, l2_bytes);
}
