// The counts that outlive a process, what an engine publishes, and what others read of both.
#pragma once

#include "ring_test_world.hpp"

namespace ring_test {

using tickring::EngineStats;
using tickring::FrontendStats;

inline std::uint64_t ended_by(const FrontendStats& stats, std::size_t outcome) {
  return stats.ended[outcome].load();
}

static void front_end_counts_what_it_admits_and_how_that_ends() {
  World world(dimensions(2, 4));
  FrontendPort port = world.frontend(1);
  EnginePort engine = world.engine();
  const FrontendStats& stats = port.stats();
  push(port, 0, {4, 5, 6, 7}, ticket(1));
  const List none;
  push(port, 0, none, ticket(1));
  CHECK(!port.push(0, 0, 0, world.partition(1).data(), 1, ticket(2)));  // full: nothing was handed over
  CHECK_EQUAL(stats.admitted.load(), 4u);
  CHECK_EQUAL(stats.open(), 4u);
  port.cancel(5);
  engine.complete(take(engine, 3).data(), std::array<std::uint8_t, 3>{1, 2, 3}.data(), 3, {});
  CHECK_EQUAL(stats.open(), 4u);  // until they are drained
  drain(port);
  for (const Outcome outcome :
       {Outcome::kResult, Outcome::kError, Outcome::kNonFinite, Outcome::kCancelled}) {
    CHECK_EQUAL(ended_by(stats, static_cast<std::size_t>(outcome)), 1u);
  }
  CHECK_EQUAL(stats.open(), 0u);
  push(port, 0, {4, 5}, ticket(3));
  CHECK(refused([&] { port.lose(3); }));
  port.lose(2);
  CHECK(refused([&] { port.lose(1); }));
  CHECK_EQUAL(ended_by(stats, tickring::kLost), 2u);
  port.end_unqueued(2, 4);
  port.end_unqueued(1, tickring::kLost);
  CHECK(refused([&] { port.end_unqueued(1, 0); }));
  CHECK(refused([&] { port.end_unqueued(1, tickring::kLost + 1); }));
  CHECK_EQUAL(stats.admitted.load(), 9u);
  CHECK_EQUAL(ended_by(stats, 4), 2u);
  CHECK_EQUAL(ended_by(stats, tickring::kLost), 3u);
  CHECK_EQUAL(stats.open(), 0u);
  CHECK_EQUAL(world.arena.frontend_stats(0).admitted.load(), 0u);
  CHECK_EQUAL(stats.corrupt.load(), 0u);
}

// Requests of which one is queued, one in a batch, one completed and one drained.
inline void leave_one_item_in_every_state(FrontendPort& port, EnginePort& engine) {
  push(port, 0, {0}, ticket(1));
  complete(engine, take(engine, 1));
  CHECK_EQUAL(drain(port).size(), 1u);
  push(port, 0, {1}, ticket(2));
  complete(engine, take(engine, 1));
  push(port, 0, {2}, ticket(3));
  CHECK(take(engine, 1) == (List{2}));
  push(port, 0, {3}, ticket(4));
}

static void books_of_a_front_end_close_when_its_partition_is_reset() {
  World world(dimensions(2, 4));
  EnginePort engine = world.engine();
  const FrontendStats& stats = world.arena.frontend_stats(0);
  for (std::uint64_t life = 1; life <= 3; ++life) {
    FrontendPort port = world.frontend(0);
    leave_one_item_in_every_state(port, engine);
    CHECK_EQUAL(stats.open(), 3u);
    CHECK_EQUAL(engine.discard(0), 1u);
    complete(engine, {2});
    world.arena.reset_frontend(0);
    CHECK_EQUAL(stats.open(), 0u);
    CHECK_EQUAL(stats.admitted.load(), 4 * life);
    CHECK_EQUAL(ended_by(stats, 1), life);
    CHECK_EQUAL(ended_by(stats, tickring::kLost), 3 * life);
  }
  world.arena.reset_frontend(0);  // nothing was open
  CHECK_EQUAL(ended_by(stats, tickring::kLost), 9u);
  CHECK_EQUAL(world.arena.frontend_stats(1).open(), 0u);
}

static void books_of_an_engine_close_when_its_rings_are_reset() {
  World world(dimensions(1, 4));
  FrontendPort port = world.frontend(0);
  const EngineStats& stats = world.arena.engine_stats(0);
  for (std::uint64_t life = 1; life <= 3; ++life) {
    EnginePort engine = world.engine();
    leave_one_item_in_every_state(port, engine);
    CHECK_EQUAL(stats.in_batches(), 1u);
    CHECK_EQUAL(drain(port).size(), 1u);
    port.lose(2);  // the one in a batch and the one still queued
    world.arena.reset_engine(0);
    CHECK_EQUAL(stats.in_batches(), 0u);
    CHECK_EQUAL(stats.taken.load(), 3 * life);
    CHECK_EQUAL(stats.completed.load(), 2 * life);
    CHECK_EQUAL(stats.lost.load(), life);
    CHECK_EQUAL(world.arena.frontend_stats(0).open(), 0u);
  }
  world.arena.reset_engine(0);  // nothing was in a batch
  CHECK_EQUAL(stats.lost.load(), 3u);
}

static void item_expired_in_a_batch_is_completed_and_one_expired_before_is_not() {
  World world(dimensions(1, 4));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 0, {0}, ticket(1, 0, 4));
  push(port, 0, {1}, ticket(2));
  CHECK(take(engine, 4, 5) == (List{1}));
  const auto expired = static_cast<std::uint8_t>(Outcome::kExpired);
  engine.complete(List{1}.data(), &expired, 1, {});
  CHECK_EQUAL(ended_by(engine, Outcome::kExpired), 2u);
  CHECK_EQUAL(engine.stats().taken.load(), 1u);
  CHECK_EQUAL(engine.stats().completed.load(), 1u);
}

