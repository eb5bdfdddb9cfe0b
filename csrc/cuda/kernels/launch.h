// Launching kernels: through a plain function and not <<<>>>, so that the tests can run the same kernels on a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace lth_fast::cuda {

constexpr unsigned kWarp = 32;
constexpr unsigned kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffff;
constexpr size_t kMemoryOfAnyBlock = 48 << 10;  // a kernel has to ask for more

// With `bytes` of shared memory for each block, where dynamic_memory() finds them.
template <typename... Parameters, typename... Arguments>
void launch_with_memory(size_t bytes, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream,
                        Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "the parameters of a kernel may take 4 KiB");
  if (bytes > kMemoryOfAnyBlock) {
    (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    // So that the driver does not leave so much to the first-level cache that a multiprocessor has one block only.
    (void)cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  (void)cudaLaunchKernelEx(&config, kernel, arguments...);  // the callers read cudaGetLastError
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream, Arguments... arguments) {
  launch_with_memory(0, kernel, blocks, threads, stream, arguments...);
}

// Aligned to 16 bytes.
__device__ inline unsigned char* dynamic_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return cuda_on_cpu::dynamic_memory();
#endif
}

// One thread per item; no launch for no items, which CUDA takes for an error.
template <typename... Parameters, typename... Arguments>
void launch_for_each(void (*kernel)(Parameters...), int64_t items, cudaStream_t stream, Arguments... arguments) {
  if (items == 0) return;
  launch(kernel, dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads)), dim3(kThreads), stream, arguments...);
}

// The item of this thread under launch_for_each.
__device__ inline int64_t item() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

}  // namespace lth_fast::cuda
