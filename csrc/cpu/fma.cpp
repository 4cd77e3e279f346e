// The private operator behind the benchmarks' measured peak: every thread runs `rounds` rounds of multiply-adds.
#include <atomic>

#include "../checks.h"
#include "isa/table.h"
#include "parallel.h"

namespace fastsr::cpu {
namespace {

int64_t fma(int64_t rounds) {
  std::atomic<int64_t> operations{0};
  parallel_bands(torch::stable::get_num_threads(), [&](int64_t) { operations += kernels().fma(rounds); });
  return operations;
}

}  // namespace
}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CompositeExplicitAutograd, m) { m.impl("_cpu_fma", TORCH_BOX(&fastsr::cpu::fma)); }
