// torch's own binding of oneDNN's product, which takes ordinary tensors; torch.compile makes use of it, eager layers do
// not.
#include "ops/onednn_linear.h"

#include <string_view>

#include "cpu/onednn.h"
#include "ops/rows.h"

namespace lth_fast {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Product = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, std::string_view,
                           c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

// Absent from a torch without oneDNN.
const std::optional<c10::TypedOperatorHandle<Product>>& product() {
  static const auto found = [] {
    const auto handle = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return handle.has_value() ? std::optional(handle->typed<Product>()) : std::nullopt;
  }();
  return found;
}

// A matrix that oneDNN can walk: rows or columns adjacent, none of them twice.
at::Tensor walkable(const at::Tensor& matrix) {
  const auto walks = [&](int64_t line, int64_t element) {
    return matrix.stride(element) == 1 && matrix.stride(line) >= matrix.size(element);
  };
  return walks(0, 1) || walks(1, 0) ? matrix : matrix.contiguous();
}

}  // namespace

at::Tensor onednn_linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias) {
  if (!input.is_cpu() || input.scalar_type() != at::kFloat || weight.scalar_type() != at::kFloat) return {};
  const int64_t out_features = weight.size(0), in_features = weight.size(1);
  if (in_features == 0 || !onednn_pays(input.numel() / in_features, in_features, out_features)) return {};
  if (!at::globalContext().userEnabledMkldnn() || !product().has_value()) return {};
  const OptionalTensor added = bias.has_value() ? OptionalTensor(bias->contiguous()) : std::nullopt;
  at::Tensor output = product()->call(walkable(as_rows(input)), walkable(weight), added, "none",
                                      c10::List<std::optional<at::Scalar>>(), "");
  auto shape = input.sizes().vec();
  shape.back() = out_features;
  return input.dim() == 2 ? output : output.view(shape);
}

}  // namespace lth_fast
