// Tests of the ring without Python: by property, under threads, and with processes that are killed.
//
//   g++ -std=c++17 -pthread ring_test.cpp -o ring_test && ./ring_test [part of a test's name]
//
// Prints one line per test; exits 1 if one failed. tests/scheduler/native/test_native_build.py runs it
// plain and under TSan, ASan and UBSan. TSan follows threads only: what two processes do to each other
// is the same code over the same kind of memory, which is why the threads here share an arena too.
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

namespace {

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
thread_local Points points;

}  // namespace

#define TICKRING_POINT(name) points.reach(name)
#include "ports.hpp"

namespace {

using tickring::EnginePort;
using tickring::FrontendPort;
using tickring::kNoDeadline;
using tickring::LaneEntry;
using tickring::Outcome;
using tickring::RingControl;
using tickring::SlotHeader;
using tickring::SpscRing;
using tickring::Ticket;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr unsigned kRounds = 40'000;
#else
constexpr unsigned kRounds = 200'000;
#endif
constexpr std::uint64_t kPatienceNs = 5'000'000'000;  // whoever waits this long has lost a wake-up

// -- checks ---------------------------------------------------------------------------------

[[noreturn]] void fail(int line, const std::string& what) {
  throw std::runtime_error("line " + std::to_string(line) + ": " + what);
}

template <typename A, typename B>
void check_equal(int line, const char* what, const A& a, const B& b) {
  if (a == b) return;
  if constexpr (std::is_arithmetic_v<A> && std::is_arithmetic_v<B>) {
    fail(line, std::string(what) + ": " + std::to_string(a) + " and " + std::to_string(b));
  }
  fail(line, what);
}

#define CHECK(condition) ((condition) ? (void)0 : fail(__LINE__, #condition))
#define CHECK_EQUAL(a, b) check_equal(__LINE__, #a " == " #b, a, b)

// -- fixtures -------------------------------------------------------------------------------

// The same numbers in every run.
struct Random {
  std::minstd_rand engine;
  std::uint32_t below(std::uint32_t limit) { return static_cast<std::uint32_t>(engine() % limit); }
};

using List = std::vector<std::uint32_t>;

tickring::Dimensions dimensions(std::uint32_t frontends, std::uint32_t slots, std::uint32_t models = 1) {
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

Ticket ticket(std::uint64_t key, std::uint32_t request = 0, std::uint64_t deadline_ns = kNoDeadline) {
  return {key, key, deadline_ns, request, false};
}

Ticket exclusive(std::uint64_t key, std::uint32_t request) { return {key, key, kNoDeadline, request, true}; }

void push(FrontendPort& port, std::uint32_t cls, const List& slots, const Ticket& what) {
  CHECK(port.push(0, 0, cls, slots.data(), slots.size(), what));
}

List take(EnginePort& engine, std::size_t max, std::uint64_t now = 0, std::uint64_t expected_ns = 0) {
  List slots(max);
  slots.resize(engine.take(0, max, now, expected_ns, slots.data()));
  return slots;
}

void complete(EnginePort& engine, const List& slots) {
  const std::vector<std::uint8_t> outcomes(slots.size(), static_cast<std::uint8_t>(Outcome::kResult));
  engine.complete(slots.data(), outcomes.data(), slots.size(), {});
}

// How many items are queued.
std::uint64_t look(EnginePort& engine) {
  std::uint64_t depth = 0;
  engine.look([&depth](std::uint32_t, std::uint32_t, const tickring::ClassBacklog& backlog) {
    points.reach("in look");
    depth += backlog.depth;
  });
  return depth;
}

using Ended = std::vector<std::pair<std::uint32_t, Outcome>>;

Ended drain(FrontendPort& port) {
  Ended ended;
  port.drain([&ended](std::uint32_t slot, const SlotHeader& header) {
    ended.emplace_back(slot, static_cast<Outcome>(header.outcome));
  });
  return ended;
}

List sorted_slots(const Ended& ended) {
  List slots;
  for (const auto& [slot, outcome] : ended) slots.push_back(slot);
  std::sort(slots.begin(), slots.end());
  return slots;
}

std::uint64_t ended_by(const EnginePort& engine, Outcome outcome) {
  return engine.stats().ended[static_cast<std::size_t>(outcome)].load();
}

bool readable(int fd, int timeout_ms = 0) {
  pollfd poll{fd, POLLIN, 0};
  return ::poll(&poll, 1, timeout_ms) == 1;
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

// -- one ring -------------------------------------------------------------------------------

struct Ring {
  static constexpr std::uint64_t kCapacity = 4;
  RingControl control;
  LaneEntry entries[kCapacity];

  explicit Ring(std::uint64_t position = 0) : entries{} {
    control.head.store(position);
    control.tail.store(position);
  }
  SpscRing<LaneEntry> end() { return {control, entries, kCapacity}; }
};

std::uint64_t available(SpscRing<LaneEntry>& ring) {
  bool corrupt = false;
  const std::uint64_t count = ring.available(corrupt);
  CHECK(!corrupt);
  return count;
}

void spsc_is_fifo_and_publishes_what_was_written_before() {
  Ring ring;
  constexpr std::uint64_t kCount = 4 * kRounds;
  std::vector<std::uint64_t> payload(Ring::kCapacity);  // not atomic: the ring alone orders it
  auto let_the_other_run = [until = tickring::now_ns() + kPatienceNs] {
    CHECK(tickring::now_ns() < until);
    sched_yield();
  };
  Thread producer([&] {
    points.jitter = 1;
    auto end = ring.end();
    for (std::uint64_t i = 0; i < kCount;) {
      if (!end.stage(0, {i, static_cast<std::uint32_t>(i % Ring::kCapacity), 0})) {
        let_the_other_run();
        continue;
      }
      payload[i % Ring::kCapacity] = i;
      end.publish(1);
      ++i;
    }
  });
  auto end = ring.end();
  for (std::uint64_t i = 0; i < kCount;) {
    const std::uint64_t count = available(end);
    if (count == 0) let_the_other_run();
    for (std::uint64_t ahead = 0; ahead < count; ++ahead, ++i) {
      CHECK_EQUAL(end.peek(ahead).key, i);
      CHECK_EQUAL(payload[end.peek(ahead).slot], i);
    }
    end.pop(count);
  }
  producer.join();
}

void full_is_a_value_and_positions_wrap_around() {
  for (const std::uint64_t start : {std::uint64_t{0}, std::uint64_t{3}, ~std::uint64_t{0} - 5}) {
    Ring ring(start);
    auto producer = ring.end();
    auto consumer = ring.end();
    for (std::uint64_t lap = 0; lap < 3 * Ring::kCapacity; ++lap) {
      for (std::uint64_t i = 0; i < Ring::kCapacity; ++i) CHECK(producer.stage(i, {lap + i, 0, 0}));
      CHECK(!producer.stage(Ring::kCapacity, {99, 0, 0}));
      CHECK_EQUAL(available(consumer), 0u);  // staged is not published
      producer.publish(Ring::kCapacity);
      CHECK(!producer.stage(0, {99, 0, 0}));
      CHECK_EQUAL(available(consumer), Ring::kCapacity);
      for (std::uint64_t i = 0; i < Ring::kCapacity; ++i) CHECK_EQUAL(consumer.peek(i).key, lap + i);
      consumer.pop(1);
      CHECK(producer.stage(0, {lap + Ring::kCapacity, 0, 0}));  // one was freed, one fits
      CHECK(!producer.stage(1, {99, 0, 0}));
      producer.publish(1);
      CHECK_EQUAL(consumer.discard(), Ring::kCapacity);
    }
  }
}

void either_end_can_be_taken_over() {
  Ring ring(7);
  for (std::uint64_t i = 0; i < 40; ++i) {
    auto producer = ring.end();
    CHECK(producer.stage(0, {2 * i, 0, 0}));
    CHECK(producer.stage(1, {2 * i + 1, 0, 0}));
    producer.publish(2);
    auto consumer = ring.end();
    CHECK_EQUAL(available(consumer), 2u);
    CHECK_EQUAL(consumer.peek().key, 2 * i);
    consumer.pop(1);
    auto next_consumer = ring.end();
    CHECK_EQUAL(next_consumer.peek().key, 2 * i + 1);
    next_consumer.pop(1);
  }
}

void parts_of_the_arena_are_aligned_and_apart() {
  for (const std::uint32_t slots : {1u, 2u, 3u, 6u, 100u}) {
    World world(dimensions(3, slots, 2));
    const tickring::Layout& layout = world.arena.layout();
    auto aligned = [](const void* part) { return reinterpret_cast<std::uintptr_t>(part) % 128 == 0; };
    for (std::uint64_t lane = 0; lane < layout.lane_count(); ++lane) {
      CHECK(aligned(&world.arena.lane_control(lane)));
    }
    for (std::uint64_t pair = 0; pair < 3; ++pair) {
      CHECK(aligned(&world.arena.completion_control(pair)));
      CHECK(aligned(&world.arena.doorbell(pair)));
    }
    CHECK(layout.ring_capacity >= slots);
    CHECK(layout.lanes >= sizeof(tickring::ArenaHeader));
    CHECK(layout.completions >= layout.lanes + layout.lane_count() * layout.lane_bytes());
    CHECK(layout.doorbells >= layout.completions + 3 * layout.completion_bytes());
    CHECK(layout.input_slab >= layout.slot_headers + layout.slots() * sizeof(SlotHeader));
    CHECK(layout.output_slab >= layout.input_slab + layout.slots() * layout.dims.input_row_bytes);
    CHECK(layout.total_bytes >= layout.output_slab + layout.slots() * layout.dims.output_row_bytes);
  }
}

// -- what a take returns --------------------------------------------------------------------

void take_follows_key_then_class_then_front_end() {
  Random random{std::minstd_rand(7)};
  for (int round = 0; round < 200; ++round) {
    const std::uint32_t frontends = 1 + random.below(4);
    World world(dimensions(frontends, 20));
    EnginePort engine = world.engine();
    std::vector<FrontendPort> ports;
    std::vector<std::array<std::uint64_t, 4>> expected;  // key, class, front end, slot
    for (std::uint32_t frontend = 0; frontend < frontends; ++frontend) {
      ports.push_back(world.frontend(frontend));
      std::array<std::uint64_t, tickring::kClasses> key{};
      for (const std::uint32_t slot : world.partition(frontend)) {
        const std::uint32_t cls = random.below(tickring::kClasses);
        key[cls] += random.below(3);  // few distinct keys: ties are the interesting part
        push(ports.back(), cls, {slot}, ticket(key[cls]));
        expected.push_back({key[cls], cls, frontend, slot});
      }
    }
    std::stable_sort(expected.begin(), expected.end(), [](const auto& a, const auto& b) {
      return std::tie(a[0], a[1], a[2]) < std::tie(b[0], b[1], b[2]);
    });
    for (std::size_t at = 0; at < expected.size();) {
      for (const std::uint32_t slot : take(engine, 1 + random.below(9))) {
        CHECK_EQUAL(slot, expected[at++][3]);
      }
    }
    CHECK(take(engine, 1).empty());
  }
}

void cancelled_and_expired_items_end_without_being_taken() {
  World world(dimensions(2, 8));
  FrontendPort port = world.frontend(1);
  EnginePort engine = world.engine();
  push(port, 0, {8}, ticket(1));
  push(port, 0, {9}, ticket(2, 0, 99));   // over
  push(port, 0, {10}, ticket(3, 0, 109));  // cannot be done in time
  push(port, 0, {11}, ticket(4, 0, 110));  // just can
  push(port, 1, {12, 13}, ticket(5));
  port.cancel(8);
  port.cancel(13);
  CHECK(take(engine, 8, 100, 10) == (List{11, 12}));
  CHECK(drain(port) == (Ended{{8, Outcome::kCancelled},
                              {9, Outcome::kExpired},
                              {10, Outcome::kExpired},
                              {13, Outcome::kCancelled}}));
  port.cancel(11);  // too late: it is being computed
  complete(engine, {12, 11});
  CHECK(drain(port) == (Ended{{12, Outcome::kResult}, {11, Outcome::kResult}}));
  CHECK_EQUAL(ended_by(engine, Outcome::kCancelled), 2u);
  CHECK_EQUAL(ended_by(engine, Outcome::kExpired), 2u);
  CHECK_EQUAL(engine.stats().taken.load(), 2u);
  push(port, 0, {8, 11}, ticket(6));  // a slot that comes back carries no old cancellation
  CHECK(take(engine, 8) == (List{8, 11}));
}

// A front end that pushes again whatever comes back, at every point of a take: the lane must have room.
void slot_that_came_back_fits_into_any_lane() {
  World world(dimensions(1, 4));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 0, {0, 1}, ticket(1, 0, 0));  // expired
  push(port, 0, {2, 3}, ticket(2));
  List again;
  points.visit = [&] {
    const auto visit = std::exchange(points.visit, nullptr);  // the front end's steps have points too
    for (const std::uint32_t slot : sorted_slots(drain(port))) {
      push(port, 0, {slot}, ticket(3));
      again.push_back(slot);
    }
    points.visit = visit;
  };
  const List taken = take(engine, 1, 1);
  points.visit = nullptr;
  CHECK(taken == (List{2}));
  CHECK(again == (List{0, 1}));
  CHECK(take(engine, 4, 1) == (List{3, 0, 1}));
}

void exclusive_item_is_alone_with_its_request() {
  World world(dimensions(2, 8));
  FrontendPort port = world.frontend(0);
  FrontendPort other = world.frontend(1);
  EnginePort engine = world.engine();
  push(port, 1, {0, 1}, ticket(1, 1));
  push(port, 1, {2, 3, 4}, exclusive(2, 2));
  push(other, 1, {8}, exclusive(3, 2));  // the same number, but another front end's
  push(port, 1, {5}, exclusive(4, 3));
  push(port, 1, {6}, ticket(5, 3));
  push(port, 1, {7}, ticket(6, 4));
  CHECK(take(engine, 8) == (List{0, 1}));
  CHECK(take(engine, 2) == (List{2, 3}));  // a request larger than a batch goes in several
  CHECK(take(engine, 8) == (List{4}));
  CHECK(take(engine, 8) == (List{8}));
  CHECK(take(engine, 8) == (List{5}));
  CHECK(take(engine, 8) == (List{6, 7}));
}

void item_of_an_older_epoch_is_dropped_unanswered() {
  World world(dimensions(2, 4));
  FrontendPort port = world.frontend(0);
  FrontendPort other = world.frontend(1);
  EnginePort engine = world.engine();
  push(port, 0, {0, 1}, ticket(1));
  push(other, 0, {4}, ticket(1));
  world.arena.epoch(0).fetch_add(1);
  push(port, 0, {2}, ticket(2));
  CHECK(take(engine, 8) == (List{4, 2}));
  CHECK(drain(port).empty());
  CHECK_EQUAL(engine.stats().discarded.load(), 2u);
}

// -- one side acts between two steps of the other ---------------------------------------------

// Calls `run` once per point in it, with `act` run at that point.
template <typename Run>
void at_every_point(const std::function<void()>& act, Run run) {
  unsigned reached = 1;
  for (unsigned point = 0; reached > point; ++point) {
    reached = 0;
    points.visit = [&] {
      if (reached++ != point) return;
      const auto visit = std::exchange(points.visit, nullptr);
      act();
      points.visit = visit;
    };
    run();
    points.visit = nullptr;
  }
  CHECK(reached > 1);
}

void push_at_any_point_of_a_wait_ends_it() {
  std::unique_ptr<World> world;
  std::unique_ptr<FrontendPort> port;
  at_every_point([&] { push(*port, 0, {1}, ticket(1)); }, [&] {
    world = std::make_unique<World>(dimensions(1, 2));
    port = std::make_unique<FrontendPort>(world->frontend(0));
    EnginePort engine = world->engine();
    port->push(0, 0, 0, nullptr, 0, {});
    CHECK_EQUAL(look(engine), 0u);
  });
}

// -- a front end or an engine gone mad -------------------------------------------------------

// Everything a wrong index could reach is made to look like a cancelled item, so that following one
// shows as a completion, not only as a crash.
void index_outside_the_arena_is_counted_and_not_followed() {
  for (const std::uint32_t wild : {8u, 9u, 3u, 16u, 70u, 1u << 31, ~0u}) {
    World world(dimensions(2, 8));
    FrontendPort port = world.frontend(0);
    EnginePort engine = world.engine();
    for (const std::uint32_t slot : {3u, 8u, 9u}) world.arena.slot(slot).cancelled.store(1);
    std::memset(world.arena.input_row(0), 1, 2 * 8 * 64);
    push(port, 2, {0, 1, 2}, ticket(1));
    world.arena.lane_entries(world.arena.layout().lane_index(0, 0, 0, 2))[1].slot = wild;
    look(engine);
    if (wild == 3) {  // its own front end's: a lie, but one that harms nobody else
      CHECK(take(engine, 8) == (List{0, 2}));
      continue;
    }
    CHECK(take(engine, 1) == (List{0}));
    engine.look([](std::uint32_t, std::uint32_t, const tickring::ClassBacklog& backlog) {
      CHECK_EQUAL(backlog.depth, 2u);
      CHECK_EQUAL(backlog.enqueued_ns, kNoDeadline);  // the bad index is at the head
    });
    CHECK(take(engine, 8) == (List{2}));
    CHECK_EQUAL(engine.stats().corrupt.load(), 1u);
    CHECK_EQUAL(ended_by(engine, Outcome::kCancelled), 0u);
  }
}

void tail_beyond_capacity_is_counted_and_closes_the_lane() {
  for (const std::uint64_t tail : {std::uint64_t{9}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    World world(dimensions(1, 8));
    FrontendPort port = world.frontend(0);
    EnginePort engine = world.engine();
    push(port, 4, {5}, ticket(1));
    RingControl& control = world.arena.lane_control(world.arena.layout().lane_index(0, 0, 0, 0));
    control.tail.store(tail);
    CHECK(take(engine, 64) == (List{5}));  // the other lanes go on
    CHECK_EQUAL(engine.stats().corrupt.load(), 1u);
    CHECK_EQUAL(engine.discard(0), 0u);
    complete(engine, {5});
    world.arena.reset_frontend(0);  // the way back
    FrontendPort next = world.frontend(0);
    push(next, 0, world.partition(0), ticket(2));
    CHECK(take(engine, 64) == world.partition(0));
  }
}

void completion_of_another_front_ends_slot_is_ignored() {
  World world(dimensions(2, 4));
  FrontendPort port = world.frontend(1);
  EnginePort engine = world.engine();
  push(port, 0, {4, 5, 6}, ticket(1));
  complete(engine, take(engine, 4));
  world.arena.completion_entries(1)[0] = 3;
  world.arena.completion_entries(1)[1] = ~0u;
  CHECK(drain(port) == (Ended{{6, Outcome::kResult}}));
  world.arena.completion_control(1).tail.store(1000);
  CHECK(drain(port).empty());
}

void caller_error_throws_and_hands_nothing_over() {
  World world(dimensions(2, 4));
  FrontendPort port = world.frontend(1);
  EnginePort engine = world.engine();
  auto refused = [](auto call) {
    try {
      call();
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  for (const std::uint32_t slot : {3u, 8u, ~0u}) {
    CHECK(refused([&] { push(port, 0, {4, slot}, ticket(1)); }));
    CHECK(refused([&] { port.cancel(slot); }));
  }
  CHECK(take(engine, 4).empty());
  push(port, 0, {4, 5}, ticket(1));
  CHECK(take(engine, 4) == (List{4, 5}));
  CHECK(refused([&] { complete(engine, {4, 8}); }));
  CHECK(drain(port).empty());
  CHECK(!readable(world.frontend_fds[1]));
  CHECK(refused([&] { world.frontend(0) = FrontendPort(world.arena, 2, -1, world.engine_fds); }));
}

// -- threads --------------------------------------------------------------------------------

struct Row {
  std::uint64_t word[8];
};
static_assert(sizeof(Row) == 64);

// Every word of a row depends on the question, so a torn or stale row cannot pass for another.
Row question_row(std::uint64_t question) {
  Row row{};
  for (std::uint64_t i = 0; i < 8; ++i) row.word[i] = question * 0x9e3779b97f4a7c15u + i;
  return row;
}

Row answer_row(const Row& asked) {
  Row row{};
  for (std::size_t i = 0; i < 8; ++i) row.word[i] = ~asked.word[7 - i];
  return row;
}

bool same(const Row& a, const Row& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// A whole front end: asks `total` questions over all lanes, checks that each slot it hands over comes
// back once, with the answer to what was asked in it.
void run_frontend(const World& world, std::uint32_t frontend, unsigned total) {
  points.jitter = frontend + 1;
  Random random{std::minstd_rand(frontend + 1)};
  FrontendPort port = world.frontend(frontend);
  const tickring::Dimensions& dims = world.arena.layout().dims;
  List free = world.partition(frontend);
  std::map<std::uint32_t, std::uint64_t> asked;  // by slot
  std::uint64_t question = std::uint64_t{frontend} << 32;
  for (unsigned sent = 0, back = 0; back < total;) {
    while (sent < total && !free.empty()) {
      const std::size_t rows = std::min<std::size_t>({1 + random.below(4), free.size(), total - sent});
      const List slots(free.end() - static_cast<std::ptrdiff_t>(rows), free.end());
      free.resize(free.size() - rows);
      for (const std::uint32_t slot : slots) {
        asked[slot] = ++question;
        const Row row = question_row(question);
        std::memcpy(world.arena.input_row(slot), &row, sizeof row);
      }
      const Ticket what{question, 0, random.below(16) == 0 ? 1 : kNoDeadline, sent, random.below(16) == 0};
      CHECK(port.push(0, random.below(dims.models), random.below(tickring::kClasses), slots.data(), rows, what));
      if (random.below(8) == 0) port.cancel(slots[0]);
      sent += static_cast<unsigned>(rows);
    }
    const std::size_t drained = port.drain([&](std::uint32_t slot, const SlotHeader& header) {
      CHECK_EQUAL(asked.count(slot), 1u);
      if (header.outcome == static_cast<std::uint8_t>(Outcome::kResult)) {
        Row row;
        std::memcpy(&row, world.arena.output_row(slot), sizeof row);
        CHECK(same(row, answer_row(question_row(asked[slot]))));
      }
      asked.erase(slot);
      free.push_back(slot);
      ++back;
    });
    if (drained == 0 && port.arm()) {
      CHECK(readable(world.frontend_fds[frontend], static_cast<int>(kPatienceNs / 1'000'000)));
      port.woken();
    }
  }
  CHECK(asked.empty());
}

// A whole engine: answers until `total` items have ended, with up to three batches in flight.
void run_engine(const World& world, std::uint64_t total, std::uint64_t spin_ns) {
  points.jitter = 99;
  Random random{std::minstd_rand(99)};
  EnginePort engine = world.engine();
  std::vector<List> in_flight;
  auto ended = [&engine] {
    std::uint64_t sum = 0;
    for (const auto& count : engine.stats().ended) sum += count.load();
    return sum;
  };
  while (ended() < total) {
    look(engine);
    for (std::uint32_t model = 0; model < world.arena.layout().dims.models; ++model) {
      List slots(8);
      slots.resize(engine.take(model, slots.size(), 2, 0, slots.data()));
      for (const std::uint32_t slot : slots) {
        Row row;
        std::memcpy(&row, world.arena.input_row(slot), sizeof row);
        const Row answer = answer_row(row);
        std::memcpy(world.arena.output_row(slot), &answer, sizeof answer);
      }
      if (!slots.empty()) in_flight.push_back(slots);
    }
    while (in_flight.size() > random.below(4)) {
      std::swap(in_flight.back(), in_flight[random.below(static_cast<std::uint32_t>(in_flight.size()))]);
      complete(engine, in_flight.back());
      in_flight.pop_back();
    }
    if (in_flight.empty() && ended() < total) {
      const std::uint64_t start = tickring::now_ns();
      // Not every false is a loss: a signal for work that was seen already ends the next wait.
      CHECK(engine.wait(kPatienceNs, spin_ns) || tickring::now_ns() - start < kPatienceNs);
    }
  }
  CHECK_EQUAL(ended(), total);
  CHECK_EQUAL(engine.stats().corrupt.load(), 0u);
}

void every_slot_comes_back_once_with_its_own_answer() {
  constexpr std::uint32_t kFrontends = 3;
  World world(dimensions(kFrontends, 13, 2));
  std::vector<std::unique_ptr<Thread>> threads;
  for (std::uint32_t frontend = 0; frontend < kFrontends; ++frontend) {
    threads.push_back(std::make_unique<Thread>([&world, frontend] { run_frontend(world, frontend, kRounds); }));
  }
  run_engine(world, std::uint64_t{kFrontends} * kRounds, 0);
  for (auto& thread : threads) thread->join();
}

// One slot: each side has nothing to do until the other is done, so every round sleeps twice.
void gate_never_loses_a_wake_up() {
  for (const std::uint64_t spin_ns : {0, 5'000}) {
    World world(dimensions(1, 1));
    Thread frontend([&world] { run_frontend(world, 0, kRounds / 20); });
    run_engine(world, kRounds / 20, spin_ns);
    frontend.join();
  }
}

// Two threads that start the next step at the same moment, give or take a few nanoseconds: the races
// that a store buffer opens are no wider.
class StartingLine {
 public:
  void meet() {
    const unsigned both = (arrived_.fetch_add(1) / 2 + 1) * 2;
    for (unsigned spins = 0; arrived_.load() < both; ++spins) {
      if (spins < 1'000) continue;
      CHECK(spins < 10'000'000);  // the other one has failed
      sched_yield();
    }
    jitter_.delay();
  }

 private:
  std::atomic<unsigned> arrived_{0};
  static inline thread_local Points jitter_{0, nullptr, 1, nullptr};
};

void completion_and_arming_front_end_never_miss_each_other() {
  World world(dimensions(1, 1));
  StartingLine line;
  Thread completing([&] {
    EnginePort engine = world.engine();
    for (unsigned round = 0; round < kRounds; ++round) {
      line.meet();
      const List taken = take(engine, 1);
      line.meet();
      complete(engine, taken);
      line.meet();
    }
  });
  FrontendPort port = world.frontend(0);
  for (unsigned round = 0; round < kRounds; ++round) {
    push(port, 0, {0}, ticket(1));
    line.meet();
    line.meet();
    const bool sleeps = port.arm();
    line.meet();
    CHECK(!sleeps || readable(world.frontend_fds[0]));
    port.woken();
    drain(port);
  }
  completing.join();
}

void push_and_waiting_engine_never_miss_each_other() {
  World world(dimensions(1, 1));
  StartingLine line;
  Thread pushing([&] {
    FrontendPort port = world.frontend(0);
    for (unsigned round = 0; round < kRounds; ++round) {
      line.meet();
      push(port, 0, {0}, ticket(1));
      line.meet();
      drain(port);
    }
  });
  EnginePort engine = world.engine();
  for (unsigned round = 0; round < kRounds; ++round) {
    look(engine);
    line.meet();
    const std::uint64_t start = tickring::now_ns();
    while (!engine.wait(kPatienceNs, 0)) CHECK(tickring::now_ns() - start < kPatienceNs);
    complete(engine, take(engine, 1));
    line.meet();
  }
  pushing.join();
}

// wait() is the one operation that Python runs without the GIL.
void batch_completes_while_its_engine_waits() {
  World world(dimensions(1, 2));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  for (unsigned round = 0; round < kRounds / 50; ++round) {
    push(port, 0, {0}, ticket(1));
    const List taken = take(engine, 1);
    look(engine);
    Thread waiting([&engine] { engine.wait(kPatienceNs, 0); });
    complete(engine, taken);
    engine.wake();
    waiting.join();
    CHECK(drain(port) == (Ended{{0, Outcome::kResult}}));
  }
}

// -- processes ------------------------------------------------------------------------------

void two_processes_exchange_slots() {
  World world(dimensions(2, 13, 2));
  Process first([&world] { run_frontend(world, 0, kRounds / 2); });
  Process second([&world] { run_frontend(world, 1, kRounds / 2); });
  run_engine(world, 2 * (kRounds / 2), 0);
  CHECK(first.survived());
  CHECK(second.survived());
}

// Hands the whole partition over at once, which needs every slot and all room in the lane.
void serve_whole_partition(const World& world, FrontendPort& port, EnginePort& engine, std::uint32_t frontend) {
  const List slots = world.partition(frontend);
  for (int lap = 0; lap < 3; ++lap) {
    push(port, 3, slots, ticket(1'000));
    CHECK(take(engine, slots.size() + 1) == slots);
    complete(engine, slots);
    CHECK(sorted_slots(drain(port)) == slots);
    CHECK(drain(port).empty());
  }
}

// Requests of 3, 1 and 2 rows, numbered from 1. The first wraps around the end of its lane.
void push_three_requests(FrontendPort& port) {
  drain(port);
  push(port, 2, {0, 1, 2}, ticket(1, 1));
  push(port, 0, {3}, ticket(2, 2));
  push(port, 2, {4, 5}, ticket(3, 3));
}

// `served`: the engine takes and answers what the dead producer left. Otherwise it drops that.
bool producer_dies_at(int point, bool served) {
  World world(dimensions(2, 6));
  FrontendPort other = world.frontend(1);
  EnginePort engine = world.engine();
  {
    FrontendPort port = world.frontend(0);
    for (int lap = 0; lap < 6; ++lap) {  // leaves a completion to drain, and the lane near its end
      drain(port);
      push(port, 2, {5}, ticket(0));
      complete(engine, take(engine, 1));
    }
  }
  tickring::Gate(world.arena.engine_gate(0), -1).arm();  // every signal takes its longest way
  Process producer([&world, point] {
    points.fatal_in = point;
    FrontendPort port = world.frontend(0);
    push_three_requests(port);
  });
  const bool survived = producer.survived();

  push(other, 1, {6, 7}, ticket(4, 9));
  CHECK(readable(world.engine_fds[0]));
  if (served) {
    std::array<unsigned, 10> rows{};
    const List live = take(engine, 64);
    for (const std::uint32_t slot : live) ++rows[world.arena.slot(slot).request];
    CHECK(rows[1] == 3 || (rows[1] == 0 && rows[2] == 0));
    CHECK(rows[2] == 1 || (rows[2] == 0 && rows[3] == 0));
    CHECK(rows[3] == 2 || (rows[3] == 0 && !survived));
    CHECK_EQUAL(rows[9], 2u);
    complete(engine, live);
    CHECK_EQUAL(engine.discard(0), 0u);
  } else {
    const std::uint64_t dropped = engine.discard(0);
    CHECK(dropped == 6 || (!survived && (dropped == 0 || dropped == 3 || dropped == 4)));
    CHECK(take(engine, 64) == (List{6, 7}));
    complete(engine, {6, 7});
  }
  CHECK(sorted_slots(drain(other)) == (List{6, 7}));

  world.arena.reset_frontend(0);
  CHECK_EQUAL(world.arena.epoch(0).load(), 1u);
  FrontendPort next = world.frontend(0);
  CHECK(drain(next).empty());
  serve_whole_partition(world, next, engine, 0);
  serve_whole_partition(world, other, engine, 1);
  CHECK_EQUAL(engine.stats().corrupt.load(), 0u);
  return !survived;
}

void producer_killed_anywhere_leaves_whole_requests() {
  for (const bool served : {true, false}) {
    int point = 1;
    while (producer_dies_at(point, served)) ++point;
    CHECK(point > 25);  // 6 rows of two points, 3 pushes of five, and a drain
  }
}

void wake_up_outlives_a_producer_killed_before_its_write() {
  World world(dimensions(2, 4));
  FrontendPort other = world.frontend(1);
  tickring::Gate(world.arena.engine_gate(0), -1).arm();  // an engine that has looked and is about to block
  Process producer([&world] {
    points.fatal_at = "before ring";
    FrontendPort port = world.frontend(0);
    push(port, 0, {0}, ticket(1));
  });
  CHECK(!producer.survived());
  CHECK(!readable(world.engine_fds[0]));  // it died in time
  push(other, 0, {4}, ticket(2));
  CHECK(readable(world.engine_fds[0]));
}

// `drained`: the front ends take back what the dead engine completed before its rings are reset.
bool engine_dies_at(int point, bool drained) {
  World world(dimensions(2, 6));
  FrontendPort ports[2] = {world.frontend(0), world.frontend(1)};
  {
    EnginePort engine = world.engine();  // these front ends outlive the engine, with what they remember
    for (std::uint32_t i = 0; i < 2; ++i) serve_whole_partition(world, ports[i], engine, i);
  }
  push(ports[0], 2, {0, 1, 2}, ticket(1, 1));
  push(ports[0], 2, {3, 4}, ticket(2, 2, 5));  // expired
  push(ports[0], 1, {5}, ticket(3, 3));
  push(ports[1], 0, {6, 7, 8, 9}, ticket(1, 1));
  ports[0].cancel(5);
  for (FrontendPort& port : ports) CHECK(port.arm());
  Process process([&world, point] {
    points.fatal_in = point;
    EnginePort engine = world.engine();
    for (int batch = 0; batch < 2; ++batch) complete(engine, take(engine, 4, 10));
    look(engine);
    engine.wait(0, 0);
  });
  const bool survived = process.survived();

  if (drained) {
    const List pushed[2] = {{0, 1, 2, 3, 4, 5}, {6, 7, 8, 9}};
    for (std::size_t i = 0; i < 2; ++i) {
      const List back = sorted_slots(drain(ports[i]));
      CHECK(std::adjacent_find(back.begin(), back.end()) == back.end());
      CHECK(std::includes(pushed[i].begin(), pushed[i].end(), back.begin(), back.end()));
      CHECK(!survived || back == pushed[i]);
    }
  }
  world.arena.reset_engine(0);
  CHECK_EQUAL(world.arena.engine_gate(0).sleeping.load(), 0u);
  EnginePort engine = world.engine();
  CHECK(take(engine, 64).empty());
  for (std::uint32_t i = 0; i < 2; ++i) {
    CHECK(drain(ports[i]).empty());  // what is lost does not come back behind its end
    serve_whole_partition(world, ports[i], engine, i);
  }
  return !survived;
}

void engine_killed_anywhere_hands_nothing_back_twice() {
  for (const bool drained : {true, false}) {
    int point = 1;
    while (engine_dies_at(point, drained)) ++point;
    CHECK(point > 25);
  }
}

// -------------------------------------------------------------------------------------------

struct Test {
  const char* name;
  void (*run)();
};

#define TEST(function) {#function, function}
constexpr Test kTests[] = {
    TEST(spsc_is_fifo_and_publishes_what_was_written_before),
    TEST(full_is_a_value_and_positions_wrap_around),
    TEST(either_end_can_be_taken_over),
    TEST(parts_of_the_arena_are_aligned_and_apart),
    TEST(take_follows_key_then_class_then_front_end),
    TEST(cancelled_and_expired_items_end_without_being_taken),
    TEST(slot_that_came_back_fits_into_any_lane),
    TEST(exclusive_item_is_alone_with_its_request),
    TEST(item_of_an_older_epoch_is_dropped_unanswered),
    TEST(index_outside_the_arena_is_counted_and_not_followed),
    TEST(tail_beyond_capacity_is_counted_and_closes_the_lane),
    TEST(completion_of_another_front_ends_slot_is_ignored),
    TEST(caller_error_throws_and_hands_nothing_over),
    TEST(every_slot_comes_back_once_with_its_own_answer),
    TEST(gate_never_loses_a_wake_up),
    TEST(completion_and_arming_front_end_never_miss_each_other),
    TEST(push_and_waiting_engine_never_miss_each_other),
    TEST(batch_completes_while_its_engine_waits),
    TEST(two_processes_exchange_slots),
    TEST(producer_killed_anywhere_leaves_whole_requests),
    TEST(wake_up_outlives_a_producer_killed_before_its_write),
    TEST(engine_killed_anywhere_hands_nothing_back_twice),
};

bool passes(const Test& test) {
  const std::uint64_t start = tickring::now_ns();
  std::string failure;
  try {
    test.run();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const unsigned long long ms = (tickring::now_ns() - start) / 1'000'000;
  std::printf("%s %s %llu ms %s\n", failure.empty() ? "ok    " : "FAILED", test.name, ms, failure.c_str());
  std::fflush(stdout);
  return failure.empty();
}

}  // namespace

int main(int argc, char** argv) {
  bool all = true;
  for (const Test& test : kTests) {
    if (argc < 2 || std::strstr(test.name, argv[1]) != nullptr) all = passes(test) && all;
  }
  return all ? 0 : 1;
}
