// Schemas, checks, autocast and derivative of sparse_conv2d.
//
// The pattern of the survivors arrives as the five tensors of sparse_conv2d_pattern. One call computes all gradients
// that are wanted, for they read the same gradient of the output.
#include "ops/sparse_conv2d.h"

#include <algorithm>
#include <limits>

#include "ops/below_autograd.h"
#include "ops/checks.h"
#include "ops/find_op.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "sparse_conv2d(Tensor input, Tensor values, Tensor? bias, Tensor output_starts, Tensor input_taps, "
      "Tensor input_starts, Tensor output_taps, Tensor permutation, int[2] kernel_size, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, bool relu=False) -> Tensor");
  // Gradients of input, values and bias; those that are not wanted are empty.
  library.def(
      "sparse_conv2d_backward(Tensor grad_output, Tensor input, Tensor values, Tensor output_starts, "
      "Tensor input_taps, Tensor input_starts, Tensor output_taps, Tensor permutation, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, int groups, bool[3] wanted) -> (Tensor, Tensor, Tensor)");
}

namespace lth_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Pair = at::IntArrayRef;

at::Tensor sparse_conv2d(const at::Tensor& input, const at::Tensor& values, const OptionalTensor& bias,
                         const ConvolutionPattern& pattern, const Convolution& convolution, bool relu) {
  static const auto op =
      find_op<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                         const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, Pair, Pair, Pair,
                         Pair, int64_t, bool)>("lth_fast::sparse_conv2d");
  const auto& [kernel_size, stride, padding, dilation, groups] = convolution;
  return op.call(input, values, bias, pattern.output_starts, pattern.input_taps, pattern.input_starts,
                 pattern.output_taps, pattern.permutation, kernel_size, stride, padding, dilation, groups, relu);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_conv2d_backward(const at::Tensor& grad_output,
                                                                      const at::Tensor& input, const at::Tensor& values,
                                                                      const ConvolutionPattern& pattern,
                                                                      const Convolution& convolution,
                                                                      std::array<bool, 3> wanted) {
  static const auto op = find_op<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      const at::Tensor&, const at::Tensor&, Pair, Pair, Pair, Pair, int64_t, std::array<bool, 3>)>(
      "lth_fast::sparse_conv2d_backward");
  const auto& [kernel_size, stride, padding, dilation, groups] = convolution;
  return op.call(grad_output, input, values, pattern.output_starts, pattern.input_taps, pattern.input_starts,
                 pattern.output_taps, pattern.permutation, kernel_size, stride, padding, dilation, groups, wanted);
}

// ---- checks ----

void check_starts(const at::Tensor& starts, const char* name, const char* shape) {
  TORCH_CHECK(starts.dim() == 1 && starts.sym_size(0) >= 1 && starts.scalar_type() == at::kInt, "sparse_conv2d: ", name,
              " must be int32 of shape ", shape, ", got ", starts.scalar_type(), " of shape ", starts.sym_sizes());
}

void check_per_survivor(const at::Tensor& indices, const char* name, const at::Tensor& values) {
  TORCH_CHECK(indices.scalar_type() == at::kInt, "sparse_conv2d: ", name, " must be int32, got ",
              indices.scalar_type());
  TORCH_CHECK(indices.dim() == 1 && indices.sym_size(0) == values.sym_size(0), "sparse_conv2d: ", name,
              " must have shape [", values.sym_size(0), "] for values of shape ", values.sym_sizes(), ", got ",
              indices.sym_sizes());
}

void check_pair(Pair pair, const char* name, int64_t least) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();  // their products are 64-bit numbers
  TORCH_CHECK(pair.size() == 2 && std::min(pair[0], pair[1]) >= least && std::max(pair[0], pair[1]) <= most,
              "sparse_conv2d: ", name, " must be two integers of at least ", least, " and at most ", most, ", got ",
              pair);
}

}  // namespace

