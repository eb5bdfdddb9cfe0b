// Schemas, checks, autocast and derivative of sparse_linear.
//
// The pattern of the survivors arrives as the seven tensors of sparse_pattern. The forward and the gradient of the
// values walk them in row order; the gradient of the input is the same product over the transposed order.
#include "ops/sparse_linear.h"

#include "ops/below_autograd.h"
#include "ops/checks.h"
#include "ops/find_op.h"
#include "ops/rows.h"

TORCH_LIBRARY_FRAGMENT(lth_fast, library) {
  library.def(
      "sparse_linear(Tensor input, Tensor values, Tensor? bias, Tensor row_starts, Tensor row_order, Tensor columns, "
      "Tensor column_starts, Tensor column_order, Tensor rows, Tensor permutation, bool relu=False) -> Tensor");
  // Gradients of input, values and bias; those that are not wanted are empty. `values` are read for the gradient of the
  // input alone, the numbers of `input` for that of the values; else they give type and shape.
  library.def(
      "sparse_linear_backward(Tensor grad_output, Tensor input, Tensor values, Tensor row_starts, Tensor row_order, "
      "Tensor columns, Tensor column_starts, Tensor column_order, Tensor rows, Tensor permutation, bool[3] wanted) "
      "-> (Tensor, Tensor, Tensor)");
}

namespace lth_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor sparse_linear(const at::Tensor& input, const at::Tensor& values, const OptionalTensor& bias,
                         const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns,
                         const at::Tensor& column_starts, const at::Tensor& column_order, const at::Tensor& rows,
                         const at::Tensor& permutation, bool relu) {
  static const auto op = find_op<decltype(sparse_linear)>("lth_fast::sparse_linear");
  return op.call(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows, permutation,
                 relu);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_linear_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& values, const at::Tensor& row_starts,
    const at::Tensor& row_order, const at::Tensor& columns, const at::Tensor& column_starts,
    const at::Tensor& column_order, const at::Tensor& rows, const at::Tensor& permutation, std::array<bool, 3> wanted) {
  static const auto op = find_op<decltype(sparse_linear_backward)>("lth_fast::sparse_linear_backward");
  return op.call(grad_output, input, values, row_starts, row_order, columns, column_starts, column_order, rows,
                 permutation, wanted);
}

// ---- checks ----

void check_lines(const at::Tensor& starts, const char* starts_name, const at::Tensor& order, const char* order_name,
                 const char* panels, const char* lines) {
  TORCH_CHECK(
      starts.dim() == 2 && starts.sym_size(0) >= 1 && starts.sym_size(1) >= 1 && starts.scalar_type() == at::kInt,
      "sparse_linear: ", starts_name, " must be int32 of shape [", panels, ", ", lines, " + 1], got ",
      starts.scalar_type(), " of shape ", starts.sym_sizes());
  TORCH_CHECK(order.dim() == 2 && order.sym_size(0) == starts.sym_size(0) &&
                  order.sym_size(1) == starts.sym_size(1) - 1 && order.scalar_type() == at::kInt,
              "sparse_linear: ", order_name, " must be int32 of shape [", panels, ", ", lines, "], here [",
              starts.sym_size(0), ", ", starts.sym_size(1) - 1, "], got ", order.scalar_type(), " of shape ",
              order.sym_sizes());
}

void check_per_survivor(const at::Tensor& indices, const char* name, const at::Tensor& values, bool may_be_short) {
  const auto type = indices.scalar_type();
  TORCH_CHECK(type == at::kInt || (may_be_short && type == at::kShort), "sparse_linear: ", name, " must be int32",
              may_be_short ? " or int16" : "", ", got ", type);
  TORCH_CHECK(indices.dim() == 1 && indices.sym_size(0) == values.sym_size(0), "sparse_linear: ", name,
              " must have shape [", values.sym_size(0), "] for values of shape ", values.sym_sizes(), ", got ",
              indices.sym_sizes());
}

}  // namespace

