// Declarations of the launchers, for the table that hands them out and for each other.
#pragma once

#include "dev.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

int32_t channel_norm_fwd(const wn_channel_norm_fwd*, const wn_channel_plan*, wn_action, wn_stream);
int32_t channel_norm_bwd(const wn_channel_norm_bwd*, const wn_channel_plan*, wn_action, wn_stream);
int32_t row_norm_fwd(const wn_row_norm_fwd*, const wn_row_plan*, wn_action, wn_stream);
int32_t row_norm_bwd(const wn_row_norm_bwd*, const wn_row_plan*, wn_action, wn_stream);

class ChannelLaunch;
/// The one launch of a channel norm by teams, forward. Where it does not fold, averaged running statistics take
/// another.
dev::Status channel_norm_fwd_team_launch(const wn_channel_norm_fwd& args, const wn_channel_team& team,
                                         const ChannelLaunch& on, float* partials, float* vars);
/// Backward; `sums` is where sums per slab go, [2, slabs], or null. Likewise adding them up.
dev::Status channel_norm_bwd_team_launch(const wn_channel_norm_bwd& args, const wn_channel_team& team,
                                         const ChannelLaunch& on, float* partials, float* sums);

struct ParamSums;
/// The last step of dweight and dbias; stream and action are those of `config`.
dev::Status fold_params(const ParamSums& sums, dev::LaunchConfig config);

}  // namespace WN_NAMESPACE
