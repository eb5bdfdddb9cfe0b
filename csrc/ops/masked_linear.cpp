// Schemas, checks, computation, autocast and derivative of masked_linear, on every device: torch's own calls and
// masked_apply_ are all it takes.
//
// The weight is zero where it is pruned (the layer sees to that), so the forward is the dense product and the mask acts
// on one thing alone: the weight gradient, in the call that computes it. No node of the graph and no tensor exists for
// the mask. Without one the gradient is left to whoever masks it later.
#include "ops/below_autograd.h"
#include "ops/checks.h"
#include "ops/find_op.h"
#include "ops/masked_apply.h"
#include "ops/onednn_linear.h"
#include "ops/rows.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def("masked_linear(Tensor input, Tensor weight, Tensor? bias, Tensor? mask_bits) -> Tensor");
  library.def("masked_linear_input_grad(Tensor grad_output, Tensor weight) -> Tensor");
  library.def("masked_linear_weight_grad(Tensor grad_output, Tensor input, Tensor? mask_bits) -> Tensor");
}

namespace lth_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check_masked_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& mask_bits) {
  TORCH_CHECK(weight.dim() == 2, "masked_linear: weight must have 2 dimensions [out_features, in_features], got ",
              weight.sym_sizes());
  TORCH_CHECK(input.dim() >= 1 && input.sym_size(-1) == weight.sym_size(1),
              "masked_linear: input must have shape [..., ", weight.sym_size(1), "] for weight of shape ",
              weight.sym_sizes(), ", got ", input.sym_sizes());
  check_real("masked_linear", weight);
  check_same_type("masked_linear", input, "input", weight, "weight");
  check_bias("masked_linear", bias, weight.sym_size(0), weight, "weight");
  if (mask_bits.has_value()) check_mask_bits("masked_linear", *mask_bits, weight, "weight");
}

// ---- computation ----

at::Tensor compute(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& mask_bits) {
  if (past_autograd(input)) check_masked_linear(input, weight, bias, mask_bits);
  // The mask is not needed: the weight is zero where it is pruned.
  const at::Tensor output = onednn_linear(input, weight, bias);
  return output.defined() ? output : at::linear(input, weight, bias);
}

at::Tensor compute_input_grad(const at::Tensor& grad_output, const at::Tensor& weight) {
  const at::Tensor grad_input = onednn_linear(grad_output, weight.t());
  return grad_input.defined() ? grad_input : grad_output.matmul(weight);
}

at::Tensor compute_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                               const OptionalTensor& mask_bits) {
  const at::Tensor transposed = as_rows(grad_output).t(), rows = as_rows(input);
  at::Tensor grad_weight = onednn_linear(transposed, rows.t());
  if (!grad_weight.defined()) grad_weight = at::mm(transposed, rows);
  if (mask_bits.has_value()) {
    check_mask_bits("masked_linear_weight_grad", *mask_bits, grad_weight, "the weight gradient");
    masked_apply_(grad_weight, *mask_bits);
  }
  return grad_weight;
}

// ---- derivative ----

at::Tensor masked_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& mask_bits) {
  static const auto op = find_op<decltype(masked_linear)>("lth_fast::masked_linear");
  return op.call(input, weight, bias, mask_bits);
}

at::Tensor masked_linear_input_grad(const at::Tensor& grad_output, const at::Tensor& weight) {
  static const auto op = find_op<decltype(masked_linear_input_grad)>("lth_fast::masked_linear_input_grad");
  return op.call(grad_output, weight);
}

at::Tensor masked_linear_weight_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                     const OptionalTensor& mask_bits) {
  static const auto op = find_op<decltype(masked_linear_weight_grad)>("lth_fast::masked_linear_weight_grad");
  return op.call(grad_output, input, mask_bits);
}

struct MaskedLinear : torch::autograd::Function<MaskedLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& mask_bits) {
    check_masked_linear(input, weight, bias, mask_bits);
    // Like nn.Linear: a frozen layer keeps no input, a first layer no weight.
    context->save_for_backward({weight.requires_grad() ? input : at::Tensor(),
                                input.requires_grad() ? weight : at::Tensor(), mask_bits.value_or(at::Tensor())});
    context->saved_data["bias"] = bias.has_value();
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_linear(input, weight, bias, mask_bits);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved[0], &weight = saved[1], &mask_bits = saved[2];
    const auto& grad_output = gradients[0];
    const OptionalTensor mask = mask_bits.defined() ? OptionalTensor(mask_bits) : std::nullopt;
    at::Tensor grad_input, grad_weight, grad_bias;
    // For a double backward, the same values from differentiable pieces; its weight gradient is masked as well.
    const bool differentiable = at::GradMode::is_enabled();
    const auto masked = [&](const at::Tensor& tensor) { return mask ? masked_apply(tensor, *mask) : tensor; };
    const BelowAutograd below_autograd(!differentiable);
    if (context->needs_input_grad(0)) {
      grad_input = differentiable ? grad_output.matmul(masked(weight)) : masked_linear_input_grad(grad_output, weight);
    }
    if (context->needs_input_grad(1)) {
      grad_weight = differentiable ? masked(as_rows(grad_output).t().matmul(as_rows(input)))
                                   : masked_linear_weight_grad(grad_output, input, mask);
    }
    // Absent arguments are not counted: number 2 may be the mask, or nothing.
    const bool bias_wanted = context->saved_data["bias"].toBool() && context->needs_input_grad(2);
    if (bias_wanted) grad_bias = as_rows(grad_output).sum(0);
    return {grad_input, grad_weight, grad_bias, at::Tensor()};
  }
};

at::Tensor masked_linear_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& mask_bits) {
  return MaskedLinear::apply(input, weight, bias, mask_bits);
}

// Like nn.Linear: the inputs are cast, the graph casts the gradients back.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor masked_linear_autocast(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& mask_bits) {
  c10::impl::ExcludeDispatchKeyGuard guard(key);
  const auto type = at::autocast::get_autocast_dtype(device);
  return masked_linear(at::autocast::cached_cast(type, input, device), at::autocast::cached_cast(type, weight, device),
                       at::autocast::cached_cast(type, bias, device), mask_bits);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("masked_linear", lth_fast::compute);
  library.impl("masked_linear_input_grad", lth_fast::compute_input_grad);
  library.impl("masked_linear_weight_grad", lth_fast::compute_weight_grad);
}
TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) {
  library.impl("masked_linear", lth_fast::compute);
  library.impl("masked_linear_input_grad", lth_fast::compute_input_grad);
  library.impl("masked_linear_weight_grad", lth_fast::compute_weight_grad);
}
TORCH_LIBRARY_IMPL(lth_fast, Autograd, library) { library.impl("masked_linear", lth_fast::masked_linear_autograd); }
TORCH_LIBRARY_IMPL(lth_fast, AutocastCPU, library) {
  library.impl("masked_linear", lth_fast::masked_linear_autocast<c10::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(lth_fast, AutocastCUDA, library) {
  library.impl("masked_linear", lth_fast::masked_linear_autocast<c10::kCUDA, c10::DispatchKey::AutocastCUDA>);
}
