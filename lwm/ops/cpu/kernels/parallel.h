// Shares work between the caller and the threads of a pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace lwm {

// Calls `work(i)` once for each `0 <= i < count`, in any order and on any thread.
//
// The caller works too: all threads of the pool may be busy with callers that wait. A task that
// comes late, even after the caller has gone, finds nothing left and touches only `Shared`.
template <class Pool, class Work>
void in_parallel(Pool& pool, int64_t threads, int64_t count, Work work) {
  struct Shared {
    Shared(Work work, int64_t count) : work(std::move(work)), count(count) {}

    void run() {
      int64_t done_here = 0;
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count; ++done_here) {
        work(i);
      }
      if (done_here == 0) return;
      const int64_t before = done.fetch_add(done_here, std::memory_order_acq_rel);
      if (before + done_here < count) return;
      // Locked, so that a caller who is about to wait does not miss the call.
      std::lock_guard<std::mutex> lock(mutex);
      all_done.notify_all();
    }

    bool is_done() const { return done.load(std::memory_order_acquire) == count; }

    Work work;
    const int64_t count;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  const int64_t helpers = std::min(threads, count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  auto shared = std::make_shared<Shared>(std::move(work), count);
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([shared] { shared->run(); });
  }
  shared->run();
  // Others finish what they have begun in microseconds, which is less than falling asleep takes.
  for (int i = 0; i < 1000 && !shared->is_done(); ++i) {
  }
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->is_done(); });
}

}  // namespace lwm
