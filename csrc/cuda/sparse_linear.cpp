// The kernels take tensors as [features, samples], so input and output are transposed at the borders.
#include "cuda/kernels/sparse_linear.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <array>
#include <tuple>

#include "ops/below_autograd.h"
#include "ops/rows.h"
#include "ops/sparse_linear.h"

namespace lth_fast {
namespace {

// Where in every panel each line is visited: the inverse of the order.
at::Tensor places_of(const at::Tensor& order) {
  const at::Tensor given = order.contiguous(), places = at::empty_like(given);
  cuda::invert_order(given.const_data_ptr<int32_t>(), places.mutable_data_ptr<int32_t>(), given.size(0), given.size(1),
                     c10::cuda::getCurrentCUDAStream());
  return places;
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

// grad_output is [out_features, samples], and so on.
at::Tensor input_grad(const at::Tensor& grad_output, const at::Tensor& values, const at::Tensor& column_starts,
                      const at::Tensor& column_order, const at::Tensor& rows, const at::Tensor& permutation) {
  const at::Tensor kept = values.index_select(0, permutation), places = places_of(column_order);
  const at::Tensor to = at::empty({column_order.size(1), grad_output.size(1)}, grad_output.options());
  with_types(kept, rows, [&](auto element, auto index) {
    using Element = decltype(element);
    const Element* no_bias = nullptr;
    cuda::sparse_product(lines_of<decltype(index)>(column_starts, places, rows, grad_output.size(0)),
                         kept.const_data_ptr<Element>(), no_bias, grad_output.const_data_ptr<Element>(),
                         to.mutable_data_ptr<Element>(), grad_output.size(1), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return to;
}

at::Tensor values_grad(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& row_starts,
                       const at::Tensor& row_order, const at::Tensor& columns) {
  const at::Tensor grad_values = at::empty(columns.sizes(), input.options()), places = places_of(row_order);
  with_types(input, columns, [&](auto element, auto index) {
    using Element = decltype(element);
    cuda::sampled_product(lines_of<decltype(index)>(row_starts, places, columns, input.size(0)),
                          grad_output.const_data_ptr<Element>(), input.const_data_ptr<Element>(),
                          grad_values.mutable_data_ptr<Element>(), input.size(1), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_values;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_linear_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& values, const at::Tensor& row_starts,
    const at::Tensor& row_order, const at::Tensor& columns, const at::Tensor& column_starts,
    const at::Tensor& column_order, const at::Tensor& rows, const at::Tensor& permutation, std::array<bool, 3> wanted) {
  check_sparse_linear_backward(grad_output, input, values, row_order, columns, column_order, wanted);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto none = [&] { return at::empty({0}, values.options()); };
  const at::Tensor gradient = wanted[0] || wanted[1] ? features_first(grad_output) : at::Tensor();
  return {wanted[0] ? samples_first(input_grad(gradient, values, column_starts, column_order, rows, permutation), input)
                    : none(),
          wanted[1] ? values_grad(gradient, features_first(input), row_starts, row_order, columns) : none(),
          wanted[2] ? as_rows(grad_output).sum(0) : none()};
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) {
  library.impl("sparse_linear", lth_fast::sparse_linear);
  library.impl("sparse_linear_backward", lth_fast::sparse_linear_backward);
}
