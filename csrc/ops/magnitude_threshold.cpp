// Schemas and checks of magnitude_threshold and prune_by_magnitude. Selecting has no derivative.
#include "ops/magnitude_threshold.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "magnitude_threshold(Tensor[] weights, SymInt k, Tensor?[] masks)"
      " -> (Tensor threshold, Tensor tie_budget, Tensor survivors)");
  library.def("prune_by_magnitude(Tensor[] weights, SymInt k, Tensor?[] masks) -> Tensor[]");
}

namespace lth_fast {

void check_magnitude_arguments(const char* function, at::TensorList weights, const OptionalMasks& masks) {
  TORCH_CHECK(masks.size() == weights.size(), function, ": masks must hold one entry per weight (", weights.size(),
              "), got ", masks.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    const auto type = weight.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, function,
                ": weights[", i, "] must be float32, float64, bfloat16 or float16, got ", type);
    TORCH_CHECK(type == weights[0].scalar_type(), function, ": weights must have one dtype, got ",
                weights[0].scalar_type(), " in weights[0] and ", type, " in weights[", i, "]");
    TORCH_CHECK(weight.device() == weights[0].device(), function, ": weights must be on one device, got ",
                weights[0].device(), " for weights[0] and ", weight.device(), " for weights[", i, "]");
    const std::optional<at::Tensor> mask = masks.get(i);
    if (!mask.has_value()) continue;
    TORCH_CHECK(mask->scalar_type() == at::kBool, function, ": masks[", i, "] must be bool, got ", mask->scalar_type());
    TORCH_CHECK(mask->sizes() == weight.sizes(), function, ": masks[", i, "] must have the shape of weights[", i, "] ",
                weight.sizes(), ", got ", mask->sizes());
    TORCH_CHECK(mask->device() == weight.device(), function, ": masks[", i, "] must be on the device of weights[", i,
                "] (", weight.device(), "), got ", mask->device());
  }
}

}  // namespace lth_fast
