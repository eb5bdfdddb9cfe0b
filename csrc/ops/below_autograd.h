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

// Whether a call got past autograd, where arguments are checked: it does in inference mode, and wherever all tensors
// are from there.
inline bool past_autograd(const at::Tensor& input) { return c10::InferenceMode::is_enabled() || input.is_inference(); }

// Whether autograd has to know what becomes of any of these: no derivative is asked for at a test set, say.
inline bool differentiated(const at::Tensor& tensor) {
  return tensor.defined() && ((at::GradMode::is_enabled() && tensor.requires_grad()) || tensor._fw_grad(0).defined());
}

}  // namespace lth_fast
