// The device decides everything, also whether the arguments are refused: nothing is pruned then. The host reads that
// verdict at the very end and raises the CPU's errors. While a graph is being captured there is nothing to read yet: a
// replay on weights that hold NaN or infinity leaves the masks as they were and gives a threshold of NaN.
#include "ops/magnitude_threshold.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>

#include <cstring>
#include <tuple>
#include <vector>

#include "cuda/kernels/magnitude_threshold.h"

namespace lth_fast {
namespace {

// Row-major tensors, so that the kernels see flat order.
struct Operands {
  std::vector<at::Tensor> weights, masks;  // an undefined mask: every weight survives

  Operands(at::TensorList given, const OptionalMasks& given_masks) {
    for (size_t i = 0; i < given.size(); ++i) {
      const std::optional<at::Tensor> mask = given_masks.get(i);
      weights.push_back(given[i].contiguous());
      masks.push_back(mask.has_value() ? mask->contiguous() : at::Tensor());
    }
  }

  std::vector<cuda::MagnitudeTensor> as_kernels_take_them() const {
    std::vector<cuda::MagnitudeTensor> tensors;
    for (size_t i = 0; i < weights.size(); ++i) {
      tensors.push_back({weights[i].const_data_ptr(),
                         masks[i].defined() ? static_cast<const uint8_t*>(masks[i].const_data_ptr()) : nullptr, nullptr,
                         weights[i].numel()});
    }
    return tensors;
  }
};

// Calls work(infinity) with the key of infinity in the weights' format, whose type is that of the keys.
template <typename Work>
auto by_format(at::ScalarType type, const Work& work) {
  switch (type) {
    case at::kHalf:
      return work(uint16_t{0x7c00});
    case at::kBFloat16:
      return work(uint16_t{0x7f80});
    case at::kFloat:
      return work(uint32_t{0x7f800000});
    default:
      return work(uint64_t{0x7ff0000000000000});
  }
}

template <typename Key>
at::Tensor empty_workspace(const cuda::MagnitudeSearch<Key>& search, const at::Tensor& like) {
  const auto numbers = static_cast<int64_t>(search.workspace_bytes() / sizeof(int64_t));
  return at::empty({numbers}, like.options().dtype(at::kLong));
}

void raise_if_refused(const char* function, int64_t k, const at::Tensor& workspace) {
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) return;
  cuda::MagnitudeOutcome outcome;
  const at::Tensor head = workspace.narrow(0, 0, sizeof(outcome) / sizeof(int64_t)).cpu();
  std::memcpy(&outcome, head.const_data_ptr(), sizeof(outcome));
  TORCH_CHECK_VALUE(outcome.refused_tensor == cuda::kNoTensor, function, ": weights[", outcome.refused_tensor,
                    "] holds NaN or infinity among its survivors; did the training diverge?");
  TORCH_CHECK_VALUE(outcome.k != cuda::kRefused, function, ": k must be between 0 and the ", outcome.survivors,
                    " survivors, got ", k);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> magnitude_threshold(at::TensorList weights, int64_t k,
                                                                   const OptionalMasks& masks) {
  constexpr const char* function = "magnitude_threshold";
  check_magnitude_arguments(function, weights, masks);
  const c10::cuda::CUDAGuard guard(weights[0].device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Operands operands(weights, masks);
  return by_format(weights[0].scalar_type(), [&](auto infinity) {
    using Key = decltype(infinity);
    const cuda::MagnitudeSearch<Key> search(operands.as_kernels_take_them(), infinity);
    const at::Tensor workspace = empty_workspace(search, weights[0]);
    const auto counts = weights[0].options().dtype(at::kLong);
    at::Tensor threshold = at::empty({}, weights[0].options());
    at::Tensor tie_budget = at::empty({}, counts), survivors = at::empty({}, counts);
    search.find(k, workspace.mutable_data_ptr(), stream);
    search.write_threshold(workspace.const_data_ptr(), static_cast<Key*>(threshold.mutable_data_ptr()),
                           tie_budget.mutable_data_ptr<int64_t>(), survivors.mutable_data_ptr<int64_t>(), stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    raise_if_refused(function, k, workspace);
    return std::make_tuple(threshold, tie_budget, survivors);
  });
}

std::vector<at::Tensor> prune_by_magnitude(at::TensorList weights, int64_t k, const OptionalMasks& masks) {
  constexpr const char* function = "prune_by_magnitude";
  check_magnitude_arguments(function, weights, masks);
  const c10::cuda::CUDAGuard guard(weights[0].device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Operands operands(weights, masks);
  std::vector<at::Tensor> new_masks;
  by_format(weights[0].scalar_type(), [&](auto infinity) {
    cuda::MagnitudeSearch<decltype(infinity)> search(operands.as_kernels_take_them(), infinity);
    const at::Tensor workspace = empty_workspace(search, weights[0]);
    search.find(k, workspace.mutable_data_ptr(), stream);
    std::vector<uint8_t*> written;
    for (const at::Tensor& weight : weights) {
      new_masks.push_back(at::empty(weight.sizes(), weight.options().dtype(at::kBool)));
      written.push_back(static_cast<uint8_t*>(new_masks.back().mutable_data_ptr()));
    }
    search.prune(written, workspace.mutable_data_ptr(), stream);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    raise_if_refused(function, k, workspace);
  });
  return new_masks;
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CUDA, library) {
  library.impl("magnitude_threshold", lth_fast::magnitude_threshold);
  library.impl("prune_by_magnitude", lth_fast::prune_by_magnitude);
}