static void completion_that_makes_no_sense_is_counted() {
  World world(dimensions(2, 8));
  FrontendPort port = world.frontend(1);
  EnginePort engine = world.engine();
  const FrontendStats& stats = port.stats();
  std::uint64_t corrupt = 0;
  for (const std::uint8_t outcome : std::array<std::uint8_t, 4>{0, 6, 7, 255}) {
    push(port, 0, {9}, ticket(1));
    complete(engine, take(engine, 1));
    world.arena.slot(9).outcome = outcome;
    CHECK(drain(port) == (Ended{{9, Outcome::kError}}));
    CHECK_EQUAL(stats.corrupt.load(), ++corrupt);
    CHECK_EQUAL(ended_by(stats, 2), corrupt);
  }
  push(port, 0, {10, 11}, ticket(1));
  complete(engine, take(engine, 2));
  world.arena.completion_entries(1)[4] = 3;  // of front end 0
  CHECK(drain(port) == (Ended{{11, Outcome::kResult}}));
  CHECK_EQUAL(stats.corrupt.load(), ++corrupt);
  CHECK_EQUAL(stats.open(), 1u);
  world.arena.completion_control(1).tail.fetch_add(9);
  CHECK(drain(port).empty());
  CHECK_EQUAL(stats.corrupt.load(), ++corrupt);
  world.arena.reset_frontend(1);
  CHECK_EQUAL(ended_by(stats, tickring::kLost), 1u);
}

// An engine that ends an item twice makes more ends than admissions. That never wraps around.
static void books_with_too_many_ends_stay_closed() {
  World world(dimensions(1, 4));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 0, {0}, ticket(1));
  const List taken = take(engine, 1);
  complete(engine, taken);
  complete(engine, taken);
  CHECK_EQUAL(drain(port).size(), 2u);
  CHECK_EQUAL(world.arena.frontend_stats(0).open(), 0u);
  CHECK_EQUAL(engine.stats().in_batches(), 0u);
  world.arena.reset_frontend(0);
  world.arena.reset_engine(0);
  CHECK_EQUAL(ended_by(world.arena.frontend_stats(0), tickring::kLost), 0u);
  CHECK_EQUAL(engine.stats().lost.load(), 0u);
}

// A completion ring whose positions make no sense takes nothing. Its front end waits in vain, but the
// engine has done its part: nobody may take it for stuck.
static void slot_that_cannot_be_handed_back_leaves_its_batch() {
  World world(dimensions(2, 4));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 0, {0}, ticket(1));
  const List taken = take(engine, 1);
  const std::uint64_t steps = world.arena.engine_progress(0).second;
  world.arena.completion_control(0).tail.fetch_add(4);
  complete(engine, taken);
  CHECK_EQUAL(engine.stats().corrupt.load(), 1u);
  CHECK_EQUAL(engine.stats().in_batches(), 0u);
  CHECK_EQUAL(ended_by(engine, Outcome::kResult), 0u);
  CHECK(world.arena.engine_progress(0) == std::make_pair(std::uint64_t{0}, steps + 1));
}

