// The threads that the kernels' loops are divided among: their own, as many as torch.set_num_threads says.
//
// torch's loops end in a barrier for all threads of the OpenMP team, also for one that the system has not let run since
// the loop began. Where other programs want the processors, each of the hundreds of short loops of a network then waits
// for a time slice. Here the calling thread does whatever nobody else has begun and waits only for what has been begun.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <type_traits>

namespace fastsr::cpu {

// Calls run(context) on the calling thread and on up to `others` more that are free before it returns. What one of them
// throws is thrown again when all have left.
void call_together(int64_t others, void (*run)(void*), void* context);

// Whether OpenMP binds the threads to processors (OMP_PROC_BIND and the like). New threads would then share the
// processor of the one that makes them, so that torch's own are used.
bool openmp_binds_threads();

// Calls run() on up to `threads` threads at the same time: a function that takes work until none is left.
template <class Run>
void together(int64_t threads, Run&& run) {
  if (threads <= 1) return run();
  if (openmp_binds_threads())
    return torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
      for (; first < last; ++first) run();
    });
  call_together(
      threads - 1, [](void* context) { (*static_cast<std::remove_reference_t<Run>*>(context))(); },
      const_cast<void*>(static_cast<const void*>(&run)));
}

}  // namespace fastsr::cpu
