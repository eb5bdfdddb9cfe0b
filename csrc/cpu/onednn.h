// Whether oneDNN multiplies dense matrices faster than torch's own linear layer does on this CPU.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

namespace lth_fast {

// For a product of [samples, in_features] and [in_features, out_features] in float32. The same answer every time on one
// machine: it decides the bits of a result.
LTH_FAST_API bool onednn_pays(int64_t samples, int64_t in_features, int64_t out_features);

// For tests: as if oneDNN were the faster one on this CPU, or were not. Not to be called while ops run.
LTH_FAST_API bool prefers_onednn();
LTH_FAST_API void force_onednn(bool preferred);

}  // namespace lth_fast
