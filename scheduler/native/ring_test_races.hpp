// One side acts between two steps of the other: placed there on purpose, or by threads and processes that
// run at the same time.
#pragma once

#include "ring_test_world.hpp"

namespace ring_test {

using Action = std::function<void()>;

inline unsigned count_points(const Action& operation) {
  unsigned count = 0;
  points.visit = [&count] { ++count; };
  operation();
  points.visit = nullptr;
  return count;
}

// Runs an operation, with `other` in between at its point number `at`.
inline void interleave(unsigned at, const Action& other, const Action& operation) {
  unsigned reached = 0;
  bool acting = false;
  points.visit = [&] {
    if (acting || reached++ != at) return;
    acting = true;
    other();
    acting = false;
  };
  operation();
  points.visit = nullptr;
  CHECK(reached > at);
}

static void push_at_any_point_of_a_wait_ends_it() {
  unsigned count = 1;
  for (unsigned at = 0; at < count; ++at) {
    World world(dimensions(1, 2));
    FrontendPort port = world.frontend(0);
    EnginePort engine = world.engine();
    push(port, 0, {0}, ticket(1));
    auto look_and_wait = [&](std::uint64_t timeout_ns) {
      look(engine);
      return engine.wait(timeout_ns, 0);
    };
    count = count_points([&] { CHECK(!look_and_wait(0)); });
    bool woken = false;
    interleave(at, [&] { push(port, 1, {1}, ticket(2)); }, [&] { woken = look_and_wait(kPatienceNs); });
    CHECK(woken);
  }
  CHECK(count >= 3);
}

static void engine_may_fall_asleep_at_any_point_of_a_push() {
  unsigned count = 1;
  for (unsigned at = 0; at < count; ++at) {
    World world(dimensions(2, 2));
    FrontendPort port = world.frontend(0);
    FrontendPort other = world.frontend(1);
    EnginePort engine = world.engine();
    count = count_points([&] { push(other, 0, {2}, ticket(1)); });
    CHECK_EQUAL(take(engine, 1).size(), 1u);
    std::uint64_t seen = 0;
    bool woken = false;
    std::atomic<bool> done{false};
    std::unique_ptr<Thread> waiting;
    auto fall_asleep = [&] {
      waiting = std::make_unique<Thread>([&] {
        seen = look(engine);
        woken = seen == 0 && engine.wait(kPatienceNs, 0);
        done = true;
      });
      while (!done && engine.stats().sleeps.load() == 0) sched_yield();
    };
    interleave(at, fall_asleep, [&] { push(port, 0, {0}, ticket(2)); });
    waiting->join();
    CHECK(seen == 1 || woken);
  }
  CHECK(count >= 6);
}

static void completion_at_any_point_of_arming_is_noticed() {
  unsigned count = 1;
  for (unsigned at = 0; at < count; ++at) {
    World world(dimensions(1, 2));
    FrontendPort port = world.frontend(0);
    EnginePort engine = world.engine();
    push(port, 0, {0}, ticket(1));
    const List taken = take(engine, 1);
    std::size_t drained = 0;
    bool armed = false;
    auto go_to_sleep = [&] {
      port.woken();
      drained = drain(port).size();
      armed = port.arm();
    };
    count = count_points(go_to_sleep);
    CHECK(armed);
    interleave(at, [&] { complete(engine, taken); }, go_to_sleep);
    CHECK(drained == 1 || !armed || readable(world.frontend_fds[0]));
    CHECK_EQUAL(drained + drain(port).size(), 1u);
  }
  CHECK(count >= 4);
}

struct Row {
  std::uint64_t word[8];
};
static_assert(sizeof(Row) == 64);

// Every word of a row depends on the question, so a torn or stale row cannot pass for another.
inline Row question_row(std::uint64_t question) {
  Row row{};
  for (std::uint64_t i = 0; i < 8; ++i) row.word[i] = question * 0x9e3779b97f4a7c15u + i;
  return row;
}

inline Row answer_row(const Row& asked) {
  Row row{};
  for (std::size_t i = 0; i < 8; ++i) row.word[i] = ~asked.word[7 - i];
  return row;
}

inline bool same(const Row& a, const Row& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

// A whole front end: asks `total` questions over all lanes, checks that each slot it hands over comes
// back once, with the answer to what was asked in it.
inline void run_frontend(const World& world, std::uint32_t frontend, unsigned total) {
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
    const std::size_t drained = port.drain([&](std::uint32_t slot, Outcome outcome, const SlotHeader&) {
      CHECK_EQUAL(asked.count(slot), 1u);
      if (outcome == Outcome::kResult) {
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
inline void run_engine(const World& world, std::uint64_t total, std::uint64_t spin_ns) {
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

static void every_slot_comes_back_once_with_its_own_answer() {
  constexpr std::uint32_t kFrontends = 3;
  World world(dimensions(kFrontends, 13, 2));
  std::vector<std::unique_ptr<Thread>> threads;
  for (std::uint32_t frontend = 0; frontend < kFrontends; ++frontend) {
    auto ask = [&world, frontend] { run_frontend(world, frontend, kRounds); };
    threads.push_back(std::make_unique<Thread>(ask));
  }
  run_engine(world, std::uint64_t{kFrontends} * kRounds, 0);
  for (auto& thread : threads) thread->join();
}

// One slot: each side has nothing to do until the other is done, so every round sleeps twice.
static void gate_never_loses_a_wake_up() {
  for (const std::uint64_t spin_ns : {0, 5'000}) {
    World world(dimensions(1, 1));
    Thread frontend([&world] { run_frontend(world, 0, kRounds / 20); });
    run_engine(world, kRounds / 20, spin_ns);
    frontend.join();
  }
}

// Two threads that start the next step at the same moment, give or take a few nanoseconds: the races
// that a store buffer opens are no wider. It takes very many rounds to meet one; a busy machine gets
// fewer, and the end in time.
class StartingLine {
 public:
  // One thread says, before the last meeting of a round, whether there is another; then both know.
  void decide(unsigned round) {
    another = round + 1 < 10 * kRounds && tickring::now_ns() - start_ns_ < kLimitNs;
  }
  std::atomic<bool> another{true};

  void meet() {
    const unsigned both = (arrived_.fetch_add(1) / 2 + 1) * 2;
    for (unsigned spins = 0; arrived_.load() < both; ++spins) {
      if (spins > 1'000) let_the_other_run(spins);
    }
    jitter_.delay();
  }

 private:
  static constexpr std::uint64_t kLimitNs = 2'000'000'000;
  std::uint64_t start_ns_ = tickring::now_ns();
  std::atomic<unsigned> arrived_{0};
  static inline thread_local Points jitter_{0, nullptr, 1, nullptr};
};

static void completion_and_arming_front_end_never_miss_each_other() {
  World world(dimensions(1, 1));
  StartingLine line;
  Thread completing([&] {
    EnginePort engine = world.engine();
    while (line.another) {
      line.meet();
      const List taken = take(engine, 1);
      line.meet();
      complete(engine, taken);
      line.meet();
    }
  });
  FrontendPort port = world.frontend(0);
  for (unsigned round = 0; line.another; ++round) {
    push(port, 0, {0}, ticket(1));
    line.meet();
    line.meet();
    const bool sleeps = port.arm();
    line.decide(round);
    line.meet();
    CHECK(!sleeps || readable(world.frontend_fds[0]));
    port.woken();
    drain(port);
  }
  completing.join();
}

static void push_and_waiting_engine_never_miss_each_other() {
  World world(dimensions(1, 1));
  StartingLine line;
  Thread pushing([&] {
    FrontendPort port = world.frontend(0);
    while (line.another) {
      line.meet();
      push(port, 0, {0}, ticket(1));
      line.meet();
      drain(port);
    }
  });
  EnginePort engine = world.engine();
  for (unsigned round = 0; line.another; ++round) {
    look(engine);
    line.meet();
    const std::uint64_t start = tickring::now_ns();
    while (!engine.wait(kPatienceNs, 0)) CHECK(tickring::now_ns() - start < kPatienceNs);
    complete(engine, take(engine, 1));
    line.decide(round);
    line.meet();
  }
  pushing.join();
}

// wait() is the one operation that Python runs without the GIL.
static void batch_completes_while_its_engine_waits() {
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

static void two_processes_exchange_slots() {
  World world(dimensions(2, 13, 2));
  Process first([&world] { run_frontend(world, 0, kRounds / 2); });
  Process second([&world] { run_frontend(world, 1, kRounds / 2); });
  run_engine(world, 2 * (kRounds / 2), 0);
  CHECK(first.survived());
  CHECK(second.survived());
}

}  // namespace ring_test
