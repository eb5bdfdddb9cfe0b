// One pass over weights, gradients and momentum of all parameters together.
#include "cuda/kernels/sgd_step.h"

#include "cuda/kernels/launch.h"
#include "cuda/kernels/tensor_list.h"

namespace lth_fast::cuda {
namespace {

constexpr int64_t kSgdChunk = 1 << 10;  // four weights a thread: a small network still fills the device
using SgdList = TensorList<SgdTensor, kSgdChunk>;

template <typename Element>
__global__ void sgd(SgdList list, SgdSettings settings) {
  using Number = typename Arithmetic<Element>::Type;
  const Chunk chunk = chunk_of_block(list);
  const SgdTensor& tensor = list.tensors[chunk.tensor];
  const auto lr = static_cast<Number>(settings.lr.read()), penalty = static_cast<Number>(settings.weight_decay);
  const auto momentum = static_cast<Number>(settings.momentum);
  const auto new_share = static_cast<Number>(1 - settings.dampening);
  auto* parameters = static_cast<Element*>(tensor.parameter);
  auto* buffers = static_cast<Element*>(tensor.momentum_buffer);
  const auto* gradients = static_cast<const Element*>(tensor.gradient);

  for (int64_t i = chunk.first + threadIdx.x; i < chunk.first + chunk.count; i += kThreads) {
    if (tensor.mask_bits != nullptr && !survives(tensor.mask_bits, tensor.order.flat_index(i))) {
      parameters[i] = Element(Number{0});
      if (buffers != nullptr) buffers[i] = Element(Number{0});
      continue;
    }
    const auto weight = static_cast<Number>(parameters[i]);
    Number gradient = static_cast<Number>(gradients[i]);
    if (settings.maximize) gradient = -gradient;
    if (penalty != 0) gradient += penalty * weight;
    if (buffers != nullptr) {
      const Number buffer =
          settings.first_step ? gradient : momentum * static_cast<Number>(buffers[i]) + new_share * gradient;
      buffers[i] = Element(buffer);
      gradient = settings.nesterov ? gradient + momentum * buffer : buffer;
    }
    parameters[i] = Element(weight - lr * gradient);
  }
}

}  // namespace

void sgd_step(const std::vector<SgdTensor>& tensors, Format format, const SgdSettings& settings, cudaStream_t stream) {
  with_element(format, [&](auto element) { launch_over_chunks(sgd<decltype(element)>, tensors, stream, settings); });
}

}  // namespace lth_fast::cuda
