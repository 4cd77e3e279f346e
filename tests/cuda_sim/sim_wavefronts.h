// Test-only: the wavefronts that a block's accesses of its shared memory take, and those that bank conflicts add.
//
// There are 32 banks of 4 bytes, and a wavefront passes one word of each. The lanes of a warp go together, 32 of them
// if each takes 4 bytes or less, 16 for 8 bytes, 8 for 16: in one wavefront, or in as many as a bank has different
// words to pass. Neighbours that all lanes access one after the other are one access of up to 16 bytes, as nvcc makes
// it of them.
//
// Here lanes run one after the other. What they do at once is the k-th execution of an instruction by each since the
// warp was last together, so that lanes that go round a loop more often than others are not mistaken for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

namespace {

constexpr int kBanks = 32, kMostThreads = 1024;

enum class Kind : uint8_t {
  kReported,  // by the compiler: a neighbour may be joined to it
  kCopy,      // asynchronous
  kRow,       // of a matrix
};

struct SharedAccess {
  const void* instruction;
  int at;
  int turn;   // the thread's, of those between what its warp or block does together
  int order;  // among the block's accesses
  int time;   // k: the lane's k-th execution of the instruction in its turn
  uint8_t warp, lane, bytes;
  bool store;
  Kind kind;

  auto of_lane() const { return std::tie(warp, turn, instruction, lane); }
  auto of_warp() const { return std::tie(warp, turn, instruction, time); }
};

// What lanes do at once, by lane.
struct Request {
  SharedAccess *first, *end;
};

struct Wavefronts {
  int64_t all = 0, of_conflicts = 0, of_rows = 0;  // of_rows: conflicts of rows of matrices
};

class SharedAccesses {
 public:
  void begin_block(const void* memory, int64_t bytes) {
    memory_ = reinterpret_cast<uintptr_t>(memory), bytes_ = bytes;
    std::fill(turns_, turns_ + kMostThreads, 0);
  }
  // Thread `i` has its next turn, or none has if it is negative.
  void turn_of(int i) {
    thread_ = i;
    if (i >= 0) ++turns_[i];
  }
  void add(const void* instruction, Kind kind, bool store, const void* address, int bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address) - memory_;
    if (thread_ < 0 || at >= bytes_) return;
    SharedAccess& next = accesses_.emplace_back();
    next.instruction = instruction, next.at = static_cast<int>(at), next.turn = turns_[thread_];
    next.order = static_cast<int>(accesses_.size()), next.bytes = static_cast<uint8_t>(bytes);
    next.warp = static_cast<uint8_t>(thread_ / 32), next.lane = static_cast<uint8_t>(thread_ % 32);
    next.store = store, next.kind = kind;
  }
  Wavefronts end_block() {
    Wavefronts found;
    const std::vector<Request> all = requests();
    for (size_t i = 0; i < all.size();) {
      const Request& r = all[i++];
      while (i < all.size() && join(r, all[i])) ++i;
      pass(r, found);
    }
    accesses_.clear();
    return found;
  }

 private:
  std::vector<Request> requests() {
    const auto by_lane = [](const SharedAccess& a, const SharedAccess& b) { return a.of_lane() < b.of_lane(); };
    const auto by_warp = [](const SharedAccess& a, const SharedAccess& b) { return a.of_warp() < b.of_warp(); };
    std::stable_sort(accesses_.begin(), accesses_.end(), by_lane);
    for (size_t i = 1; i < accesses_.size(); ++i)
      if (accesses_[i].of_lane() == accesses_[i - 1].of_lane()) accesses_[i].time = accesses_[i - 1].time + 1;
    std::stable_sort(accesses_.begin(), accesses_.end(), by_warp);
    std::vector<Request> found;
    SharedAccess *at = accesses_.data(), *const end = at + accesses_.size();
    while (at != end) {
      found.push_back({at, std::upper_bound(at, end, *at, by_warp)});
      at = found.back().end;
    }
    std::sort(found.begin(), found.end(),
              [](const Request& a, const Request& b) { return a.first->order < b.first->order; });
    return found;
  }
  // Whether `next` is of the neighbours of `r`, which it then is a part of.
  static bool join(const Request& r, const Request& next) {
    if (next.end - next.first != r.end - r.first) return false;
    const auto joins = [](const SharedAccess& a, const SharedAccess& b) {
      const int bytes = a.bytes + b.bytes;
      return a.kind == Kind::kReported && b.kind == a.kind && a.store == b.store && a.order + 1 == b.order &&
             a.turn == b.turn && a.warp == b.warp && a.lane == b.lane && a.at + a.bytes == b.at && b.bytes >= 4 &&
             bytes <= 16 && a.at % (bytes > 8 ? 16 : 8) == 0;
    };
    if (!std::equal(r.first, r.end, next.first, joins)) return false;
    const SharedAccess* b = next.first;
    for (SharedAccess* a = r.first; a != r.end; ++a, ++b) a->bytes += b->bytes, a->order = b->order;
    return true;
  }
  static void pass(const Request& r, Wavefronts& found) {
    int widest = 0;
    for (const SharedAccess* a = r.first; a != r.end; ++a) widest = std::max<int>(widest, a->bytes);
    const int lanes = widest <= 4 ? 32 : widest <= 8 ? 16 : 8;
    for (const SharedAccess* a = r.first; a != r.end;) {
      int words[kBanks][kBanks], count[kBanks] = {}, most = 0;  // by bank
      for (const int together = a->lane / lanes; a != r.end && a->lane / lanes == together; ++a)
        for (int word = a->at / 4; word <= (a->at + a->bytes - 1) / 4; ++word) {
          int *const of_bank = words[word % kBanks], &n = count[word % kBanks];
          if (std::find(of_bank, of_bank + n, word) == of_bank + n) of_bank[n++] = word;
          most = std::max(most, n);
        }
      found.all += most, found.of_conflicts += most - 1;
      if (r.first->kind == Kind::kRow) found.of_rows += most - 1;
    }
  }

  std::vector<SharedAccess> accesses_;
  uintptr_t memory_ = 0, bytes_ = 0;
  int thread_ = -1, turns_[kMostThreads];
};

}  // namespace
