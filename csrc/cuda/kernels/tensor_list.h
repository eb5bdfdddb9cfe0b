// A list of tensors as an argument of a kernel: by value, so that nothing is copied to the device and a captured graph
// keeps it. A block works on one chunk of one tensor.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/kernels/launch.h"

namespace lth_fast::cuda {

// Tensor has a field `count`. Leaves some of the 4 KiB of a kernel's parameters to others.
template <typename Tensor, int64_t kChunk>
struct TensorList {
  static constexpr int kCapacity = 3840 / (sizeof(Tensor) + sizeof(int64_t));

  Tensor tensors[kCapacity];
  int64_t first_chunk[kCapacity];  // of each tensor, counted from the first of this list
  int size;
  int64_t tensors_before;  // in the lists launched earlier
  int64_t chunks_before;
  int64_t chunks;

  static int64_t chunks_of(const Tensor& tensor) { return (tensor.count + kChunk - 1) / kChunk; }
};

// What one block works on.
struct Chunk {
  int tensor;  // in the list
  int64_t first;
  int64_t count;
};

template <typename Tensor, int64_t kChunk>
__device__ Chunk chunk_of_block(const TensorList<Tensor, kChunk>& list) {
  int tensor = 0;
  while (tensor + 1 < list.size && list.first_chunk[tensor + 1] <= blockIdx.x) ++tensor;
  const int64_t first = (blockIdx.x - list.first_chunk[tensor]) * kChunk;
  const int64_t rest = list.tensors[tensor].count - first;
  return {tensor, first, rest < kChunk ? rest : kChunk};
}

// Calls work(list) for the tensors in order, as few lists as hold them.
template <typename Tensor, int64_t kChunk, typename Work>
void for_each_list(const std::vector<Tensor>& tensors, const Work& work) {
  using List = TensorList<Tensor, kChunk>;
  int64_t chunks_before = 0;
  for (size_t begin = 0; begin < tensors.size(); begin += List::kCapacity) {
    List list{};
    list.size = static_cast<int>(std::min(tensors.size() - begin, static_cast<size_t>(List::kCapacity)));
    list.tensors_before = static_cast<int64_t>(begin);
    list.chunks_before = chunks_before;
    for (int i = 0; i < list.size; ++i) {
      list.tensors[i] = tensors[begin + static_cast<size_t>(i)];
      list.first_chunk[i] = list.chunks;
      list.chunks += List::chunks_of(list.tensors[i]);
    }
    chunks_before += list.chunks;
    work(list);
  }
}

// Launches the kernel with a block per chunk.
template <typename Tensor, int64_t kChunk, typename... Parameters, typename... Arguments>
void launch_over_chunks(void (*kernel)(TensorList<Tensor, kChunk>, Parameters...), const std::vector<Tensor>& tensors,
                        cudaStream_t stream, Arguments... arguments) {
  for_each_list<Tensor, kChunk>(tensors, [&](const TensorList<Tensor, kChunk>& list) {
    if (list.chunks == 0) return;
    launch(kernel, dim3(static_cast<unsigned>(list.chunks)), dim3(kThreads), stream, list, arguments...);
  });
}

}  // namespace lth_fast::cuda
