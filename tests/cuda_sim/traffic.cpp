// Test-only: counts, by kernel, the loads and stores of maps by their width, the matrix products of warps, and the
// wavefronts of shared memory.
//
// It is linked to a simulation that was compiled with -fsanitize=thread, whose reports of every access are the counts'
// source, so that no access escapes, whichever way a kernel makes it. This file is compiled without.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "sim_wavefronts.h"

namespace {

constexpr int kWidths = 5;  // 1, 2, 4, 8 and 16 bytes

struct Map {
  uintptr_t begin, end;
};

struct Kernel {
  const void* function;
  int64_t loads[kWidths], stores[kWidths], products;
  Wavefronts wavefronts;
};

// Plain data: accesses are reported before constructors have run, too.
std::vector<Map>* maps = nullptr;
std::vector<Kernel>* kernels = nullptr;
Kernel* current = nullptr;
SharedAccesses* shared = nullptr;

bool in_map(uintptr_t address) {
  for (const Map& m : *maps)
    if (address >= m.begin && address < m.end) return true;
  return false;
}

void count_map(bool store, const void* at, uint64_t bytes) {
  if (!in_map(reinterpret_cast<uintptr_t>(at))) return;
  // Nothing that a thread does at once is wider: more would be a memcpy, which kernels have no use for.
  int width = 0;
  while (width + 1 < kWidths && uint64_t{1} << width < bytes) ++width;
  ++(store ? current->stores : current->loads)[width];
}

// What the compiler reports.
void count(const void* instruction, bool store, const void* at, uint64_t bytes) {
  if (!current) return;
  count_map(store, at, bytes);
  for (uint64_t i = 0; i < bytes; i += 16)
    shared->add(instruction, Kind::kReported, store, static_cast<const char*>(at) + i,
                std::min<uint64_t>(bytes - i, 16));
}

}  // namespace

// ---- what the simulation tells

extern "C" void fastsr_traffic_map(const void* data, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (maps && data) maps->push_back({begin, begin + bytes});
}
extern "C" void fastsr_traffic_launch(const void* kernel) {
  if (!kernels) return;
  current = nullptr;
  for (Kernel& k : *kernels)
    if (k.function == kernel) current = &k;
  if (!current) current = &kernels->emplace_back(Kernel{kernel, {}, {}, 0, {}});
}
extern "C" void fastsr_traffic_block(const void* memory, int64_t bytes) {
  if (current) shared->begin_block(memory, bytes);
}
extern "C" void fastsr_traffic_block_end() {
  if (!current) return;
  const Wavefronts found = shared->end_block();
  Wavefronts& w = current->wavefronts;
  w.all += found.all, w.of_conflicts += found.of_conflicts, w.of_rows += found.of_rows;
}
extern "C" void fastsr_traffic_thread(int i) {
  if (current) shared->turn_of(i);
}
// An asynchronous copy into shared memory, of zeros if `from` is null.
extern "C" void fastsr_traffic_copy(const void* to, const void* from, int bytes) {
  if (!current) return;
  if (from) count_map(false, from, bytes);
  shared->add(__builtin_return_address(0), Kind::kCopy, true, to, bytes);
}
// A lane's row for the loads of matrices, which are served eight at a time like all accesses of 16 bytes.
extern "C" void fastsr_traffic_row(const void* from) {
  if (current) shared->add(__builtin_return_address(0), Kind::kRow, false, from, 16);
}
extern "C" void fastsr_traffic_product() {
  if (current) ++current->products;
}

// ---- what traffic.py asks

// Forgets maps and counts, and counts from now on.
extern "C" void fastsr_traffic_begin() {
  delete maps;
  delete kernels;
  delete shared;
  maps = new std::vector<Map>, kernels = new std::vector<Kernel>, current = nullptr, shared = new SharedAccesses;
}
// The number of kernels, after which nothing more is counted.
extern "C" int fastsr_traffic_end() {
  current = nullptr;
  return static_cast<int>(kernels->size());
}
// Counts [loads by width, stores by width, products, wavefronts, those of conflicts, of rows'] of kernel `i`, and its
// name.
extern "C" const char* fastsr_traffic_of(int i, int64_t* counts) {
  static std::string name;
  const Kernel& k = (*kernels)[i];
  for (int w = 0; w < kWidths; ++w) counts[w] = k.loads[w], counts[kWidths + w] = k.stores[w];
  counts += 2 * kWidths;
  counts[0] = k.products, counts[1] = k.wavefronts.all, counts[2] = k.wavefronts.of_conflicts;
  counts[3] = k.wavefronts.of_rows;
  Dl_info info{};
  const bool known = dladdr(k.function, &info) && info.dli_saddr == k.function;  // not only what lies before it
  name = known ? info.dli_sname : "?";
  if (char* plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr)) {
    name = plain;
    std::free(plain);
  }
  return name.c_str();
}

// ---- what the compiler reports

#define FASTSR_REPORT extern "C" __attribute__((visibility("hidden")))
#define FASTSR_REPORT_OF(name, store, bytes) \
  FASTSR_REPORT void __tsan_##name##bytes(const void* at) { count(__builtin_return_address(0), store, at, bytes); }
#define FASTSR_REPORTS(bytes)                    \
  FASTSR_REPORT_OF(read, false, bytes)           \
  FASTSR_REPORT_OF(write, true, bytes)           \
  FASTSR_REPORT_OF(unaligned_read, false, bytes) \
  FASTSR_REPORT_OF(unaligned_write, true, bytes)

FASTSR_REPORTS(1)
FASTSR_REPORTS(2)
FASTSR_REPORTS(4)
FASTSR_REPORTS(8)
FASTSR_REPORTS(16)
FASTSR_REPORT void __tsan_read_range(const void* from, uint64_t bytes) {
  count(__builtin_return_address(0), false, from, bytes);
}
FASTSR_REPORT void __tsan_write_range(const void* to, uint64_t bytes) {
  count(__builtin_return_address(0), true, to, bytes);
}
FASTSR_REPORT void __tsan_init() {}
FASTSR_REPORT void __tsan_func_entry(const void*) {}
FASTSR_REPORT void __tsan_func_exit() {}
