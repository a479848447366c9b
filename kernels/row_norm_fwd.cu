// Launcher of the row norms forward: looks the plan up, launches, reports.
#include "row_norm_fwd.cuh"

#include "launchers.cuh"
#include "prim/visit.cuh"

namespace WN_NAMESPACE {
namespace {

template <class T, int kVec, class Stat>
dev::Status launch(const wn_row_norm_fwd& args, wn_row_strategy strategy, dev::LaunchConfig config) {
  const auto grid = [&](int64_t rows_per_block) {
    const int64_t blocks = (args.rows - 1) / rows_per_block + 1;
    return dim3(static_cast<unsigned>(blocks < INT32_MAX ? blocks : INT32_MAX));  // the kernels loop over the rest
  };
  switch (strategy) {
    case WN_WARP_PER_ROW:
      if (args.cols > kWarpRow) return dev::kInvalidValue;
      config.grid = grid(kWarps);
      return dev::launch<row_norm_fwd_warp<T, kVec, Stat>>(config, args);
    case WN_BLOCK_PER_ROW:
      config.grid = grid(1);
      return dev::launch<row_norm_fwd_block<T, kVec, Stat>>(config, args);
  }
  return dev::kInvalidValue;
}

/// LayerNorm or RMSNorm; both where kernels are only loaded.
template <class T, int kVec>
dev::Status launch(const wn_row_norm_fwd& args, wn_row_strategy strategy, const dev::LaunchConfig& config) {
  if (args.rms || config.prepare_only) {
    const dev::Status status = launch<T, kVec, MeanSquare>(args, strategy, config);
    if (args.rms || status != dev::kSuccess) return status;
  }
  return launch<T, kVec, Moments<1>>(args, strategy, config);
}

}  // namespace

int32_t row_norm_fwd(const wn_row_norm_fwd* args, const wn_row_plan* plan, wn_action action, wn_stream stream) {
  if (args->rows < 1 || args->cols < 1 || args->cols > INT32_MAX || args->block < 1) return dev::kInvalidValue;
  if (!args->residual != !args->h) return dev::kInvalidValue;
  dev::LaunchConfig config;
  config.block = dim3(kThreads);
  config.stream = reinterpret_cast<dev::Stream>(stream);
  config.prepare_only = action == WN_PREPARE;
  return visit_dtype(args->x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    constexpr int kWide = kVecBytes / sizeof(T);
    if (plan->vec == kWide) return launch<T, kWide>(*args, plan->strategy, config);
    if (plan->vec == 1) return launch<T, 1>(*args, plan->strategy, config);
    return dev::kInvalidValue;
  });
}

}  // namespace WN_NAMESPACE