void check_sparse_conv2d(const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                         const ConvolutionPattern& pattern, const Convolution& convolution) {
  const auto& [output_starts, input_taps, input_starts, output_taps, permutation] = pattern;
  TORCH_CHECK(values.dim() == 1, "sparse_conv2d: values must have 1 dimension [survivors], got ", values.sym_sizes());
  TORCH_CHECK(values.scalar_type() == at::kFloat || values.scalar_type() == at::kDouble,
              "sparse_conv2d: values must be float32 or float64, got ", values.scalar_type());
  check_same_type("sparse_conv2d", input, "input", values, "values");
  check_starts(output_starts, "output_starts", "[out_channels + 1]");
  check_starts(input_starts, "input_starts", "[in_channels + 1]");
  check_per_survivor(input_taps, "input_taps", values);
  check_per_survivor(output_taps, "output_taps", values);
  check_per_survivor(permutation, "permutation", values);
  for (const at::Tensor* part : {&output_starts, &input_taps, &input_starts, &output_taps, &permutation}) {
    TORCH_CHECK(part->device() == values.device(), "sparse_conv2d: the pattern must be on the device of values (",
                values.device(), "), got ", part->device());
    TORCH_CHECK(part->is_contiguous(), "sparse_conv2d: the tensors of the pattern must be contiguous, got strides ",
                part->sym_strides());
  }
  check_pair(convolution.kernel_size, "kernel_size", 1);
  check_pair(convolution.stride, "stride", 1);
  check_pair(convolution.padding, "padding", 0);
  check_pair(convolution.dilation, "dilation", 1);
  const auto in_channels = input_starts.sym_size(0) - 1, out_channels = output_starts.sym_size(0) - 1;
  const int64_t groups = convolution.groups;
  TORCH_CHECK(groups >= 1 && in_channels % groups == 0 && out_channels % groups == 0,
              "sparse_conv2d: groups must be positive and divide the ", in_channels, " input and ", out_channels,
              " output channels, got ", groups);
  TORCH_CHECK(input.dim() == 4 && input.sym_size(1) == in_channels, "sparse_conv2d: input must have shape [batch, ",
              in_channels, ", height, width], got ", input.sym_sizes());
  for (size_t axis : {0, 1}) {
    const auto size = input.sym_size(2 + static_cast<int64_t>(axis));
    const int64_t reach = convolution.dilation[axis] * (convolution.kernel_size[axis] - 1) + 1;
    TORCH_CHECK(size + 2 * convolution.padding[axis] >= reach, "sparse_conv2d: input of shape ", input.sym_sizes(),
                " with padding ", convolution.padding, " must be at least as large as the kernel, whose ",
                axis == 0 ? "height" : "width", " is ", reach);
  }
  check_bias("sparse_conv2d", bias, out_channels, values, "values");
}