// Fills each lane of two models from two front ends; returns how many items of each class that is.
inline tickring::PerClass fill_lanes(const World& world, std::uint32_t model) {
  tickring::PerClass items{};
  for (std::uint32_t frontend = 0; frontend < 2; ++frontend) {
    FrontendPort port = world.frontend(frontend);
    std::uint32_t slot = frontend * 16 + model * 8;
    for (std::uint32_t cls = 0; cls < 4; ++cls) {  // the last class stays empty
      const List slots = cls == frontend ? List{slot, slot + 1} : List{slot};
      CHECK(port.push(0, model, cls, slots.data(), slots.size(), ticket(1)));
      slot += static_cast<std::uint32_t>(slots.size());
      items[cls] += slots.size();
    }
  }
  return items;
}

static void backlog_sums_over_front_ends_and_models() {
  World world(dimensions(2, 16, 2));
  FrontendPort port = world.frontend(1);
  EnginePort engine = world.engine();
  const tickring::PerClass items = fill_lanes(world, 0);
  CHECK(port.depths(0) == items);
  CHECK(port.backlog_ns(0) == tickring::PerClass{});  // nothing is known of the engine yet
  fill_lanes(world, 1);
  engine.publish_forecast(0, {1, 10, {}, {}, {}, {}});
  engine.publish_forecast(1, {1, 300, {}, {}, {}, {}});
  const tickring::PerClass depths = port.depths(0), backlog_ns = world.frontend(0).backlog_ns(0);
  for (std::uint32_t cls = 0; cls < tickring::kClasses; ++cls) {
    CHECK_EQUAL(depths[cls], 2 * items[cls]);
    CHECK_EQUAL(backlog_ns[cls], 310 * items[cls]);
    CHECK_EQUAL(world.arena.depth(0, 1, cls), items[cls]);
  }
  CHECK(refused([&] { port.depths(1); }));
  CHECK(refused([&] { port.backlog_ns(1); }));
  CHECK_EQUAL(take(engine, 64).size(), 10u);
  CHECK(port.depths(0) == items);  // those of the other model
}

static void lane_that_makes_no_sense_counts_for_nothing() {
  World world(dimensions(2, 16, 2));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 1, {0}, ticket(1));
  push(port, 2, {1}, ticket(1));
  RingControl& control = world.arena.lane_control(world.arena.layout().lane_index(0, 0, 0, 1));
  for (const std::uint64_t tail : {std::uint64_t{17}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    control.tail.store(tail);
    CHECK(port.depths(0) == (tickring::PerClass{0, 0, 1, 0, 0}));
    CHECK_EQUAL(world.arena.depth(0, 0, 1), 0u);
    CHECK_EQUAL(world.arena.engine_progress(0).first, 1u);
  }
  engine.publish_forecast(0, {1, ~std::uint64_t{0}, {}, {}, {}, {}});
  control.tail.store(16);
  CHECK_EQUAL(port.backlog_ns(0)[1], 16 * tickring::kMaxItemNs);
  world.arena.completion_control(0).tail.store(1000);
  CHECK_EQUAL(world.arena.frontend_progress(0).first, 0u);
}

static void take_leaves_the_lanes_of_other_classes_alone() {
  World world(dimensions(1, 8));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 0, {0}, ticket(5));
  push(port, 1, {1}, ticket(1, 0, 0));  // expired
  push(port, 2, {2}, ticket(4));
  push(port, 3, {3}, ticket(2));
  push(port, 4, {4}, ticket(3));
  port.cancel(4);
  List slots(8);
  auto take_of = [&](std::uint32_t classes) {
    slots.resize(8);
    slots.resize(engine.take(0, 8, 1, 0, slots.data(), classes));
    return slots;
  };
  CHECK(take_of(0).empty());
  CHECK(take_of(0b01101) == (List{3, 2, 0}));
  CHECK(drain(port).empty());  // neither the expired nor the cancelled item is of these classes
  CHECK(port.depths(0) == (tickring::PerClass{0, 1, 0, 0, 1}));
  CHECK(refused([&] { take_of(0b100000); }));
  CHECK(take_of(0b00010).empty());
  CHECK(drain(port) == (Ended{{1, Outcome::kExpired}}));
  CHECK(take_of(0b11111).empty());
  CHECK(drain(port) == (Ended{{4, Outcome::kCancelled}}));
}

