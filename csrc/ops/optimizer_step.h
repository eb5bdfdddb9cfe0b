// What the optimizer steps share: lists of tensors, one entry per parameter, all of one dtype and device.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "ops/checks.h"

namespace lth_fast {

// One entry per parameter, none where every weight survives.
using OptionalTensors = c10::List<std::optional<at::Tensor>>;

// For tensors that are written to.
inline void check_places(const char* function, at::TensorList tensors, const char* name) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    TORCH_CHECK(at::has_internal_overlap(tensors[i]) != at::MemOverlap::Yes, function, ": ", name, "[", i,
                "] must have a place in memory for each of its numbers, got shape ", tensors[i].sizes(),
                " with strides ", tensors[i].strides());
  }
}

inline void check_parameters(const char* function, at::TensorList parameters) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto type = parameters[i].scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, function,
                ": parameters[", i, "] must be float32, float64, bfloat16 or float16, got ", type);
    TORCH_CHECK(type == parameters[0].scalar_type(), function, ": parameters must have one dtype, got ",
                parameters[0].scalar_type(), " in parameters[0] and ", type, " in parameters[", i, "]");
    TORCH_CHECK(parameters[i].device() == parameters[0].device(), function, ": parameters must be on one device, got ",
                parameters[0].device(), " for parameters[0] and ", parameters[i].device(), " for parameters[", i, "]");
  }
  check_places(function, parameters, "parameters");
}

// Gradients, and by check_state_of_parameters whatever else there is one value of per weight.
inline void check_like_parameters(const char* function, at::TensorList tensors, const char* name,
                                  at::TensorList parameters) {
  TORCH_CHECK(tensors.size() == parameters.size(), function, ": ", name, " must hold one entry per parameter (",
              parameters.size(), "), got ", tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor &tensor = tensors[i], &parameter = parameters[i];
    TORCH_CHECK(tensor.sizes() == parameter.sizes() && tensor.scalar_type() == parameter.scalar_type() &&
                    tensor.device() == parameter.device(),
                function, ": ", name, "[", i, "] must have shape, dtype and device of parameters[", i, "] (",
                parameter.sizes(), " ", parameter.scalar_type(), " on ", parameter.device(), "), got ", tensor.sizes(),
                " ", tensor.scalar_type(), " on ", tensor.device());
  }
}

// What the step writes to beside the parameters.
inline void check_state_of_parameters(const char* function, at::TensorList tensors, const char* name,
                                      at::TensorList parameters) {
  check_like_parameters(function, tensors, name, parameters);
  check_places(function, tensors, name);
}

inline void check_masks(const char* function, const OptionalTensors& mask_bits, at::TensorList parameters) {
  TORCH_CHECK(mask_bits.size() == parameters.size(), function, ": mask_bits must hold one entry per parameter (",
              parameters.size(), "), got ", mask_bits.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    const std::optional<at::Tensor> bits = mask_bits.get(i);
    if (bits.has_value()) check_mask_bits(function, *bits, parameters[i], "the parameter");
  }
}

inline void check_lr_tensor(const char* function, const std::optional<at::Tensor>& lr_tensor,
                            at::TensorList parameters) {
  if (!lr_tensor.has_value()) return;
  TORCH_CHECK(lr_tensor->numel() == 1 && lr_tensor->is_floating_point(), function,
              ": lr_tensor must be one floating-point number, got shape ", lr_tensor->sizes(), " ",
              lr_tensor->scalar_type());
  TORCH_CHECK(parameters.empty() || lr_tensor->device() == parameters[0].device(), function,
              ": lr_tensor must be on the device of the parameters (", parameters[0].device(), "), got ",
              lr_tensor->device());
}

// Whether some of the parameters may have memory in common, as those tied through a transposed view have. They take
// their steps one after the other then.
inline bool share_memory(at::TensorList parameters) {
  if (parameters.size() < 2) return false;
  std::vector<std::pair<const char*, const char*>> spans;  // from the first byte to behind the last one
  spans.reserve(parameters.size());
  for (const at::Tensor& parameter : parameters) {
    if (parameter.numel() == 0) continue;
    int64_t last = 0;
    for (int64_t d = 0; d < parameter.dim(); ++d) last += (parameter.size(d) - 1) * parameter.stride(d);
    const auto* first = static_cast<const char*>(parameter.const_data_ptr());
    spans.emplace_back(first, first + (last + 1) * static_cast<int64_t>(parameter.element_size()));
  }
  std::sort(spans.begin(), spans.end());
  for (size_t i = 1; i < spans.size(); ++i) {
    if (spans[i].first < spans[i - 1].second) return true;
  }
  return false;
}

// Entry i of a list that has one per parameter, or none at all.
inline at::TensorList entry(at::TensorList tensors, size_t i) {
  return tensors.empty() ? tensors : tensors.slice(i, 1);
}

inline OptionalTensors entry(const OptionalTensors& tensors, size_t i) { return OptionalTensors({tensors.get(i)}); }

}  // namespace lth_fast