namespace {

// ---- derivative ----

// An index of the survivors into the dense weight [out_channels, in_channels / groups * taps], for the dense arithmetic
// of second derivatives.
c10::List<OptionalTensor> coordinates(const at::Tensor& output_starts, const at::Tensor& input_taps) {
  const auto filters = at::arange(output_starts.size(0) - 1, output_starts.options().dtype(at::kLong));
  const auto lengths = output_starts.diff().to(at::kLong);
  c10::List<OptionalTensor> index;
  index.push_back(filters.repeat_interleave(lengths, std::nullopt, input_taps.size(0)));
  index.push_back(input_taps.to(at::kLong));
  return index;
}

struct SparseConv2d : torch::autograd::Function<SparseConv2d> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& values, const OptionalTensor& bias, const ConvolutionPattern& pattern,
                            const Convolution& convolution, bool relu) {
    check_sparse_conv2d(input, values, bias, pattern, convolution);
    context->saved_data["kernel_size"] = convolution.kernel_size;
    context->saved_data["stride"] = convolution.stride;
    context->saved_data["padding"] = convolution.padding;
    context->saved_data["dilation"] = convolution.dilation;
    context->saved_data["groups"] = convolution.groups;
    context->saved_data["bias"] = bias.has_value();
    const at::Tensor output = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return sparse_conv2d(input, values, bias, pattern, convolution, relu);
    }();
    context->save_for_backward({input, values, pattern.output_starts, pattern.input_taps, pattern.input_starts,
                                pattern.output_taps, pattern.permutation, relu ? output : at::Tensor()});
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved[0], &values = saved[1];
    const ConvolutionPattern pattern = {saved[2], saved[3], saved[4], saved[5], saved[6]};
    const auto kernel_size = context->saved_data["kernel_size"].toIntVector();
    const auto stride = context->saved_data["stride"].toIntVector();
    const auto padding = context->saved_data["padding"].toIntVector();
    const auto dilation = context->saved_data["dilation"].toIntVector();
    const Convolution convolution = {kernel_size, stride, padding, dilation, context->saved_data["groups"].toInt()};
    const auto& output = saved[7];  // undefined without relu
    const bool differentiable = at::GradMode::is_enabled();
    const BelowAutograd below_autograd(!differentiable);
    const auto grad_output = output.defined() ? at::threshold_backward(gradients[0], output, 0) : gradients[0];
    const bool input_wanted = context->needs_input_grad(0), values_wanted = context->needs_input_grad(1),
               bias_wanted = context->saved_data["bias"].toBool() && context->needs_input_grad(2);
    at::Tensor grad_input, grad_values, grad_bias;
    if (differentiable) {
      if (input_wanted || values_wanted) {
        std::tie(grad_input, grad_values) =
            differentiable_backward(grad_output, input, values, pattern, convolution, {input_wanted, values_wanted});
      }
      if (bias_wanted) grad_bias = grad_output.sum({0, 2, 3});
    } else {
      const auto gradients = sparse_conv2d_backward(grad_output, input, values, pattern, convolution,
                                                    {input_wanted, values_wanted, bias_wanted});
      if (input_wanted) grad_input = std::get<0>(gradients);
      if (values_wanted) grad_values = std::get<1>(gradients);
      if (bias_wanted) grad_bias = std::get<2>(gradients);
    }
    return {grad_input, grad_values, grad_bias, at::Tensor(), at::Tensor(), at::Tensor()};
  }

  // Double backward: the same values from differentiable pieces.
  static std::pair<at::Tensor, at::Tensor> differentiable_backward(const at::Tensor& grad_output,
                                                                   const at::Tensor& input, const at::Tensor& values,
                                                                   const ConvolutionPattern& pattern,
                                                                   const Convolution& convolution,
                                                                   std::array<bool, 2> wanted) {
    const auto index = coordinates(pattern.output_starts, pattern.input_taps);
    const auto out_channels = pattern.output_starts.size(0) - 1;
    const auto inputs = (pattern.input_starts.size(0) - 1) / convolution.groups;
    const auto height = convolution.kernel_size[0], width = convolution.kernel_size[1];
    const auto weight = at::zeros({out_channels, inputs * height * width}, values.options()).index_put(index, values);
    const auto [grad_input, grad_weight, unused] = at::convolution_backward(
        grad_output, input, weight.view({out_channels, inputs, height, width}), std::nullopt, convolution.stride,
        convolution.padding, convolution.dilation,
        /*transposed=*/false, /*output_padding=*/{0, 0}, convolution.groups, {wanted[0], wanted[1], false});
    return {grad_input, wanted[1] ? grad_weight.flatten(1).index(index) : at::Tensor()};
  }
};

at::Tensor sparse_conv2d_autograd(const at::Tensor& input, const at::Tensor& values, const OptionalTensor& bias,
                                  const at::Tensor& output_starts, const at::Tensor& input_taps,
                                  const at::Tensor& input_starts, const at::Tensor& output_taps,
                                  const at::Tensor& permutation, Pair kernel_size, Pair stride, Pair padding,
                                  Pair dilation, int64_t groups, bool relu) {
  return SparseConv2d::apply(input, values, bias,
                             ConvolutionPattern{output_starts, input_taps, input_starts, output_taps, permutation},
                             Convolution{kernel_size, stride, padding, dilation, groups}, relu);
}

// There is no kernel for half precision: under autocast the layer computes in float32.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor sparse_conv2d_autocast(const at::Tensor& input, const at::Tensor& values, const OptionalTensor& bias,
                                  const at::Tensor& output_starts, const at::Tensor& input_taps,
                                  const at::Tensor& input_starts, const at::Tensor& output_taps,
                                  const at::Tensor& permutation, Pair kernel_size, Pair stride, Pair padding,
                                  Pair dilation, int64_t groups, bool relu) {
  c10::impl::ExcludeDispatchKeyGuard guard(key);
  return sparse_conv2d(at::autocast::cached_cast(at::kFloat, input, device),
                       at::autocast::cached_cast(at::kFloat, values, device),
                       at::autocast::cached_cast(at::kFloat, bias, device),
                       {output_starts, input_taps, input_starts, output_taps, permutation},
                       {kernel_size, stride, padding, dilation, groups}, relu);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, Autograd, library) { library.impl("sparse_conv2d", lth_fast::sparse_conv2d_autograd); }
TORCH_LIBRARY_IMPL(lth_fast, AutocastCPU, library) {
  library.impl("sparse_conv2d", lth_fast::sparse_conv2d_autocast<c10::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(lth_fast, AutocastCUDA, library) {
  library.impl("sparse_conv2d", lth_fast::sparse_conv2d_autocast<c10::kCUDA, c10::DispatchKey::AutocastCUDA>);
}
