// The kernels take tensors as [features, samples], so input and output are transposed at the borders.
#include "cuda/kernels/sparse_linear.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "ops/below_autograd.h"
#include "ops/rows.h"
#include "ops/sparse_linear.h"

namespace lth_fast {
namespace {

// Where in every panel each line is visited: the inverse of the order.
at::Tensor places_of(const at::Tensor& order) {
  const at::Tensor place = at::arange(order.size(1), order.options()).expand_as(order);
  return at::empty_like(order).scatter_(1, order.to(at::kLong), place);
}

template <typename Index>
cuda::SparseLines<Index> lines_of(const at::Tensor& starts, const at::Tensor& places, const at::Tensor& indices,
                                  int64_t features) {
  const int64_t panels = places.size(0), lines = places.size(1);
  const int64_t panel_width = (features + panels - 1) / panels;  // as sparse_pattern cuts them
  return {starts.const_data_ptr<int32_t>(), places.const_data_ptr<int32_t>(), panels, lines, features, panel_width,
          indices.const_data_ptr<Index>()};
}

// Calls work(element, index) with the types of the values and of the pattern.
template <typename Work>
void with_types(const at::Tensor& values, const at::Tensor& indices, const Work& work) {
  const auto with_index = [&](auto element) {
    if (indices.scalar_type() == at::kShort) {
      work(element, int16_t{});
    } else {
      work(element, int32_t{});
    }
  };
  if (values.scalar_type() == at::kFloat) {
    with_index(float{});
  } else {
    with_index(double{});
  }
}

at::Tensor features_first(const at::Tensor& tensor) { return as_rows(tensor).t().contiguous(); }

// From [features, samples] to [..., features], with the leading dimensions of `like`.
at::Tensor samples_first(const at::Tensor& tensor, const at::Tensor& like) {
  auto shape = like.sizes().vec();
  shape.back() = tensor.size(0);
  return tensor.t().contiguous().view(shape);
}

at::Tensor sparse_linear(const at::Tensor& input, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                         const at::Tensor& row_starts, const at::Tensor& row_order, const at::Tensor& columns,
                         const at::Tensor& column_starts, const at::Tensor& column_order, const at::Tensor& rows,
                         const at::Tensor& permutation, bool relu) {
  if (past_autograd(input)) {
    check_sparse_linear(input, values, bias, row_starts, row_order, columns, column_starts, column_order, rows,
                        permutation);
  }
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor from = features_first(input), kept = values.contiguous();
  const at::Tensor added = bias.has_value() ? bias->contiguous() : at::Tensor();
  const at::Tensor to = at::empty({row_order.size(1), from.size(1)}, from.options()), places = places_of(row_order);
  with_types(kept, columns, [&](auto element, auto index) {
    using Element = decltype(element);
    cuda::sparse_product(lines_of<decltype(index)>(row_starts, places, columns, from.size(0)),
                         kept.const_data_ptr<Element>(), added.defined() ? added.const_data_ptr<Element>() : nullptr,
                         from.const_data_ptr<Element>(), to.mutable_data_ptr<Element>(), from.size(1),
                         c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (relu) to.relu_();
  return samples_first(to, input);
}

at::Tensor sparse_linear_input_grad(const at::Tensor& grad_output, const at::Tensor& values,
                                    const at::Tensor& column_starts, const at::Tensor& column_order,
                                    const at::Tensor& rows, const at::Tensor& permutation) {
  const c10::cuda::CUDAGuard guard(grad_output.device());
  const at::Tensor from = features_first(grad_output), kept = values.index_select(0, permutation);
  const at::Tensor to = at::empty({column_order.size(1), from.size(1)}, from.options()),
                   places = places_of(column_order);
  with_types(kept, rows, [&](auto element, auto index) {
    using Element = decltype(element);
    const Element* no_bias = nullptr;
    cuda::sparse_product(lines_of<decltype(index)>(column_starts, places, rows, from.size(0)),
                         kept.const_data_ptr<Element>(), no_bias, from.const_data_ptr<Element>(),
                         to.mutable_data_ptr<Element>(), from.size(1), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return samples_first(to, grad_output);
}

at::Tensor sparse_linear_values_grad(const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& row_starts, const at::Tensor& row_order,
                                     const at::Tensor& columns) {
  check_sparse_linear_gradient("sparse_linear_values_grad", grad_output, input, row_order.size(1));
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor gradient = features_first(grad_output), from = features_first(input);
  at::Tensor grad_values = at::empty(columns.sizes(), input.options());
  const at::Tensor places = places_of(row_order);
  with_types(from, columns, [&](auto element, auto index) {
    using Element = decltype(element);
    cuda::sampled_product(lines_of<decltype(index)>(row_starts, places, columns, from.size(0)),
                          gradient.const_data_ptr<Element>(), from.const_data_ptr<Element>(),
                          grad_values.mutable_data_ptr<Element>(), from.size(1), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_values;
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) {
  library.impl("sparse_linear", lth_fast::sparse_linear);
  library.impl("sparse_linear_input_grad", lth_fast::sparse_linear_input_grad);
  library.impl("sparse_linear_values_grad", lth_fast::sparse_linear_values_grad);
}
