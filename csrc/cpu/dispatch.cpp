#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

// Defined once per (op, ISA) in csrc/cpu/isa/<op>.cpp.
#define DECLARE(op) void register_##op(KernelTable&);
#define REGISTER(op) register_##op(table);
#define LTH_FAST_DECLARE_ISA(isa)      \
  namespace lth_fast::isa {            \
  LTH_FAST_FOR_EACH_KERNEL(DECLARE)    \
  static KernelTable make_table() {    \
    KernelTable table{};               \
    LTH_FAST_FOR_EACH_KERNEL(REGISTER) \
    return table;                      \
  }                                    \
  }

#ifdef LTH_FAST_BUILT_avx512
LTH_FAST_DECLARE_ISA(avx512)
#endif
#ifdef LTH_FAST_BUILT_avx2
LTH_FAST_DECLARE_ISA(avx2)
#endif
LTH_FAST_DECLARE_ISA(scalar)

namespace lth_fast {
namespace {

struct Isa {
  std::string name;
  bool usable;
  KernelTable table;
};

#if defined(LTH_FAST_BUILT_avx512) || defined(LTH_FAST_BUILT_avx2)
bool cpu_has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool cpu_has_avx512() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Even filling the table may take instructions of its ISA: the compiler copies several pointers at a time.
Isa make_isa(const char* name, bool usable, KernelTable (*make_table)()) {
  return {name, usable, usable ? make_table() : KernelTable{}};
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
#ifdef LTH_FAST_BUILT_avx512
      make_isa("avx512", cpu_has_avx512(), avx512::make_table),
#endif
#ifdef LTH_FAST_BUILT_avx2
      make_isa("avx2", cpu_has_avx2(), avx2::make_table),
#endif
      make_isa("scalar", true, scalar::make_table),
  };
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Isa* find_usable(const std::string& name, const std::string& source) {
  for (const auto& isa : isas()) {
    if (isa.name == name && isa.usable) return &isa;
  }
  throw std::invalid_argument(source + " names the instruction set '" + name +
                              "'; this build on this CPU can use: " + joined(usable_isas()));
}

const Isa* choose() {
  const char* forced = std::getenv("LTH_FAST_ISA");
  if (forced != nullptr && *forced != '\0') return find_usable(forced, "the environment variable LTH_FAST_ISA");
  for (const auto& isa : isas()) {
    if (isa.usable) return &isa;
  }
  return &isas().back();
}

std::atomic<const Isa*> active{nullptr};

const Isa& current() {
  const Isa* isa = active.load(std::memory_order_acquire);
  if (isa == nullptr) {
    isa = choose();
    active.store(isa, std::memory_order_release);
  }
  return *isa;
}

}  // namespace

const KernelTable& kernels() { return current().table; }
std::string active_isa() { return current().name; }
void force_isa(const std::string& name) { active.store(find_usable(name, "force_isa"), std::memory_order_release); }

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const auto& isa : isas()) names.push_back(isa.name);
  return names;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const auto& isa : isas()) {
    if (isa.usable) names.push_back(isa.name);
  }
  return names;
}

}  // namespace lth_fast
