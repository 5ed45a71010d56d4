// The ring between two processes, and the gate at which its consumer sleeps.
//
// SPSC, because with one writer and one reader a producer that is killed anywhere in a push leaves
// the ring as it was: nothing is visible before the store of the tail, and nobody waits for a claim
// that a dead process made. An MPMC ring would stall behind such a claim.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

#include "layout.hpp"

namespace tickring {

inline std::uint64_t now_ns() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One end's view of a ring. Positions live in shared memory so that a new process can take either
// end over; what is cached here is only a lower bound of what the other end has published.
template <typename Entry>
class SpscRing {
 public:
  SpscRing(RingControl& control, Entry* entries, std::uint64_t capacity)
      : control_(&control), entries_(entries), capacity_(capacity) {}

  // -- producer ---------------------------------------------------------------------------

  // Writes one entry that the consumer cannot see yet. False: full, nothing was written.
  bool stage(std::uint64_t ahead, const Entry& entry) {
    const std::uint64_t tail = control_->tail.load(std::memory_order_relaxed) + ahead;  // own word
    if (tail - seen_head_ >= capacity_) {
      // acquire: the consumer has read the entry that this one overwrites before it moved its head.
      seen_head_ = control_->head.load(std::memory_order_acquire);
      if (tail - seen_head_ >= capacity_) return false;
    }
    TICKRING_POINT("before entry");
    entries_[tail & (capacity_ - 1)] = entry;
    return true;
  }

  // Makes `count` staged entries visible. At least release: entries, slot headers and rows are
  // written before the tail that announces them. seq_cst where a Gate::signal follows at once.
  void publish(std::uint64_t count, std::memory_order order = std::memory_order_release) {
    TICKRING_POINT("before publish");
    control_->tail.store(control_->tail.load(std::memory_order_relaxed) + count, order);
    TICKRING_POINT("after publish");
  }

  // -- consumer ---------------------------------------------------------------------------

  // Entries that can be read. `corrupt` is set when the shared positions make no sense; then 0.
  std::uint64_t available(bool& corrupt) {
    const std::uint64_t head = control_->head.load(std::memory_order_relaxed);  // own word
    // acquire: pairs with publish(); what the producer wrote before it is visible from here.
    // seq_cst, because this is also the second look of a consumer that has armed its gate.
    const std::uint64_t count = control_->tail.load(std::memory_order_seq_cst) - head;
    if (count > capacity_) {
      corrupt = true;
      return 0;
    }
    return count;
  }

  Entry peek(std::uint64_t ahead = 0) const {
    return entries_[(control_->head.load(std::memory_order_relaxed) + ahead) & (capacity_ - 1)];
  }

  void pop(std::uint64_t count) {
    TICKRING_POINT("before pop");
    // release: the entries have been read before the producer may overwrite them.
    control_->head.store(control_->head.load(std::memory_order_relaxed) + count, std::memory_order_release);
    TICKRING_POINT("after pop");
  }

  // Forgets everything published so far and returns how much that was.
  std::uint64_t discard() {
    bool corrupt = false;
    const std::uint64_t count = available(corrupt);
    pop(count);
    return count;
  }

 private:
  RingControl* control_;
  Entry* entries_;
  std::uint64_t capacity_;
  std::uint64_t seen_head_ = 0;  // producer's: heads only grow, so an old one is merely pessimistic
};

// Where a consumer waits. The race to exclude: the consumer looks, finds nothing and blocks, while
// the producer pushes, sees nobody asleep and does not signal. Each side writes its own word, then
// reads the other's, all four accesses seq_cst: in the single total order one of the two reads comes
// after the other's write, so at least one side notices.
//
// A producer never clears `sleeping`. If it did and were killed before the write to the eventfd,
// later producers would find the flag clear and the consumer would sleep on. A second write to an
// eventfd that is already readable costs a system call and nothing else.
class Gate {
 public:
  Gate(GateState& state, int eventfd) : state_(&state), eventfd_(eventfd) {}

  // Producer, after a seq_cst store that made its work visible.
  void signal() {
    TICKRING_POINT("before signal");
    if (state_->sleeping.load(std::memory_order_seq_cst) != 0) ring();
  }

  // Throws std::invalid_argument when the eventfd is not open in this process. For whoever sets a gate
  // up: in ring() it would be too late to say so.
  void check_open() const {
    if (::fcntl(eventfd_, F_GETFD) >= 0) return;
    throw std::invalid_argument("eventfd " + std::to_string(eventfd_) + ": " + std::strerror(errno));
  }

  // Wakes the consumer whether or not it sleeps.
  void ring() {
    TICKRING_POINT("before ring");
    const std::uint64_t one = 1;
    // EAGAIN means the counter is saturated, so the eventfd is readable already. No other error is
    // reported: the work is visible by now, and after a push or completion that threw its caller would
    // take back slots that the other side has. A consumer that sleeps on for it is one without progress.
    while (::write(eventfd_, &one, sizeof one) < 0 && errno == EINTR) {
    }
  }

  // Consumer: announces sleep. It must look once more for work (seq_cst) before it blocks.
  void arm() {
    TICKRING_POINT("before arm");
    state_->sleeping.store(1, std::memory_order_seq_cst);
    TICKRING_POINT("after arm");
  }
  // relaxed: who sees it late signals once too often, and it cannot hide the next arm(), which is
  // later in the order of this one word.
  void disarm() { state_->sleeping.store(0, std::memory_order_relaxed); }

  // Consumer: blocks until signalled or `timeout_ns` passes, never less, but a caught signal ends it.
  void block(std::uint64_t timeout_ns) {
    pollfd fd{eventfd_, POLLIN, 0};
    timespec ts{};
    timespec* limit = nullptr;
    if (timeout_ns != kNoDeadline) {
      ts.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000u);
      ts.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000u);
      limit = &ts;
    }
    if (::ppoll(&fd, 1, limit, nullptr) > 0) clear();
  }

  // Consumer: takes the eventfd's count, so that it is readable again only after a new signal.
  void clear() {
    std::uint64_t count;
    while (::read(eventfd_, &count, sizeof count) < 0 && errno == EINTR) {
    }
  }

 private:
  GateState* state_;
  int eventfd_;
};

}  // namespace tickring
