// The choice of instruction set, and the private operator through which Python makes it.
#include <atomic>

#include "../../checks.h"
#include "table.h"

namespace fastsr::cpu {
namespace {

enum Level : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };  // as in fastsr/_env.py

Level supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) return kAvx512;
  if (avx2) return kAvx2;
#endif
  return kPortable;
}

const KernelTable* table_of(Level level) {
#if defined(__x86_64__)
  if (level == kAvx512) return &table_avx512;
  if (level == kAvx2) return &table_avx2;
#endif
  return &table_portable;
}

std::atomic<const KernelTable*> active{table_of(supported())};

// Use at most `level` (-1: the best there is); returns the level in use.
int64_t set_isa(int64_t level) {
  const Level best = supported();
  const Level chosen = level < 0 || level > best ? best : static_cast<Level>(level);
  active.store(table_of(chosen));
  return chosen;
}

}  // namespace

const KernelTable& kernels() { return *active.load(std::memory_order_relaxed); }

int64_t isa_level() {
  const KernelTable* table = active.load(std::memory_order_relaxed);
  return table == table_of(kAvx512) ? kAvx512 : table == table_of(kAvx2) ? kAvx2 : kPortable;
}

}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CompositeExplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&fastsr::cpu::set_isa));
}
