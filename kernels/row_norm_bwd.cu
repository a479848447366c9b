// Launcher of the row norms backward: looks the plan up, launches, reports.
#include "row_norm_bwd.cuh"

#include "fold_params.cuh"
#include "launchers.cuh"
#include "prim/visit.cuh"

namespace WN_NAMESPACE {
namespace {

/// The most rows that a thread of a streaming kernel sums one after another.
constexpr int kMaxChain = 256;

bool sums_wanted(const wn_row_norm_bwd& args) { return args.dweight || args.dbias; }

bool in_range(const wn_row_norm_bwd& args, const wn_row_plan& plan) {
  if (args.rows < 1 || args.cols < 1 || args.cols > INT32_MAX || args.block < 1) return false;
  if (plan.parts < 1 || plan.span < 1 || plan.span > INT64_MAX / plan.parts) return false;
  return plan.parts * plan.span >= args.rows;
}

/// Rows that are held: one kernel makes all there is to make.
template <class T, int kVec>
dev::Status launch_held(const wn_row_norm_bwd& args, const wn_row_plan& plan, dev::LaunchConfig config) {
  const int64_t slots = plan.stages * 2 * int64_t(sizeof(T));
  const int64_t behind = plan.deep ? 2 * int64_t(sizeof(float)) : 0;
  if (!holds(plan, args.cols, (slots + behind) * kVec)) return dev::kInvalidValue;
  if (int64_t(plan.parts) * plan.cluster > INT32_MAX) return dev::kInvalidValue;
  if (sums_wanted(args)) {
    const int64_t chain = plan.deep ? kChain * kChains : kFlatChain;
    if (plan.span > chain * (plan.threads / plan.lanes)) return dev::kInvalidValue;
    if (!plan.deep && plan.threads > (plan.lanes < kWarp ? kWarp : plan.lanes)) return dev::kInvalidValue;
  }
  config.grid = dim3(static_cast<unsigned>(plan.parts) * plan.cluster);
  config.block = dim3(static_cast<unsigned>(plan.threads));
  config.dynamic_smem = static_cast<size_t>(plan.smem);
  config.cluster = static_cast<unsigned>(plan.cluster);
  config.cooperative = plan.folds != 0 && sums_wanted(args);
  const int cols = plan.packs * kVec;
  if (plan.threads > held_bwd_threads(cols)) return dev::kInvalidValue;
  if (cols <= 8) return dev::launch<row_norm_bwd_held<T, kVec, 8>>(config, args, plan);
  if (cols <= 16) return dev::launch<row_norm_bwd_held<T, kVec, 16>>(config, args, plan);
  if (cols <= 32) return dev::launch<row_norm_bwd_held<T, kVec, 32>>(config, args, plan);
  return dev::kInvalidValue;
}

/// Rows of any length: a kernel for dx, and one for dweight and dbias.
template <class T, int kVec>
dev::Status launch_streamed(const wn_row_norm_bwd& args, const wn_row_plan& plan, dev::LaunchConfig config) {
  if (args.dx || config.prepare_only) {
    config.grid = dim3(static_cast<unsigned>(args.rows < INT32_MAX ? args.rows : INT32_MAX));  // it loops over the rest
    const dev::Status status = dev::launch<row_norm_bwd_stream<T, kVec>>(config, args);
    if (status != dev::kSuccess) return status;
  }
  if (!sums_wanted(args) && !config.prepare_only) return dev::kSuccess;
  if (plan.span > int64_t(kMaxChain) * kWarps) return dev::kInvalidValue;
  const int64_t tiles = (args.cols - 1) / (kWarp * kVec) + 1;
  if (tiles * plan.parts > INT32_MAX) return dev::kInvalidValue;
  config.grid = dim3(static_cast<unsigned>(tiles * plan.parts));
  return dev::launch<row_norm_bwd_params<T, kVec>>(config, args, plan.span, plan.parts, static_cast<int>(tiles));
}

template <class T, int kVec>
dev::Status launch(const wn_row_norm_bwd& args, const wn_row_plan& plan, const dev::LaunchConfig& config) {
  switch (plan.strategy) {
    case WN_ROW_HELD: return launch_held<T, kVec>(args, plan, config);
    case WN_ROW_STREAMED: return launch_streamed<T, kVec>(args, plan, config);
  }
  return dev::kInvalidValue;
}

dev::Status fold(const wn_row_norm_bwd& args, int parts, const dev::LaunchConfig& config) {
  return fold_params(param_sums(args, args.workspace, parts, args.cols), config);
}

}  // namespace

int32_t row_norm_bwd(const wn_row_norm_bwd* args, const wn_row_plan* plan, wn_action action, wn_stream stream) {
  dev::LaunchConfig config;
  config.block = dim3(kThreads);
  config.stream = reinterpret_cast<dev::Stream>(stream);
  config.prepare_only = action == WN_PREPARE;
  // Without rows there is nothing to gather, but the sums over nothing may be asked for.
  if (args->rows == 0 && sums_wanted(*args)) return fold(*args, 0, config);
  if (!in_range(*args, *plan)) return dev::kInvalidValue;
  if (!args->dx && !sums_wanted(*args) && !config.prepare_only) return dev::kSuccess;
  const dev::Status status = visit_dtype(args->x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    constexpr int kWide = kVecBytes / sizeof(T);
    if (plan->vec == kWide) return launch<T, kWide>(*args, *plan, config);
    if (plan->vec == 1) return launch<T, 1>(*args, *plan, config);
    return dev::kInvalidValue;
  });
  if (status != dev::kSuccess || (!sums_wanted(*args) && !config.prepare_only)) return status;
  const bool folds_itself = plan->strategy == WN_ROW_HELD && plan->folds && !config.prepare_only;
  return folds_itself ? dev::kSuccess : fold(*args, plan->parts, config);
}

}  // namespace WN_NAMESPACE
