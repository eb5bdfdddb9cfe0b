// Schema, checks, computation, autocast and derivative of masked_conv2d, on every device: as masked_linear, for torch's
// convolution.
#include "ops/below_autograd.h"
#include "ops/checks.h"
#include "ops/find_op.h"
#include "ops/masked_apply.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "masked_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor mask_bits, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups) -> Tensor");
}

namespace lth_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Pair = c10::SymIntArrayRef;

void check_masked_conv2d(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const at::Tensor& mask_bits, const c10::SymInt& groups) {
  TORCH_CHECK(weight.dim() == 4,
              "masked_conv2d: weight must have 4 dimensions [out_channels, in_channels / groups, height, width], got ",
              weight.sym_sizes());
  TORCH_CHECK(input.dim() == 4 && input.sym_size(1) == weight.sym_size(1) * groups,
              "masked_conv2d: input must have shape [batch, ", weight.sym_size(1) * groups,
              ", height, width] for weight of shape ", weight.sym_sizes(), " and ", groups, " groups, got ",
              input.sym_sizes());
  check_real("masked_conv2d", weight);
  check_same_type("masked_conv2d", input, "input", weight, "weight");
  check_bias("masked_conv2d", bias, weight.sym_size(0), weight, "weight");
  check_mask_bits("masked_conv2d", mask_bits, weight, "weight");
}

// ---- computation ----

at::Tensor compute(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                   const at::Tensor& mask_bits, Pair stride, Pair padding, Pair dilation, c10::SymInt groups) {
  if (past_autograd(input)) check_masked_conv2d(input, weight, bias, mask_bits, groups);
  // The mask is not needed: the weight is zero where it is pruned.
  return at::conv2d_symint(input, weight, bias, stride, padding, dilation, std::move(groups));
}

// ---- derivative ----

at::Tensor masked_conv2d(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                         const at::Tensor& mask_bits, Pair stride, Pair padding, Pair dilation,
                         const c10::SymInt& groups) {
  static const auto op =
      find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&, Pair, Pair,
                         Pair, c10::SymInt)>("lth_fast::masked_conv2d");
  return op.call(input, weight, bias, mask_bits, stride, padding, dilation, groups);
}

struct MaskedConv2d : torch::autograd::Function<MaskedConv2d> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& weight, const OptionalTensor& bias, const at::Tensor& mask_bits,
                            Pair stride, Pair padding, Pair dilation, const c10::SymInt& groups) {
    check_masked_conv2d(input, weight, bias, mask_bits, groups);
    context->save_for_backward({input, weight, mask_bits});
    context->saved_data["stride"] = stride;
    context->saved_data["padding"] = padding;
    context->saved_data["dilation"] = dilation;
    context->saved_data["groups"] = groups;
    context->saved_data["bias"] = bias.has_value();
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_conv2d(input, weight, bias, mask_bits, stride, padding, dilation, groups);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved[0], &weight = saved[1], &mask_bits = saved[2];
    const auto stride = context->saved_data["stride"].toSymIntVector();
    const auto padding = context->saved_data["padding"].toSymIntVector();
    const auto dilation = context->saved_data["dilation"].toSymIntVector();
    const auto groups = context->saved_data["groups"].toSymInt();
    const bool has_bias = context->saved_data["bias"].toBool();
    const std::array<c10::SymInt, 1> bias_size = {weight.sym_size(0)};
    const bool weight_wanted = context->needs_input_grad(1);
    const bool bias_wanted = has_bias && context->needs_input_grad(2);
    // For a double backward, the same values from differentiable pieces; its weight gradient is masked as well.
    const bool differentiable = at::GradMode::is_enabled();
    const BelowAutograd below_autograd(!differentiable);
    auto [grad_input, grad_weight, grad_bias] =
        at::convolution_backward_symint(gradients[0], input, differentiable ? masked_apply(weight, mask_bits) : weight,
                                        c10::OptionalArrayRef<c10::SymInt>(bias_size), stride, padding, dilation,
                                        /*transposed=*/false, /*output_padding=*/std::vector<c10::SymInt>(2, 0), groups,
                                        {context->needs_input_grad(0), weight_wanted, bias_wanted});
    if (weight_wanted) {
      // Several gradients at a time (is_grads_batched) cannot be written in place.
      if (differentiable || grad_weight.key_set().has(c10::DispatchKey::Batched)) {
        grad_weight = masked_apply(grad_weight, mask_bits);
      } else {
        masked_apply_(grad_weight, mask_bits);
      }
    }
    return {grad_input, grad_weight, grad_bias, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor masked_conv2d_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                  const at::Tensor& mask_bits, Pair stride, Pair padding, Pair dilation,
                                  c10::SymInt groups) {
  return MaskedConv2d::apply(input, weight, bias, mask_bits, stride, padding, dilation, groups);
}

template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor masked_conv2d_autocast(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                  const at::Tensor& mask_bits, Pair stride, Pair padding, Pair dilation,
                                  c10::SymInt groups) {
  c10::impl::ExcludeDispatchKeyGuard guard(key);
  const auto type = at::autocast::get_autocast_dtype(device);
  return masked_conv2d(at::autocast::cached_cast(type, input, device), at::autocast::cached_cast(type, weight, device),
                       at::autocast::cached_cast(type, bias, device), mask_bits, stride, padding, dilation, groups);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) { library.impl("masked_conv2d", lth_fast::compute); }
TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) { library.impl("masked_conv2d", lth_fast::compute); }
TORCH_LIBRARY_IMPL(lth_fast, Autograd, library) { library.impl("masked_conv2d", lth_fast::masked_conv2d_autograd); }
TORCH_LIBRARY_IMPL(lth_fast, AutocastCPU, library) {
  library.impl("masked_conv2d", lth_fast::masked_conv2d_autocast<c10::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(lth_fast, AutocastCUDA, library) {
  library.impl("masked_conv2d", lth_fast::masked_conv2d_autocast<c10::kCUDA, c10::DispatchKey::AutocastCUDA>);
}
