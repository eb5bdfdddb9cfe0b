// Stands in for CUDA's own header: runs kernels on a CPU, one block after another, the threads of a block in turn.
//
// A thread is a fiber that runs until it waits for its block or its warp. The tests choose the order of threads and
// blocks: a kernel that lacks a barrier, or that depends on the order of its blocks, gives other results in another
// order. A barrier that not every thread reaches ends the program.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;
using cudaError_t = int;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum { cudaSharedmemCarveoutMaxShared };
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = size_t{1} << 16;

enum class State { kRuns, kAtBlock, kAtWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  jmp_buf resume;
  State state;
  uint64_t exchanged;           // what this thread shows to its warp or block
  std::vector<Copy> requested;  // that nobody has waited for
};

inline bool reversed = false;  // the order of threads and blocks
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline jmp_buf scheduler;
inline unsigned current, count;
inline std::function<void()> body;
inline size_t dynamic_bytes;
inline size_t most_dynamic_bytes = size_t{227} << 10;  // of an H100
inline std::unique_ptr<std::max_align_t[]> dynamic;

[[noreturn]] inline void fail(const char* reason) {
  std::fprintf(stderr, "cuda_on_cpu: %s in block %u, thread %u\n", reason, blockIdx.x, current);
  std::abort();
}

// Unlike swapcontext, a jump makes no system call.
inline void wait(State state) {
  Fiber& fiber = *fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.resume) == 0) _longjmp(scheduler, 1);
}

inline void run_forever() {
  wait(State::kDone);
  while (true) {
    body();
    wait(State::kDone);
  }
}

// A fiber has a stack of its own, which makecontext prepares, and lives as long as the program.
inline void add_fiber() {
  fibers.push_back(std::make_unique<Fiber>());
  current = static_cast<unsigned>(fibers.size()) - 1;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fibers.back()->stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, run_forever, 0);
  if (_setjmp(scheduler) == 0) setcontext(&context);
}

inline void resume(unsigned thread) {
  current = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x};
  if (_setjmp(scheduler) == 0) _longjmp(fibers[thread]->resume, 1);
}

// Lets [first, last) run on if all of them wait as `state` says; returns whether they do.
inline bool release(unsigned first, unsigned last, State state) {
  for (unsigned thread = first; thread < last; ++thread) {
    if (fibers[thread]->state != state) return false;
  }
  for (unsigned thread = first; thread < last; ++thread) fibers[thread]->state = State::kRuns;
  return true;
}

inline unsigned char* dynamic_memory() { return reinterpret_cast<unsigned char*>(dynamic.get()); }

inline void run_block() {
  // As far as it was asked for; NaN until something is written there.
  dynamic.reset(new std::max_align_t[dynamic_bytes / sizeof(std::max_align_t) + 1]);
  std::memset(dynamic.get(), 0xff, dynamic_bytes);
  for (unsigned thread = 0; thread < count; ++thread) fibers[thread]->state = State::kRuns;
  while (true) {
    bool all_done = true;
    for (unsigned turn = 0; turn < count; ++turn) {
      const unsigned thread = reversed ? count - 1 - turn : turn;
      if (fibers[thread]->state == State::kRuns) resume(thread);
      all_done = all_done && fibers[thread]->state == State::kDone;
    }
    if (all_done) return;
    bool released = release(0, count, State::kAtBlock);
    for (unsigned warp = 0; warp < count; warp += kWarp) {
      released = release(warp, warp + kWarp < count ? warp + kWarp : count, State::kAtWarp) || released;
    }
    if (!released) fail("a barrier that not every thread reaches");
  }
}

inline void run_grid(dim3 blocks, dim3 threads) {
  gridDim = blocks;
  blockDim = threads;
  count = threads.x * threads.y;
  if (blocks.x == 0 || blocks.y == 0 || count == 0 || count > 1024) fail("an invalid launch");
  while (fibers.size() < count) add_fiber();
  for (unsigned turn = 0; turn < blocks.x * blocks.y; ++turn) {
    const unsigned block = reversed ? blocks.x * blocks.y - 1 - turn : turn;
    blockIdx = {block % blocks.x, block / blocks.x};
    run_block();
  }
}

inline unsigned lane() { return current % kWarp; }

// What the lane of this warp shows, after all lanes showed `own`.
template <typename Value>
struct Exchange {
  explicit Exchange(Value own) {
    static_assert(sizeof(Value) <= sizeof(uint64_t));
    std::memcpy(&fibers[current]->exchanged, &own, sizeof(own));
    wait(State::kAtWarp);
    const unsigned first = current - lane();
    for (unsigned other = 0; other < kWarp; ++other)
      std::memcpy(&shown[other], &fibers[first + other]->exchanged, sizeof(own));
    wait(State::kAtWarp);  // before a lane shows the next value
  }
  Value shown[kWarp];
};

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::State::kAtBlock); }

inline int __syncthreads_or(int own) {
  using namespace cuda_on_cpu;
  fibers[current]->exchanged = own != 0;
  __syncthreads();
  int any = 0;
  for (unsigned thread = 0; thread < count; ++thread) any |= fibers[thread]->exchanged != 0;
  __syncthreads();  // before a thread shows the next value
  return any;
}

inline void __syncwarp() { cuda_on_cpu::wait(cuda_on_cpu::State::kAtWarp); }

inline unsigned __ballot_sync(unsigned, bool own) {
  const cuda_on_cpu::Exchange<bool> exchange(own);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < cuda_on_cpu::kWarp; ++lane) ballot |= unsigned{exchange.shown[lane]} << lane;
  return ballot;
}

template <typename Value>
Value __shfl_down_sync(unsigned, Value own, unsigned distance) {
  const cuda_on_cpu::Exchange<Value> exchange(own);
  const unsigned from = cuda_on_cpu::lane() + distance;
  return from < cuda_on_cpu::kWarp ? exchange.shown[from] : own;
}

template <typename Value>
Value __shfl_sync(unsigned, Value own, unsigned from) {
  return cuda_on_cpu::Exchange<Value>(own).shown[from];
}

template <typename Value>
Value __shfl_xor_sync(unsigned, Value own, unsigned distance) {
  return cuda_on_cpu::Exchange<Value>(own).shown[cuda_on_cpu::lane() ^ distance];
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename Value>
Value atomicAdd(Value* address, Value value) {
  const Value before = *address;
  *address += value;
  return before;
}

template <typename Value>
Value atomicMin(Value* address, Value value) {
  const Value before = *address;
  *address = value < before ? value : before;
  return before;
}

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), int, int) {
  return 0;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = static_cast<int>(cuda_on_cpu::most_dynamic_bytes);
  return 0;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  if (config->dynamicSmemBytes > cuda_on_cpu::most_dynamic_bytes) cuda_on_cpu::fail("too much shared memory");
  cuda_on_cpu::dynamic_bytes = config->dynamicSmemBytes;
  cuda_on_cpu::body = [&] { kernel(arguments...); };
  cuda_on_cpu::run_grid(config->gridDim, config->blockDim);
  return 0;
}