static void steps_change_with_whatever_an_engine_does_to_an_item() {
  World world(dimensions(1, 8));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  std::uint64_t last = world.arena.engine_progress(0).second;
  auto waiting_after_a_step = [&] {
    const auto [waiting, steps] = world.arena.engine_progress(0);
    CHECK(steps != last);
    last = steps;
    return waiting;
  };
  push(port, 0, {0, 1, 2}, ticket(1));
  push(port, 1, {3, 4}, ticket(2, 0, 0));  // expire once the clock says 1
  CHECK_EQUAL(world.arena.engine_progress(0).first, 5u);
  CHECK_EQUAL(take(engine, 2).size(), 2u);
  CHECK_EQUAL(waiting_after_a_step(), 5u);
  complete(engine, {0});
  CHECK_EQUAL(waiting_after_a_step(), 4u);
  CHECK(take(engine, 1) == (List{2}));
  CHECK_EQUAL(waiting_after_a_step(), 4u);
  CHECK(take(engine, 1, 1).empty());  // both expired
  CHECK_EQUAL(waiting_after_a_step(), 2u);
  push(port, 4, {5}, ticket(3));
  engine.discard(0);
  CHECK_EQUAL(waiting_after_a_step(), 2u);
  world.arena.reset_engine(0);
  CHECK_EQUAL(world.arena.engine_progress(0).first, 0u);
}

static void engine_without_progress_keeps_its_count_of_steps() {
  World world(dimensions(1, 8));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  using Progress = std::pair<std::uint64_t, std::uint64_t>;
  CHECK(world.arena.engine_progress(0) == (Progress{0, 0}));
  push(port, 0, {0, 1}, ticket(1));
  const Progress untouched = world.arena.engine_progress(0);
  CHECK(untouched == (Progress{2, 0}));  // it hangs before it looks
  look(engine);
  engine.wait(0, 0);
  CHECK_EQUAL(world.arena.engine_progress(0).first, 2u);
  CHECK(world.arena.engine_progress(0).second != untouched.second);  // it lets them wait for company
  CHECK_EQUAL(take(engine, 1).size(), 1u);
  const Progress running = world.arena.engine_progress(0);
  CHECK_EQUAL(running.first, 2u);
  look(engine);
  push(port, 1, {3}, ticket(2));
  look(engine);
  CHECK(world.arena.engine_progress(0) == (Progress{3, running.second}));  // the batch hangs
}

static void item_is_among_the_waiting_at_every_point_of_a_take() {
  World world(dimensions(1, 4));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 0, {0, 1}, ticket(1));
  push(port, 1, {2}, ticket(2));
  unsigned visited = 0;
  points.visit = [&] {
    ++visited;
    CHECK(world.arena.engine_progress(0).first >= 3);
  };
  CHECK_EQUAL(take(engine, 4).size(), 3u);
  points.visit = nullptr;
  CHECK(visited >= 4);  // two lanes, two points of a pop
  CHECK_EQUAL(world.arena.engine_progress(0).first, 3u);
}

static void front_end_without_progress_keeps_its_position() {
  World world(dimensions(1, 4));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  using Progress = std::pair<std::uint64_t, std::uint64_t>;
  push(port, 0, {0, 1, 2}, ticket(1));
  complete(engine, take(engine, 2));
  CHECK(world.arena.frontend_progress(0) == (Progress{2, 0}));
  complete(engine, take(engine, 1));
  CHECK(world.arena.frontend_progress(0) == (Progress{3, 0}));
  drain(port);
  CHECK(world.arena.frontend_progress(0) == (Progress{0, 3}));
}

// Every number that a reader sees is one that was published, though not all of one publication.
static void forecast_is_read_while_it_is_published() {
  World world(dimensions(1, 1, 2));
  constexpr std::uint64_t kPublications = kRounds / 10;
  const tickring::Forecast& forecast = world.arena.forecast(0, 1);
  std::atomic<bool> over{false};
  Thread reader([&] {
    std::uint64_t newest = 0;
    while (!over) {
      const std::uint32_t count = forecast.bucket_count.load(std::memory_order_acquire);
      CHECK(count == 0 || count == 3 || count == tickring::kMaxBuckets);
      for (std::uint32_t i = 0; i < count; ++i) {
        const std::uint64_t median = forecast.buckets[i].median_ns.load(std::memory_order_relaxed);
        CHECK_EQUAL(forecast.buckets[i].size.load(std::memory_order_relaxed), i + 1);
        CHECK(median >= 1 && median <= kPublications);
      }
      const std::uint64_t item_ns = forecast.item_ns.load(std::memory_order_relaxed);
      CHECK(item_ns >= newest);
      newest = item_ns;
      sched_yield();
    }
  });
  EnginePort engine = world.engine();
  for (std::uint64_t i = 1; i <= kPublications; ++i) {
    const std::size_t count = i % 2 == 0 ? 3 : tickring::kMaxBuckets;
    tickring::ForecastFacts facts{1, i, {}, {}, {}, {}};
    for (std::uint32_t bucket = 1; bucket <= count; ++bucket) facts.sizes.push_back(bucket);
    facts.median_ns = facts.high_ns = facts.floor_ns = std::vector<std::uint64_t>(count, i);
    engine.publish_forecast(1, facts);
  }
  over = true;
  reader.join();
  CHECK_EQUAL(forecast.item_ns.load(), kPublications);
  CHECK_EQUAL(world.arena.forecast(0, 0).bucket_count.load(), 0u);
}

