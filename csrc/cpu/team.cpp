// The threads behind team.h. They are made when they are first needed and never end.
#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastsr::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// How long a thread looks for the next loop before it sleeps, about the time between two operators of a network, and
// how long the caller looks for the end of the others, about the time of an item. Asleep it leaves its processor to
// them, which they may be waiting for.
constexpr std::chrono::microseconds kLooks{100}, kLooksForEnd{20};
// A thread of torch's that begins so much after the end of all work was not let run. For how many times as long torch's
// are then not asked: what asking costs where they never come in time is the inverse.
constexpr std::chrono::microseconds kTooLate{500};
constexpr int kNotAsked = 50;
// Lateness of threads that were asleep says nothing: on an idle machine, too, the system wakes them on the caller's
// processor and takes a time slice or two to find the other one. For so long after a loop torch's threads look for the
// next, and so long after they were woken they have processors of their own if there are any.
constexpr std::chrono::milliseconds kAwake{1}, kSettled{10};

// Whether `changed` came true within `time`.
template <class Changed>
bool watch(std::chrono::microseconds time, Changed&& changed) {
  const auto end = Clock::now() + time;
  do
    for (int i = 0; i < 32; ++i) {
      if (changed()) return true;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  while (Clock::now() < end);
  return false;
}

struct Job {
  void (*run)(void*);
  void* context;
  int64_t open;                                 // places for threads to join
  FloatMode::Mode mode = FloatMode::current();  // the caller's
  std::atomic<int64_t> inside{0};               // threads that have joined and not left
  std::exception_ptr error;
};

class Team {
 public:
  void call(int64_t others, void (*run)(void*), void* context) {
    Job job{run, context, others};
    {
      const std::lock_guard lock(mutex_);
      grow(others);
      jobs_.push_back(&job);
    }
    posted_.fetch_add(1);
    posted_.notify_all();
    attempt(job);
    {
      const std::lock_guard lock(mutex_);
      std::erase(jobs_, &job);
    }
    const auto empty = [&] { return job.inside == 0; };
    if (!watch(kLooksForEnd, empty))
      for (uint32_t left = left_; !empty(); left = left_) left_.wait(left);
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void attempt(Job& job) {
    try {
      job.run(job.context);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!job.error) job.error = std::current_exception();
    }
  }

  // With the lock. Where the system has no more threads, the caller does more itself.
  void grow(int64_t threads) try {
    for (; size_ < threads; ++size_) std::thread([this] { work(); }).detach();
  } catch (const std::system_error&) {
  }

  Job* join() {
    const std::lock_guard lock(mutex_);
    for (Job* job : jobs_)
      if (job->open > 0) {
        --job->open;
        ++job->inside;
        return job;
      }
    return nullptr;
  }

  [[noreturn]] void work() {
    for (;;) {
      const uint32_t posted = posted_;
      if (Job* job = join()) {
        {
          const FloatMode as_caller(job->mode);
          attempt(*job);
        }
        // The job is gone as soon as nobody is inside: its caller is told through the team.
        --job->inside;
        ++left_;
        left_.notify_all();
      } else if (!watch(kLooks, [&] { return posted_ != posted; })) {
        posted_.wait(posted);
      }
    }
  }

  std::mutex mutex_;
  std::vector<Job*> jobs_;                     // that can be joined, the oldest first
  int64_t size_ = 0;                           // threads
  std::atomic<uint32_t> posted_{0}, left_{0};  // how often a job came, and a thread left one
};

std::atomic<Team*> current{nullptr};
std::atomic<bool> forked{false};                         // in a child
std::atomic<Clock::rep> own_until{0};                    // until when the team runs all loops
std::atomic<Clock::rep> awake_until{0}, awake_since{0};  // torch's threads: loops followed one another, when

// Never destroyed: its threads may be asleep in it when the process ends. A forked child has none of them and gets a
// team of its own.
Team& team() {
  Team* existing = current;
  if (existing) return *existing;
  Team* made = new Team;
  if (current.compare_exchange_strong(existing, made)) return *made;
  delete made;
  return *existing;
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  current = nullptr;
  forked = true;
});
#endif

bool openmp_binds_threads() {
  const char* bind = std::getenv("OMP_PROC_BIND");
  return (bind && *bind && std::strcmp(bind, "false") != 0 && std::strcmp(bind, "FALSE") != 0) ||
         std::getenv("GOMP_CPU_AFFINITY") || std::getenv("KMP_AFFINITY");
}

}  // namespace

void call_together(int64_t others, void (*run)(void*), void* context) { team().call(others, run, context); }

bool wants_own_threads() {
  if (forked) return true;
  const Clock::rep until = own_until;
  return until != 0 && Clock::now().time_since_epoch().count() < until;
}

void tell_loop(Clock::time_point began, std::chrono::nanoseconds wait) {
  const Clock::time_point now = Clock::now();
  const Clock::rep begin = began.time_since_epoch().count();
  if (begin > awake_until) awake_since = begin;
  awake_until = (now + kAwake).time_since_epoch().count();
  if (wait < kTooLate || Clock::duration(begin - awake_since) < kSettled) return;
  static const bool binds = openmp_binds_threads();
  if (!binds) own_until = (now + kNotAsked * wait).time_since_epoch().count();
}

}  // namespace fastsr::cpu