void check_sparse_linear(const at::Tensor& input, const at::Tensor& values, const OptionalTensor& bias,
                         const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns,
                         const at::Tensor& column_starts, const at::Tensor& column_order, const at::Tensor& rows,
                         const at::Tensor& permutation) {
  TORCH_CHECK(values.dim() == 1, "sparse_linear: values must have 1 dimension [survivors], got ", values.sym_sizes());
  TORCH_CHECK(values.scalar_type() == at::kFloat || values.scalar_type() == at::kDouble,
              "sparse_linear: values must be float32 or float64, got ", values.scalar_type());
  check_same_type("sparse_linear", input, "input", values, "values");
  check_lines(row_starts, "row_starts", row_order, "row_order", "column panels", "out_features");
  check_lines(column_starts, "column_starts", column_order, "column_order", "row panels", "in_features");
  check_per_survivor(columns, "columns", values, true);
  check_per_survivor(rows, "rows", values, true);
  check_per_survivor(permutation, "permutation", values, false);
  for (const at::Tensor* part :
       {&row_starts, &row_order, &columns, &column_starts, &column_order, &rows, &permutation}) {
    TORCH_CHECK(part->device() == values.device(), "sparse_linear: the pattern must be on the device of values (",
                values.device(), "), got ", part->device());
    TORCH_CHECK(part->is_contiguous(), "sparse_linear: the tensors of the pattern must be contiguous, got strides ",
                part->sym_strides());
  }
  TORCH_CHECK(input.dim() >= 1 && input.sym_size(-1) == column_order.sym_size(1),
              "sparse_linear: input must have shape [..., ", column_order.sym_size(1), "], got ", input.sym_sizes());
  check_bias("sparse_linear", bias, row_order.sym_size(1), values, "values");
}

void check_sparse_linear_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& values,
                                  const at::Tensor& row_order, const at::Tensor& columns,
                                  const at::Tensor& column_order, std::array<bool, 3> wanted) {
  constexpr auto function = "sparse_linear_backward";
  TORCH_CHECK(input.dim() >= 1 && input.size(-1) == column_order.size(1), function, ": input must have shape [..., ",
              column_order.size(1), "], got ", input.sizes());
  auto expected = input.sizes().vec();
  expected.back() = row_order.size(1);
  TORCH_CHECK(grad_output.sizes() == at::IntArrayRef(expected), function, ": grad_output must have shape ",
              at::IntArrayRef(expected), " for input of shape ", input.sizes(), ", got ", grad_output.sizes());
  check_same_type(function, grad_output, "grad_output", input, "input");
  TORCH_CHECK(!wanted[0] || values.sizes() == columns.sizes(), function, ": values must have shape ", columns.sizes(),
              ", got ", values.sizes());
}

