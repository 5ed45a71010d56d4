// What the ring's tests stand on: points inside operations, checks, an arena to share, threads and
// processes whose failure is the test's.
#pragma once

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace ring_test {

// What a thread does at the named points inside an operation (see TICKRING_POINT in ring.hpp).
struct Points {
  int fatal_in = 0;                // dies at this many points from now; 0: never
  const char* fatal_at = nullptr;  // dies at the first point of this name
  std::uint32_t jitter = 0;        // seed of short random delays; 0: none
  std::function<void()> visit;     // runs at every point: somebody else's turn

  void reach(const char* name) {
    if (visit) visit();
    if (fatal_at != nullptr && std::strcmp(name, fatal_at) == 0) die();
    if (fatal_in != 0 && --fatal_in == 0) die();
    if (jitter != 0) delay();
  }

  // Mostly shorter than a cache miss, now and then a whole time slice: both kinds of race are wanted.
  void delay() {
    jitter = jitter * 1664525u + 1013904223u;
    if (jitter >> 25 == 0) sched_yield();
    for (volatile std::uint32_t left = (jitter >> 16) & 63u; left != 0;) left = left - 1;
  }

 private:
  static void die() { ::kill(::getpid(), SIGKILL); }
};
inline thread_local Points points;

}  // namespace ring_test

#define TICKRING_POINT(name) ring_test::points.reach(name)
#include "ports.hpp"

namespace ring_test {

using tickring::EnginePort;
using tickring::FrontendPort;
using tickring::kNoDeadline;
using tickring::LaneEntry;
using tickring::Outcome;
using tickring::RingControl;
using tickring::SlotHeader;
using tickring::SpscRing;
using tickring::Ticket;

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  const char* name = std::strrchr(file, '/');
  throw std::runtime_error(std::string(name ? name + 1 : file) + ":" + std::to_string(line) + ": " + what);
}

template <typename A, typename B>
inline void check_equal(const char* file, int line, const char* what, const A& a, const B& b) {
  if (a == b) return;
  if constexpr (std::is_arithmetic_v<A> && std::is_arithmetic_v<B>) {
    fail(file, line, std::string(what) + ": " + std::to_string(a) + " and " + std::to_string(b));
  }
  fail(file, line, what);
}

#define CHECK(condition) ((condition) ? (void)0 : fail(__FILE__, __LINE__, #condition))
#define CHECK_EQUAL(a, b) check_equal(__FILE__, __LINE__, #a " == " #b, a, b)

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr unsigned kRounds = 20'000;
#else
constexpr unsigned kRounds = 100'000;
#endif
constexpr std::uint64_t kPatienceNs = 30'000'000'000;  // whoever waits this long has lost a wake-up

// The same numbers in every run.
struct Random {
  std::minstd_rand engine;
  std::uint32_t below(std::uint32_t limit) { return static_cast<std::uint32_t>(engine() % limit); }
};

using List = std::vector<std::uint32_t>;

inline tickring::Dimensions dimensions(std::uint32_t frontends, std::uint32_t slots,
                                       std::uint32_t models = 1) {
  tickring::Dimensions dims;
  dims.frontends = frontends;
  dims.models = models;
  dims.slots_per_frontend = slots;
  dims.input_row_bytes = dims.output_row_bytes = 64;
  return dims;
}

// An arena that forked processes share, with the eventfd of every consumer.
class World {
 public:
  explicit World(const tickring::Dimensions& dims)
      : size_(tickring::Layout::of(dims).total_bytes),
        base_(::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)),
        arena(tickring::Arena::format(base_, size_, dims)) {
    for (std::uint32_t i = 0; i < dims.frontends; ++i) frontend_fds.push_back(::eventfd(0, EFD_NONBLOCK));
    for (std::uint32_t i = 0; i < dims.engines; ++i) engine_fds.push_back(::eventfd(0, EFD_NONBLOCK));
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World() {
    for (const int fd : frontend_fds) ::close(fd);
    for (const int fd : engine_fds) ::close(fd);
    ::munmap(base_, size_);
  }

  FrontendPort frontend(std::uint32_t i) const { return {arena, i, frontend_fds[i], engine_fds}; }
  EnginePort engine() const { return {arena, 0, engine_fds[0], frontend_fds}; }

  // All slots of a front end.
  List partition(std::uint32_t frontend) const {
    List slots(arena.layout().dims.slots_per_frontend);
    for (std::uint32_t i = 0; i < slots.size(); ++i) {
      slots[i] = frontend * arena.layout().dims.slots_per_frontend + i;
    }
    return slots;
  }

 private:
  std::uint64_t size_;
  void* base_;

 public:
  tickring::Arena arena;
  std::vector<int> frontend_fds, engine_fds;
};

