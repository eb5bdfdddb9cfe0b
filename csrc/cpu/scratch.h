// Memory that a kernel needs while it runs.
//
// The allocator hands out other addresses at every call, last touched many megabytes ago: writing there fetches lines
// that nobody will read and pushes out others. Each thread keeps a stack instead: what one call wrote, the next one
// writes over while it is still in cache.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <cstdlib>

#include "cpu/caches.h"

namespace lth_fast {

class ScratchStack {
 public:
  static ScratchStack& of_this_thread() {
    // More than that would not stay in cache anyway.
    thread_local ScratchStack stack(2 * static_cast<size_t>(level2_cache_bytes()));
    return stack;
  }

  // For large blocks: the system takes long to hand out their pages anew at every call.
  static ScratchStack& large_of_this_thread() {
    thread_local ScratchStack stack(kLarge);
    return stack;
  }

  // Null where there is no room. What is taken last is to be given back first.
  void* take(size_t bytes) {
    if (memory_ == nullptr && bytes <= capacity_) memory_ = static_cast<char*>(std::aligned_alloc(kPage, capacity_));
    if (memory_ == nullptr || bytes > capacity_ - used_) return nullptr;
    void* taken = memory_ + used_;
    used_ += bytes;
    return taken;
  }
  void give_back(size_t bytes) { used_ -= bytes; }

  ScratchStack(const ScratchStack&) = delete;
  ScratchStack& operator=(const ScratchStack&) = delete;

 private:
  static constexpr size_t kPage = 4096, kLarge = size_t{16} << 20;

  explicit ScratchStack(size_t bytes) : capacity_(bytes / kPage * kPage) {}
  ~ScratchStack() { std::free(memory_); }

  const size_t capacity_;
  char* memory_ = nullptr;  // its pages are the system's until they are touched
  size_t used_ = 0;
};

// Uninitialized elements on the boundary of a cache line, for what is not read before it is written. Lives on the stack
// of the thread that made it.
template <typename Element>
class Scratch {
 public:
  // `kept`: this thread keeps up to 16 MiB for those that are more than the second-level cache holds.
  explicit Scratch(int64_t elements, bool kept = false)
      : bytes_((static_cast<size_t>(elements) * sizeof(Element) + kLine - 1) / kLine * kLine),
        stack_(kept && bytes_ > static_cast<size_t>(level2_cache_bytes()) ? ScratchStack::large_of_this_thread()
                                                                          : ScratchStack::of_this_thread()),
        memory_(stack_.take(bytes_)) {
    if (memory_ == nullptr) {
      own_ = c10::GetCPUAllocator()->allocate(bytes_);
      memory_ = own_.get();
    }
  }
  ~Scratch() {
    if (memory_ != own_.get()) stack_.give_back(bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  Element* data() const { return static_cast<Element*>(memory_); }

  // Where element 0 would be if the memory began at element `first`; only elements from there on may be touched.
  Element* from(int64_t first) const {
    return reinterpret_cast<Element*>(reinterpret_cast<uintptr_t>(memory_) -
                                      static_cast<uintptr_t>(first) * sizeof(Element));
  }

 private:
  static constexpr size_t kLine = 64;

  size_t bytes_;
  ScratchStack& stack_;
  void* memory_;
  at::DataPtr own_;
};

}  // namespace lth_fast