namespace {

// ---- derivative ----

// Row and column of every survivor, for the dense arithmetic of second derivatives.
std::pair<at::Tensor, at::Tensor> coordinates(const at::Tensor& columns, const at::Tensor& rows,
                                              const at::Tensor& permutation) {
  const at::Tensor row_of = at::empty_like(permutation, at::kLong);
  row_of.index_put_({permutation.to(at::kLong)}, rows.to(at::kLong));
  return {row_of, columns.to(at::kLong)};
}

struct SparseLinear : torch::autograd::Function<SparseLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& input,
                            const at::Tensor& values, const OptionalTensor& bias, const at::Tensor& row_starts,
                            const at::Tensor& row_order, const at::Tensor& columns, const at::Tensor& column_starts,
                            const at::Tensor& column_order, const at::Tensor& rows, const at::Tensor& permutation,
                            bool relu) {
    check_sparse_linear(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows,
                        permutation);
    const at::Tensor output = [&] {
      at::AutoDispatchBelowADInplaceOrView guard;
      return sparse_linear(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows,
                           permutation, relu);
    }();
    // Like nn.Linear: frozen values keep no input, a first layer not its values.
    context->save_for_backward({values.requires_grad() ? input : at::Tensor(),
                                input.requires_grad() ? values : at::Tensor(), row_starts, row_order, columns,
                                column_starts, column_order, rows, permutation, relu ? output : at::Tensor()});
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &input = saved[0], &values = saved[1], &row_starts = saved[2], &row_order = saved[3],
               &columns = saved[4], &column_starts = saved[5], &column_order = saved[6], &rows = saved[7],
               &permutation = saved[8];
    const auto& output = saved[9];  // undefined without relu
    const auto out_features = row_order.sym_size(1), in_features = column_order.sym_size(1);
    const bool differentiable = at::GradMode::is_enabled();
    const BelowAutograd below_autograd(!differentiable);
    const auto grad_output = output.defined() ? at::threshold_backward(gradients[0], output, 0) : gradients[0];
    const bool input_wanted = context->needs_input_grad(0), values_wanted = context->needs_input_grad(1),
               bias_wanted = context->needs_input_grad(2);
    at::Tensor grad_input, grad_values, grad_bias;
    if (!differentiable) {
      // What was not kept is not read: the gradient of the input takes the input's shape alone.
      const auto input_or_shape = [&] {
        if (values_wanted) return input;
        auto shape = grad_output.sym_sizes().vec();
        shape.back() = in_features;
        return grad_output.new_empty({1}).expand_symint(shape);
      };
      const auto gradients = sparse_linear_backward(grad_output, input_or_shape(), input_wanted ? values : grad_output,
                                                    row_starts, row_order, columns, column_starts, column_order, rows,
                                                    permutation, {input_wanted, values_wanted, bias_wanted});
      if (input_wanted) grad_input = std::get<0>(gradients);
      if (values_wanted) grad_values = std::get<1>(gradients);
      if (bias_wanted) grad_bias = std::get<2>(gradients);
    } else {
      if (input_wanted || values_wanted) {  // double backward: the same values from differentiable pieces
        const auto [row_of, column_of] = coordinates(columns, rows, permutation);
        if (input_wanted) {
          const auto zeros = at::zeros_symint({out_features, in_features}, values.options());
          grad_input = grad_output.matmul(zeros.index_put({row_of, column_of}, values));
        }
        if (values_wanted) {
          const auto dense = as_rows(grad_output).t().matmul(as_rows(input));
          grad_values = dense.index({row_of, column_of});
        }
      }
      if (bias_wanted) grad_bias = as_rows(grad_output).sum(0);
    }
    torch::autograd::variable_list of_arguments(11);  // pattern and relu have none
    of_arguments[0] = grad_input, of_arguments[1] = grad_values, of_arguments[2] = grad_bias;
    return of_arguments;
  }
};

at::Tensor sparse_linear_autograd(const at::Tensor& input, const at::Tensor& values, const OptionalTensor& bias,
                                  const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns,
                                  const at::Tensor& column_starts, const at::Tensor& column_order,
                                  const at::Tensor& rows, const at::Tensor& permutation, bool relu) {
  if (!differentiated(input) && !differentiated(values) && !(bias.has_value() && differentiated(*bias))) {
    check_sparse_linear(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows,
                        permutation);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return sparse_linear(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows,
                         permutation, relu);
  }
  return SparseLinear::apply(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows,
                             permutation, relu);
}

// There is no kernel for half precision: under autocast the layer computes in float32.
template <c10::DeviceType device, c10::DispatchKey key>
at::Tensor sparse_linear_autocast(const at::Tensor& input, const at::Tensor& values, const OptionalTensor& bias,
                                  const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns,
                                  const at::Tensor& column_starts, const at::Tensor& column_order,
                                  const at::Tensor& rows, const at::Tensor& permutation, bool relu) {
  c10::impl::ExcludeDispatchKeyGuard guard(key);
  return sparse_linear(at::autocast::cached_cast(at::kFloat, input, device),
                       at::autocast::cached_cast(at::kFloat, values, device),
                       at::autocast::cached_cast(at::kFloat, bias, device), row_starts, row_order, columns,
                       column_starts, column_order, rows, permutation, relu);
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, Autograd, library) { library.impl("sparse_linear", lth_fast::sparse_linear_autograd); }
TORCH_LIBRARY_IMPL(lth_fast, AutocastCPU, library) {
  library.impl("sparse_linear", lth_fast::sparse_linear_autocast<c10::kCPU, c10::DispatchKey::AutocastCPU>);
}
TORCH_LIBRARY_IMPL(lth_fast, AutocastCUDA, library) {
  library.impl("sparse_linear", lth_fast::sparse_linear_autocast<c10::kCUDA, c10::DispatchKey::AutocastCUDA>);
}
