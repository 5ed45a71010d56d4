// A process is killed at every point of what it does to the arena. The others go on, and a new one takes
// its place.
#pragma once

#include "ring_test_world.hpp"

namespace ring_test {

// Hands the whole partition over at once, which needs every slot and all room in the lane.
inline void serve_whole_partition(const World& world, FrontendPort& port, EnginePort& engine,
                                  std::uint32_t frontend) {
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
inline void push_three_requests(FrontendPort& port) {
  drain(port);
  push(port, 2, {0, 1, 2}, ticket(1, 1));
  push(port, 0, {3}, ticket(2, 2));
  push(port, 2, {4, 5}, ticket(3, 3));
}

// `served`: the engine takes and answers what the dead producer left. Otherwise it drops that.
inline bool producer_dies_at(int point, bool served) {
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
  std::uint64_t visible = 0;
  if (served) {
    std::array<unsigned, 10> rows{};
    const List live = take(engine, 64);
    for (const std::uint32_t slot : live) ++rows[world.arena.slot(slot).request];
    CHECK(rows[1] == 3 || (rows[1] == 0 && rows[2] == 0));
    CHECK(rows[2] == 1 || (rows[2] == 0 && rows[3] == 0));
    CHECK(rows[3] == 2 || (rows[3] == 0 && !survived));
    CHECK_EQUAL(rows[9], 2u);
    visible = live.size() - 2;
    complete(engine, live);
    CHECK_EQUAL(engine.discard(0), 0u);
  } else {
    const std::uint64_t dropped = engine.discard(0);
    CHECK(dropped == 6 || (!survived && (dropped == 0 || dropped == 3 || dropped == 4)));
    visible = dropped;
    CHECK(take(engine, 64) == (List{6, 7}));
    complete(engine, {6, 7});
  }
  CHECK(sorted_slots(drain(other)) == (List{6, 7}));

  const tickring::FrontendStats& stats = world.arena.frontend_stats(0);
  const std::uint64_t admitted = stats.admitted.load();
  CHECK(admitted == 12 || (!survived && admitted >= 6 + visible));
  const std::uint64_t drained = stats.ended[1].load(), open = stats.open();
  CHECK(drained == 5 || drained == 6);
  CHECK_EQUAL(drained + open, admitted);
  world.arena.reset_frontend(0);
  CHECK_EQUAL(stats.open(), 0u);
  CHECK_EQUAL(stats.admitted.load(), admitted);
  CHECK_EQUAL(stats.ended[1].load(), drained);
  CHECK_EQUAL(stats.ended[tickring::kLost].load(), open);
  CHECK_EQUAL(world.arena.epoch(0).load(), 1u);
  FrontendPort next = world.frontend(0);
  CHECK(drain(next).empty());
  serve_whole_partition(world, next, engine, 0);
  serve_whole_partition(world, other, engine, 1);
  CHECK_EQUAL(engine.stats().corrupt.load(), 0u);
  return !survived;
}

static void producer_killed_anywhere_leaves_whole_requests() {
  for (const bool served : {true, false}) {
    int point = 1;
    while (producer_dies_at(point, served)) ++point;
    CHECK(point > 25);  // 6 rows of two points, 3 pushes of five, and a drain
  }
}

static void wake_up_outlives_a_producer_killed_before_its_write() {
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
inline bool engine_dies_at(int point, bool drained) {
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
  for (FrontendPort& port : ports) port.lose(port.stats().open());
  const tickring::EngineStats& stats = world.arena.engine_stats(0);
  const std::uint64_t in_batches = stats.in_batches();
  CHECK(in_batches <= 4 && (!survived || in_batches == 0));  // the engine runs one batch at a time
  world.arena.reset_engine(0);
  CHECK_EQUAL(stats.lost.load(), in_batches);
  CHECK_EQUAL(stats.taken.load(), stats.completed.load() + in_batches);
  CHECK_EQUAL(world.arena.engine_gate(0).sleeping.load(), 0u);
  EnginePort engine = world.engine();
  CHECK(take(engine, 64).empty());
  for (std::uint32_t i = 0; i < 2; ++i) {
    CHECK(drain(ports[i]).empty());  // what is lost does not come back behind its end
    serve_whole_partition(world, ports[i], engine, i);
    CHECK_EQUAL(ports[i].stats().open(), 0u);
  }
  return !survived;
}

static void engine_killed_anywhere_hands_nothing_back_twice() {
  for (const bool drained : {true, false}) {
    int point = 1;
    while (engine_dies_at(point, drained)) ++point;
    CHECK(point > 25);
  }
}

}  // namespace ring_test
