// Argument checks shared by the ops: every message names function, argument, what was expected and what was given.
#pragma once

#include "ops/torch_headers.h"

namespace lth_fast {

// The checks read symbolic sizes, so that they also run while torch.compile traces with dynamic shapes.
template <typename Count>
inline Count mask_bytes(const Count& count) {
  return (count + 7) / 8;
}

inline void check_mask_bits(const char* function, const at::Tensor& bits, const at::Tensor& masked, const char* name,
                            const char* bits_name = "mask_bits") {
  TORCH_CHECK(bits.scalar_type() == at::kByte, function, ": ", bits_name, " must be uint8 (see pack_mask), got ",
              bits.scalar_type());
  const auto expected = mask_bytes(masked.sym_numel());
  TORCH_CHECK(bits.dim() == 1 && bits.sym_size(0) == expected, function, ": ", bits_name, " must have shape [",
              expected, "] for ", name, " of shape ", masked.sym_sizes(), ", got ", bits.sym_sizes());
  TORCH_CHECK(bits.is_contiguous(), function, ": ", bits_name, " must be contiguous, got strides ", bits.sym_strides());
  TORCH_CHECK(bits.device() == masked.device(), function, ": ", bits_name, " must be on the device of ", name, " (",
              masked.device(), "), got ", bits.device());
}

inline void check_element_size(const char* function, const at::Tensor& tensor, const char* name) {
  const auto size = tensor.element_size();
  TORCH_CHECK(size == 2 || size == 4 || size == 8, function, ": ", name,
              " must have elements of 2, 4 or 8 bytes (float16, bfloat16, float32, float64), got ",
              tensor.scalar_type());
}

// For each tensor of a list the bits of its mask.
inline void check_masked_list(const char* function, at::TensorList tensors, at::TensorList mask_bits) {
  TORCH_CHECK(mask_bits.size() == tensors.size(), function, ": mask_bits must hold one entry per tensor (",
              tensors.size(), "), got ", mask_bits.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_mask_bits(function, mask_bits[i], tensors[i], "its tensor");
    check_element_size(function, tensors[i], "each of the tensors");
    TORCH_CHECK(tensors[i].device() == tensors[0].device(), function, ": tensors must be on one device, got ",
                tensors[0].device(), " for tensors[0] and ", tensors[i].device(), " for tensors[", i, "]");
  }
}

// The derivatives of the layers are those of real numbers.
inline void check_real(const char* function, const at::Tensor& weight) {
  TORCH_CHECK(weight.is_floating_point(), function, ": weight must be floating point and real, got ",
              weight.scalar_type());
}

// The layers' weights and inputs.
inline void check_same_type(const char* function, const at::Tensor& tensor, const char* name, const at::Tensor& like,
                            const char* like_name) {
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), function, ": ", name, " must have the dtype of ", like_name,
              " (", like.scalar_type(), "), got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == like.device(), function, ": ", name, " must be on the device of ", like_name, " (",
              like.device(), "), got ", tensor.device());
}

inline void check_bias(const char* function, const std::optional<at::Tensor>& bias, const c10::SymInt& outputs,
                       const at::Tensor& like, const char* like_name) {
  if (!bias.has_value()) return;
  TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == outputs, function, ": bias must have shape [", outputs,
              "], got ", bias->sym_sizes());
  check_same_type(function, *bias, "bias", like, like_name);
}

}  // namespace lth_fast
