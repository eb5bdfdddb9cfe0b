#pragma once

#include <optional>

#include "ops/torch_headers.h"

namespace lth_fast {

// For a backward that nobody differentiates: what it calls goes straight to the kernels. Ops of ours have no derivative
// of their own there and would each take the detour through the fallback that says so, which is most of a small layer.
struct BelowAutograd {
  explicit BelowAutograd(bool wanted) {
    if (wanted) guard.emplace();
  }
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
};

}  // namespace lth_fast
