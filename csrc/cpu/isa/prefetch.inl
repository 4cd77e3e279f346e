// Memory that is fetched while a product computes. Its lines are asked for a few at a time, as many as can be under way
// together; all at once they would hold up the product. Rows that will be written are fetched, too: a store to a line
// that is not in cache waits for it, and stores of one vector of channels at a time are too far apart for the
// processor to see where they lead.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastsr::cpu {
namespace {

class Prefetch {
 public:
  Prefetch() = default;
  // Neighbouring pixels of a row, none if `pixels` is not positive. Map: ConvMap or FeatureRows.
  template <class Map>
  Prefetch(const Map& map, int64_t n, int64_t h, int64_t w, int64_t pixels, int64_t channels) {
    if (pixels <= 0) return;
    line_ = reinterpret_cast<const char*>(map.at(n, h, w));
    end_ = reinterpret_cast<const char*>(map.at(n, h, w + pixels - 1) + channels);
  }
  int64_t lines() const { return (end_ - line_ + 63) / 64; }
  // Asks for the next lines; false when none are left.
  FASTSR_INLINE bool some(int64_t lines) {
    for (; lines > 0 && line_ < end_; --lines, line_ += 64) __builtin_prefetch(line_);
    return line_ < end_;
  }

 private:
  const char *line_ = nullptr, *end_ = nullptr;
};

// Some rows, one after another, in equal portions.
template <int Rows>
class Prefetches {
 public:
  void add(const Prefetch& row) { rows_[count_++] = row; }
  // Divides what was added by `steps`, the number of calls that will follow.
  void divide(int64_t steps) {
    int64_t lines = 0;
    for (int i = 0; i < count_; ++i) lines += rows_[i].lines();
    portion_ = (lines + steps - 1) / std::max<int64_t>(1, steps);
  }
  FASTSR_INLINE void operator()() {
    if (at_ < count_ && !rows_[at_].some(portion_)) ++at_;
  }

 private:
  Prefetch rows_[Rows];
  int count_ = 0, at_ = 0;
  int64_t portion_ = 0;
};

}  // namespace
}  // namespace fastsr::cpu