inline Ticket ticket(std::uint64_t key, std::uint32_t request = 0, std::uint64_t deadline_ns = kNoDeadline) {
  return {key, key, deadline_ns, request, false};
}

inline Ticket exclusive(std::uint64_t key, std::uint32_t request) {
  return {key, key, kNoDeadline, request, true};
}

inline void push(FrontendPort& port, std::uint32_t cls, const List& slots, const Ticket& what) {
  CHECK(port.push(0, 0, cls, slots.data(), slots.size(), what));
}

inline List take(EnginePort& engine, std::size_t max, std::uint64_t now = 0, std::uint64_t expected_ns = 0) {
  List slots(max);
  slots.resize(engine.take(0, max, now, expected_ns, slots.data()));
  return slots;
}

inline void complete(EnginePort& engine, const List& slots) {
  const std::vector<std::uint8_t> outcomes(slots.size(), static_cast<std::uint8_t>(Outcome::kResult));
  engine.complete(slots.data(), outcomes.data(), slots.size(), {});
}

// How many items are queued.
inline std::uint64_t look(EnginePort& engine) {
  std::uint64_t depth = 0;
  engine.look([&depth](std::uint32_t, std::uint32_t, const tickring::ClassBacklog& backlog) {
    points.reach("in look");
    depth += backlog.depth;
  });
  return depth;
}

using Ended = std::vector<std::pair<std::uint32_t, Outcome>>;

inline Ended drain(FrontendPort& port) {
  Ended ended;
  port.drain([&ended](std::uint32_t slot, Outcome outcome, const SlotHeader&) {
    ended.emplace_back(slot, outcome);
  });
  return ended;
}

inline List sorted_slots(const Ended& ended) {
  List slots;
  for (const auto& [slot, outcome] : ended) slots.push_back(slot);
  std::sort(slots.begin(), slots.end());
  return slots;
}

inline std::uint64_t ended_by(const EnginePort& engine, Outcome outcome) {
  return engine.stats().ended[static_cast<std::size_t>(outcome)].load();
}

// Whether a call is turned away as its caller's mistake.
inline bool refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

inline bool readable(int fd, int timeout_ms = 0) {
  pollfd poll{fd, POLLIN, 0};
  return ::poll(&poll, 1, timeout_ms) == 1;
}

// For a loop that waits without blocking, `idle` times in a row so far.
inline void let_the_other_run(unsigned idle) {
  CHECK(idle < 10'000'000);  // the other one has failed
  sched_yield();
}

// A thread whose failure is the test's.
class Thread {
 public:
  template <typename Body>
  explicit Thread(Body body)
      : thread_([this, body] {
          try {
            body();
          } catch (...) {
            failure_ = std::current_exception();
          }
        }) {}
  ~Thread() {
    if (thread_.joinable()) thread_.join();
  }
  void join() {
    thread_.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::exception_ptr failure_;
  std::thread thread_;
};

// A forked process. Its memory is a copy except for the arena, its file descriptors are ours.
class Process {
 public:
  template <typename Body>
  explicit Process(Body body) {
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    int status = 0;
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "in a child: %s\n", error.what());
      status = 1;
    }
    ::_exit(status);  // without this process's exit handlers
  }

  // True: it ran to its end. False: it was killed. Anything else is a failure.
  bool survived() {
    int status = 0;
    CHECK_EQUAL(::waitpid(pid_, &status, 0), pid_);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) return false;
    CHECK_EQUAL(status, 0);
    return true;
  }

 private:
  pid_t pid_ = -1;
};

}  // namespace ring_test
