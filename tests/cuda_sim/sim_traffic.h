// Test-only: what a build that counts (FASTSR_SIM_TRAFFIC) tells traffic.cpp; other builds tell nothing. Loads and
// stores are not among it: those the compiler reports, as it would to ThreadSanitizer.
#pragma once

#include <cstdint>

#ifdef FASTSR_SIM_TRAFFIC
extern "C" void fastsr_traffic_map(const void* data, int64_t bytes);
extern "C" void fastsr_traffic_launch(const void* kernel);
extern "C" void fastsr_traffic_block(const void* memory, int64_t bytes);
extern "C" void fastsr_traffic_block_end();
extern "C" void fastsr_traffic_thread(int i);
extern "C" void fastsr_traffic_copy(const void* to, const void* from, int bytes);
extern "C" void fastsr_traffic_row(const void* from);
extern "C" void fastsr_traffic_product();
#else
inline void fastsr_traffic_map(const void*, int64_t) {}
inline void fastsr_traffic_launch(const void*) {}
inline void fastsr_traffic_block(const void*, int64_t) {}
inline void fastsr_traffic_block_end() {}
inline void fastsr_traffic_thread(int) {}
inline void fastsr_traffic_copy(const void*, const void*, int) {}
inline void fastsr_traffic_row(const void*) {}
inline void fastsr_traffic_product() {}
#endif

namespace fastsr::cuda {

inline void note_map(const void* data, int64_t bytes) { fastsr_traffic_map(data, bytes); }

}  // namespace fastsr::cuda
