// The store of freed blocks behind memory.h.
#include "memory.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "../checks.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastsr::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallestKept = size_t{1} << 20;
constexpr size_t kUsualLimit = size_t{512} << 20;

// Under AddressSanitizer every block is a fresh one, so that its ends are guarded.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeeps = false;
#else
constexpr bool kKeeps = true;
#endif

// The size of the block that serves `bytes`: coarse, so that maps of nearly equal size share blocks.
size_t block_size(size_t bytes) {
  const size_t step = bytes >= 4 * kHugePage ? kHugePage : bytes >= kSmallestKept ? kHugePage / 8 : 64;
  return (bytes + step - 1) / step * step;
}

void* allocate(size_t size) {
  void* memory = nullptr;  // not by aligned_alloc, which wants sizes that are multiples of the alignment
  if (posix_memalign(&memory, size >= 2 * kHugePage ? kHugePage : 64, size) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (size >= 2 * kHugePage) madvise(memory, size / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory;
}

// Freed blocks, the oldest first. Whoever finds it locked goes without: nobody waits, not even a forked child in which
// the thread that held the lock does not exist.
class Store {
 public:
  void* take(size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (size_t i = blocks_.size(); i-- > 0;)
      if (blocks_[i].size == size) {
        void* memory = blocks_[i].memory;
        blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
        kept_ -= size;
        return memory;
      }
    return nullptr;
  }
  bool give(void* memory, size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || size > limit_) return false;
    shrink(limit_ - size);
    blocks_.push_back({memory, size});
    kept_ += size;
    return true;
  }
  size_t limit(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    const size_t before = kept_;
    if (bytes >= 0) limit_ = static_cast<size_t>(bytes);
    shrink(limit_);
    return before;
  }

 private:
  struct Block {
    void* memory;
    size_t size;
  };
  void shrink(size_t most) {
    size_t gone = 0;
    for (; kept_ > most; ++gone) {
      kept_ -= blocks_[gone].size;
      std::free(blocks_[gone].memory);
    }
    blocks_.erase(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(gone));
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t kept_ = 0, limit_ = kUsualLimit;
};

// Never destroyed: tensors and threads' scratch may be freed after it would be.
Store& store() {
  static Store* const store = new Store;
  return *store;
}

}  // namespace

bool keeps_memory(size_t bytes) { return kKeeps && bytes >= kSmallestKept; }

void* take_memory(size_t bytes) {
  const size_t size = block_size(bytes);
  if (keeps_memory(size))
    if (void* kept = store().take(size)) return kept;
  return allocate(size);
}

void give_memory(void* memory, size_t bytes) {
  const size_t size = block_size(bytes);
  if (!memory || (keeps_memory(size) && store().give(memory, size))) return;
  std::free(memory);
}

int64_t limit_kept_memory(int64_t bytes) { return static_cast<int64_t>(store().limit(bytes)); }

}  // namespace fastsr::cpu

STABLE_TORCH_LIBRARY_IMPL(fastsr, CompositeExplicitAutograd, m) {
  m.impl("_cpu_memory", TORCH_BOX(&fastsr::cpu::limit_kept_memory));
}
