// Bound by memory: 16 bytes per thread where the addresses allow it.
#include "cuda/kernels/masked_apply.h"

#include "cuda/kernels/launch.h"
#include "cuda/kernels/tensor_list.h"

namespace lth_fast::cuda {
namespace {

template <typename Element>
struct alignas(16) Vector {
  // 8, 4 or 2, so the mask bits of one vector lie within one byte.
  static constexpr int kLanes = 16 / sizeof(Element);
  Element lanes[kLanes];
};

bool is_aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// One thread per vector; the last one may be cut short.
template <typename Element>
__global__ void apply(const Element* input, const uint8_t* bits, Element* output, int64_t count, bool aligned) {
  constexpr int kLanes = Vector<Element>::kLanes;
  const int64_t first = item() * kLanes;
  if (first >= count) return;
  const unsigned kept = static_cast<unsigned>(bits[first / 8]) >> (first % 8);
  if (aligned && first + kLanes <= count) {
    Vector<Element> vector = *reinterpret_cast<const Vector<Element>*>(input + first);
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((kept >> lane & 1) == 0) vector.lanes[lane] = 0;
    }
    *reinterpret_cast<Vector<Element>*>(output + first) = vector;
  } else {
    for (int lane = 0; lane < kLanes && first + lane < count; ++lane) {
      output[first + lane] = (kept >> lane & 1) != 0 ? input[first + lane] : Element{0};
    }
  }
}

// One thread per weight, in memory order. Survivors are neither read nor written.
template <typename Element>
__global__ void zero_pruned(Element* weights, const uint8_t* bits, MaskOrder order, int64_t count) {
  const int64_t place = item();
  if (place < count && !survives(bits, order.flat_index(place))) weights[place] = 0;
}

constexpr int64_t kMaskedChunk = 1 << 12;
using MaskedList = TensorList<MaskedTensor, kMaskedChunk>;

// As zero_pruned, for a list.
template <typename Element>
__global__ void zero_pruned_of_each(MaskedList list) {
  const Chunk chunk = chunk_of_block(list);
  const MaskedTensor& tensor = list.tensors[chunk.tensor];
  auto* weights = static_cast<Element*>(tensor.weights);
  for (int64_t place = chunk.first + threadIdx.x; place < chunk.first + chunk.count; place += kThreads) {
    if (!survives(tensor.bits, tensor.order.flat_index(place))) weights[place] = 0;
  }
}

}  // namespace

template <typename Element>
void masked_apply(const Element* input, const uint8_t* bits, Element* output, int64_t count, cudaStream_t stream) {
  constexpr int kLanes = Vector<Element>::kLanes;
  const bool aligned = is_aligned(input) && is_aligned(output);
  launch_for_each(apply<Element>, (count + kLanes - 1) / kLanes, stream, input, bits, output, count, aligned);
}

template <typename Element>
void masked_apply_in_order(Element* weights, const uint8_t* bits, MaskOrder order, int64_t count, cudaStream_t stream) {
  launch_for_each(zero_pruned<Element>, count, stream, weights, bits, order, count);
}

template <typename Element>
void masked_apply_each(const std::vector<MaskedTensor>& tensors, cudaStream_t stream) {
  launch_over_chunks(zero_pruned_of_each<Element>, tensors, stream);
}

#define LTH_FAST_INSTANTIATE(Element)                                                                       \
  template void masked_apply<Element>(const Element*, const uint8_t*, Element*, int64_t, cudaStream_t);     \
  template void masked_apply_in_order<Element>(Element*, const uint8_t*, MaskOrder, int64_t, cudaStream_t); \
  template void masked_apply_each<Element>(const std::vector<MaskedTensor>&, cudaStream_t);
LTH_FAST_INSTANTIATE(uint16_t)
LTH_FAST_INSTANTIATE(uint32_t)
LTH_FAST_INSTANTIATE(uint64_t)
#undef LTH_FAST_INSTANTIATE

}  // namespace lth_fast::cuda
