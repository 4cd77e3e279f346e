// Test-only: counts, by kernel, the loads and stores of maps by their width, and the matrix products of warps.
//
// It is linked to a simulation that was compiled with -fsanitize=thread, whose reports of every access are the counts'
// source, so that no access escapes, whichever way a kernel makes it. This file is compiled without.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr int kWidths = 5;  // 1, 2, 4, 8 and 16 bytes

struct Map {
  uintptr_t begin, end;
};

struct Kernel {
  const void* function;
  int64_t loads[kWidths], stores[kWidths], products;
};

// Plain data: accesses are reported before constructors have run, too.
std::vector<Map>* maps = nullptr;
std::vector<Kernel>* kernels = nullptr;
Kernel* current = nullptr;

bool in_map(uintptr_t address) {
  for (const Map& m : *maps)
    if (address >= m.begin && address < m.end) return true;
  return false;
}

void count(int64_t (Kernel::*which)[kWidths], const void* at, uint64_t bytes) {
  if (!current || !in_map(reinterpret_cast<uintptr_t>(at))) return;
  // Nothing that a thread does at once is wider: more would be a memcpy, which kernels have no use for.
  int width = 0;
  while (width + 1 < kWidths && uint64_t{1} << width < bytes) ++width;
  ++(current->*which)[width];
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
  if (!current) current = &kernels->emplace_back(Kernel{kernel, {}, {}, 0});
}
extern "C" void fastsr_traffic_load(const void* from, int bytes) { count(&Kernel::loads, from, bytes); }
extern "C" void fastsr_traffic_product() {
  if (current) ++current->products;
}

// ---- what traffic.py asks

// Forgets maps and counts, and counts from now on.
extern "C" void fastsr_traffic_begin() {
  delete maps;
  delete kernels;
  maps = new std::vector<Map>, kernels = new std::vector<Kernel>, current = nullptr;
}
// The number of kernels, after which nothing more is counted.
extern "C" int fastsr_traffic_end() {
  current = nullptr;
  return static_cast<int>(kernels->size());
}
// Counts [loads by width, stores by width, products] of kernel `i`, and its name.
extern "C" const char* fastsr_traffic_of(int i, int64_t* counts) {
  static std::string name;
  const Kernel& k = (*kernels)[i];
  for (int w = 0; w < kWidths; ++w) counts[w] = k.loads[w], counts[kWidths + w] = k.stores[w];
  counts[2 * kWidths] = k.products;
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
#define FASTSR_REPORTS(bytes)                                                                     \
  FASTSR_REPORT void __tsan_read##bytes(const void* from) { count(&Kernel::loads, from, bytes); } \
  FASTSR_REPORT void __tsan_write##bytes(const void* to) { count(&Kernel::stores, to, bytes); }   \
  FASTSR_REPORT void __tsan_unaligned_read##bytes(const void* from) { __tsan_read##bytes(from); } \
  FASTSR_REPORT void __tsan_unaligned_write##bytes(const void* to) { __tsan_write##bytes(to); }

FASTSR_REPORTS(1)
FASTSR_REPORTS(2)
FASTSR_REPORTS(4)
FASTSR_REPORTS(8)
FASTSR_REPORTS(16)
FASTSR_REPORT void __tsan_read_range(const void* from, uint64_t bytes) { count(&Kernel::loads, from, bytes); }
FASTSR_REPORT void __tsan_write_range(const void* to, uint64_t bytes) { count(&Kernel::stores, to, bytes); }
FASTSR_REPORT void __tsan_init() {}
FASTSR_REPORT void __tsan_func_entry(const void*) {}
FASTSR_REPORT void __tsan_func_exit() {}
