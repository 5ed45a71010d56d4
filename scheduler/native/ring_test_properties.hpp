// What a ring, a take and a completion promise, one step after the other. And what holds when the other
// side has gone mad and writes what it should not.
#pragma once

#include "ring_test_world.hpp"

namespace ring_test {

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

inline std::uint64_t available(SpscRing<LaneEntry>& ring) {
  bool corrupt = false;
  const std::uint64_t count = ring.available(corrupt);
  CHECK(!corrupt);
  return count;
}

static void spsc_is_fifo_and_publishes_what_was_written_before() {
  Ring ring;
  constexpr std::uint64_t kCount = kRounds;
  std::vector<std::uint64_t> payload(Ring::kCapacity);  // not atomic: the ring alone orders it
  Thread producer([&] {
    points.jitter = 1;
    auto end = ring.end();
    unsigned idle = 0;
    for (std::uint64_t i = 0; i < kCount;) {
      if (!end.stage(0, {i, static_cast<std::uint32_t>(i % Ring::kCapacity), 0})) {
        let_the_other_run(++idle);
        continue;
      }
      idle = 0;
      payload[i % Ring::kCapacity] = i;
      end.publish(1);
      ++i;
    }
  });
  auto end = ring.end();
  unsigned idle = 0;
  for (std::uint64_t i = 0; i < kCount;) {
    const std::uint64_t count = available(end);
    idle = count == 0 ? idle + 1 : 0;
    if (idle != 0) let_the_other_run(idle);
    for (std::uint64_t ahead = 0; ahead < count; ++ahead, ++i) {
      CHECK_EQUAL(end.peek(ahead).key, i);
      CHECK_EQUAL(payload[end.peek(ahead).slot], i);
    }
    end.pop(count);
  }
  producer.join();
}

static void full_is_a_value_and_positions_wrap_around() {
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

static void either_end_can_be_taken_over() {
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

static void parts_of_the_arena_are_aligned_and_apart() {
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
    CHECK(layout.frontend_stats >= layout.engine_stats + sizeof(tickring::EngineStats));
    CHECK(layout.forecasts >= layout.frontend_stats + 3 * sizeof(tickring::FrontendStats));
    CHECK(layout.notices >= layout.forecasts + 2 * sizeof(tickring::Forecast));
    CHECK(layout.request_cells >= layout.notices + sizeof(tickring::Notice));
    CHECK(aligned(&world.arena.request_cell(2, tickring::kNoModel, tickring::kNoClass)));
    CHECK(aligned(&world.arena.batch_cell(0, tickring::kOtherModels)));
    CHECK(aligned(&world.arena.held(2, 0, 0)));
    const auto after = [](const auto& last) { return reinterpret_cast<std::uintptr_t>(&last + 1); };
    const auto start = [](const auto& first) { return reinterpret_cast<std::uintptr_t>(&first); };
    CHECK(start(world.arena.batch_cell(0, 0)) >=
          after(world.arena.request_cell(2, tickring::kNoModel, tickring::kNoClass)));
    CHECK(start(world.arena.held(0, 0, 0)) >= after(world.arena.batch_cell(0, tickring::kOtherModels)));
    CHECK(start(world.arena.slot(0)) >= after(world.arena.held(2, 1, tickring::kClasses - 1)));
    CHECK(layout.slot_headers >= layout.held + 3 * layout.held_bytes());
    CHECK(layout.input_slab >= layout.slot_headers + layout.slots() * sizeof(SlotHeader));
    CHECK(layout.output_slab >= layout.input_slab + layout.slots() * layout.dims.input_row_bytes);
    CHECK(layout.total_bytes >= layout.output_slab + layout.slots() * layout.dims.output_row_bytes);
  }
}

static void take_follows_key_then_class_then_front_end() {
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
      const List taken = take(engine, 1 + random.below(9));
      CHECK(!taken.empty());
      for (const std::uint32_t slot : taken) CHECK_EQUAL(slot, expected[at++][3]);
    }
    CHECK(take(engine, 1).empty());
  }
}

static void cancelled_and_expired_items_end_without_being_taken() {
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
static void slot_that_came_back_fits_into_any_lane() {
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

static void exclusive_item_is_alone_with_its_request() {
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

static void item_of_an_older_epoch_is_dropped_unanswered() {
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

// The next front end has filled the header anew: only the entry still tells the two items apart.
static void item_of_an_older_epoch_is_dropped_though_its_slot_is_used_again() {
  World world(dimensions(1, 4));
  FrontendPort port = world.frontend(0);
  EnginePort engine = world.engine();
  push(port, 2, {0}, {1, 1, 50, 7, false});
  world.arena.epoch(0).fetch_add(1);
  FrontendPort next = world.frontend(0);
  push(next, 0, {0}, {9, 9, 90, 8, false});
  engine.look([](std::uint32_t, std::uint32_t cls, const tickring::ClassBacklog& backlog) {
    CHECK_EQUAL(backlog.depth, 1u);
    CHECK_EQUAL(backlog.deadline_ns, cls == 0 ? 90 : kNoDeadline);
  });
  CHECK(take(engine, 4) == (List{0}));
  CHECK_EQUAL(engine.stats().discarded.load(), 1u);
  complete(engine, {0});
  CHECK(drain(next) == (Ended{{0, Outcome::kResult}}));
}

// Everything a wrong index could reach is made to look like a cancelled item, so that following one
// shows as a completion, not only as a crash.
static void index_outside_the_arena_is_counted_and_not_followed() {
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

static void tail_beyond_capacity_is_counted_and_closes_the_lane() {
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

static void completion_of_another_front_ends_slot_is_ignored() {
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

static void caller_error_throws_and_hands_nothing_over() {
  World world(dimensions(2, 4));
  FrontendPort port = world.frontend(1);
  EnginePort engine = world.engine();
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

}  // namespace ring_test