static void forecast_of_the_wrong_shape_is_refused_whole() {
  World world(dimensions(1, 1));
  EnginePort engine = world.engine();
  const std::vector<std::uint64_t> one{7}, two{7, 8};
  engine.publish_forecast(0, {1, 2, {4}, one, one, one});
  CHECK(refused([&] { engine.publish_forecast(1, {9, 9, {}, {}, {}, {}}); }));
  CHECK(refused([&] { engine.publish_forecast(0, {9, 9, {4}, two, one, one}); }));
  CHECK(refused([&] { engine.publish_forecast(0, {9, 9, {4}, one, {}, one}); }));
  CHECK(refused([&] { engine.publish_forecast(0, {9, 9, {4}, one, one, two}); }));
  const std::vector<std::uint64_t> many(tickring::kMaxBuckets + 1, 9);
  CHECK(refused([&] { engine.publish_forecast(0, {9, 9, List(many.size(), 9), many, many, many}); }));
  const tickring::Forecast& forecast = world.arena.forecast(0, 0);
  CHECK_EQUAL(forecast.target.load(), 1u);
  CHECK_EQUAL(forecast.bucket_count.load(), 1u);
  CHECK_EQUAL(forecast.buckets[0].median_ns.load(), 7u);
}

static void only_lanes_of_served_models_are_looked_at() {
  World world(dimensions(1, 4, 64));
  FrontendPort port = world.frontend(0);
  for (const std::uint32_t model : {0u, 5u, 63u}) {
    const std::uint32_t slot = model % 4;
    CHECK(port.push(0, model, 1, &slot, 1, ticket(model)));
  }
  const auto seen = [&](std::uint64_t models) {
    EnginePort engine(world.arena, 0, world.engine_fds[0], world.frontend_fds, models);
    List found;
    engine.look([&](std::uint32_t model, std::uint32_t, const tickring::ClassBacklog&) { found.push_back(model); });
    CHECK_EQUAL(port.depths(0)[1], found.size());
    return found;
  };
  CHECK(seen(tickring::kAllModels) == (List{0, 5, 63}));
  CHECK(seen(1u << 5) == (List{5}));
  CHECK(seen(std::uint64_t{1} << 63 | 1u) == (List{0, 63}));
  CHECK(seen(2u).empty());
}

static void reset_engine_keeps_its_forecast_but_not_when_it_is_free() {
  World world(dimensions(1, 1));
  EnginePort engine = world.engine();
  engine.publish_forecast(0, {1, 2, {4}, {5}, {6}, {7}});
  engine.publish_free_at(8);
  CHECK_EQUAL(world.arena.free_at(0).load(), 8u);
  world.arena.reset_engine(0);
  CHECK_EQUAL(world.arena.free_at(0).load(), 0u);
  CHECK_EQUAL(world.arena.forecast(0, 0).item_ns.load(), 2u);
}

static void port_with_a_closed_eventfd_is_refused() {
  World world(dimensions(1, 1));
  const int closed = ::eventfd(0, 0);
  ::close(closed);
  const std::vector<int> bad{closed};
  CHECK(refused([&] { FrontendPort(world.arena, 0, closed, world.engine_fds); }));
  CHECK(refused([&] { FrontendPort(world.arena, 0, world.frontend_fds[0], bad); }));
  CHECK(refused([&] { EnginePort(world.arena, 0, closed, world.frontend_fds); }));
  CHECK(refused([&] { EnginePort(world.arena, 0, world.engine_fds[0], bad); }));
}

}  // namespace ring_test
