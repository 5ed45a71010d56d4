// What is counted of requests and batches: by property, under threads, and with a writer that is killed.
#pragma once

#include "records.hpp"
#include "ring_test_world.hpp"

namespace ring_test {

using tickring::BatchSums;
using tickring::ExemplarFacts;
using tickring::RequestRecorder;
using tickring::RequestSums;

inline std::uint64_t all(const std::uint64_t* counts, std::size_t length) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < length; ++i) sum += counts[i];
  return sum;
}

template <std::size_t N>
std::uint64_t all(const std::uint64_t (&counts)[N]) {
  return all(counts, N);
}

static void duration_is_counted_in_the_first_bucket_that_has_room() {
  World world(dimensions(1, 1));
  RequestRecorder recorder(world.arena, 0);
  std::uint64_t expected[tickring::kDurationBuckets]{}, total = 0;
  const auto record = [&](std::uint64_t ns, std::size_t bucket) {
    recorder.ended(1, 2, 0, static_cast<std::int64_t>(ns), static_cast<std::int64_t>(ns));
    ++expected[bucket];
    total += ns;
  };
  const std::size_t bounds = std::size(tickring::kDurationBoundsNs);
  for (std::size_t i = 0; i < bounds; ++i) {
    record(tickring::kDurationBoundsNs[i] - 1, i);
    record(tickring::kDurationBoundsNs[i], i);
    record(tickring::kDurationBoundsNs[i] + 1, i + 1);
  }
  record(0, 0);
  record(1'000'000'000'000, bounds);
  recorder.ended(1, 2, 0, -5, 0);
  expected[0] += 1;
  const RequestSums sums = tickring::request_sums(world.arena, 1, 2);
  for (std::size_t i = 0; i <= bounds; ++i) {
    CHECK_EQUAL(sums.request.counts[i], expected[i]);
    CHECK_EQUAL(sums.queue_wait.counts[i], expected[i]);
  }
  CHECK_EQUAL(sums.request.total, total);
  CHECK_EQUAL(sums.queue_wait.total, total);
}

static void requests_of_all_front_ends_add_up() {
  World world(dimensions(3, 1));
  for (std::uint32_t frontend = 0; frontend < 3; ++frontend) {
    RequestRecorder recorder(world.arena, frontend);
    recorder.ended(0, frontend, 0, 60'000, 10);
    recorder.ended(0, 0, 4, 60'000, 10);
    recorder.refused(tickring::kNoModel, tickring::kNoClass, 16, frontend);
    recorder.refused(0, 0, 3, tickring::kNoReason);
  }
  const RequestSums of_first = tickring::request_sums(world.arena, 0, 0);
  CHECK_EQUAL(of_first.codes[0], 1u);
  CHECK_EQUAL(of_first.codes[4], 3u);
  CHECK_EQUAL(of_first.codes[3], 3u);
  CHECK_EQUAL(all(of_first.codes), 7u);
  CHECK_EQUAL(all(of_first.shed), 0u);
  CHECK_EQUAL(of_first.request.counts[1], 4u);
  CHECK_EQUAL(of_first.queue_wait.counts[0], 4u);
  CHECK_EQUAL(of_first.request.total, 240'000u);
  CHECK_EQUAL(all(tickring::request_sums(world.arena, 0, 2).codes), 1u);
  CHECK_EQUAL(all(tickring::request_sums(world.arena, 1, 0).codes), 0u);
  const RequestSums of_none = tickring::request_sums(world.arena, tickring::kNoModel, tickring::kNoClass);
  CHECK_EQUAL(of_none.codes[16], 3u);
  CHECK_EQUAL(all(of_none.request.counts), 0u);
  for (std::uint32_t reason = 0; reason < 3; ++reason) CHECK_EQUAL(of_none.shed[reason], 1u);
}

static void request_without_a_dispatch_has_no_queue_wait() {
  World world(dimensions(1, 1));
  RequestRecorder(world.arena, 0).ended(0, 0, 14, 500, -1);
  const RequestSums sums = tickring::request_sums(world.arena, 0, 0);
  CHECK_EQUAL(all(sums.request.counts), 1u);
  CHECK_EQUAL(all(sums.queue_wait.counts), 0u);
  CHECK_EQUAL(sums.queue_wait.total, 0u);
}

static void what_was_counted_outlives_a_reset_and_what_was_there_does_not() {
  World world(dimensions(2, 4, 2));
  for (std::uint32_t frontend = 0; frontend < 2; ++frontend) {
    world.frontend(frontend).publish_held(1, 4, 3);
    RequestRecorder(world.arena, frontend).ended(0, 0, 0, 1, 1);
  }
  EnginePort engine = world.engine();
  engine.count_batch(1, 3, 4, 100);
  engine.publish_in_flight(2);
  CHECK_EQUAL(world.arena.held_items(1, 4), 6u);
  CHECK_EQUAL(world.arena.held_items(0, 4), 0u);
  CHECK_EQUAL(world.arena.in_flight(0).load(), 2u);
  world.arena.reset_frontend(0);
  world.arena.reset_engine(0);
  CHECK_EQUAL(world.arena.held_items(1, 4), 3u);
  CHECK_EQUAL(world.arena.in_flight(0).load(), 0u);
  CHECK_EQUAL(all(tickring::request_sums(world.arena, 0, 0).codes), 2u);
  CHECK_EQUAL(all(tickring::batch_sums(world.arena, 1).sizes.counts), 1u);
}

static void bucket_keeps_its_position_and_those_without_one_share_the_last() {
  World world(dimensions(1, 1));
  EnginePort engine = world.engine();
  for (std::uint32_t lap = 0; lap < 2; ++lap) {
    for (std::uint32_t bucket = tickring::kMaxBuckets + 2; bucket >= 1; --bucket) {
      engine.count_batch(0, bucket, bucket, 70'000 * bucket);
    }
  }
  const BatchSums sums = tickring::batch_sums(world.arena, 0);
  CHECK_EQUAL(sums.buckets.size(), tickring::kMaxBuckets + 1u);
  for (std::uint32_t i = 0; i < tickring::kMaxBuckets; ++i) {
    const std::uint32_t bucket = tickring::kMaxBuckets + 2 - i;
    CHECK_EQUAL(sums.buckets[i].bucket, bucket);
    CHECK_EQUAL(all(sums.buckets[i].compute.counts), 2u);
    CHECK_EQUAL(sums.buckets[i].compute.total, 140'000u * bucket);
  }
  CHECK_EQUAL(sums.buckets.back().bucket, 0u);
  CHECK_EQUAL(all(sums.buckets.back().compute.counts), 4u);
  CHECK_EQUAL(sums.buckets.back().compute.total, 140'000u * 3);
}

static void batches_of_all_engines_add_up_by_bucket() {
  tickring::Dimensions dims = dimensions(1, 1, 3);
  dims.engines = 2;
  World world(dims);
  // Model 0 counts in row 2, model 1 in that of all others, and model 2 in the row of its own number.
  EnginePort first(world.arena, 0, world.engine_fds[0], world.frontend_fds, tickring::kAllModels,
                   {2, tickring::kOtherModels});
  EnginePort second(world.arena, 1, world.engine_fds[1], world.frontend_fds);
  first.count_batch(0, 3, 4, 60'000);
  first.count_batch(0, 8, 8, 60'000);
  second.count_batch(2, 8, 8, -1);
  second.count_batch(2, 1, 4, 60'000);
  second.count_batch(2, 5'000, 5'000, 60'000);
  first.count_batch(2, 2, 2, 60'000);
  first.count_batch(1, 2, 2, 60'000);
  const BatchSums sums = tickring::batch_sums(world.arena, 2);
  CHECK_EQUAL(sums.padding, 4u);
  CHECK_EQUAL(sums.sizes.total, 5'022u);
  CHECK_EQUAL(all(sums.sizes.counts), 6u);
  CHECK_EQUAL(sums.sizes.counts[0], 1u);
  CHECK_EQUAL(sums.sizes.counts[1], 1u);
  CHECK_EQUAL(sums.sizes.counts[2], 1u);
  CHECK_EQUAL(sums.sizes.counts[3], 2u);
  CHECK_EQUAL(sums.sizes.counts[tickring::kBatchSizeBuckets - 1], 1u);
  std::map<std::uint32_t, std::uint64_t> batches;
  for (const auto& each : sums.buckets) batches[each.bucket] = all(each.compute.counts);
  CHECK((batches == std::map<std::uint32_t, std::uint64_t>{{2, 1}, {4, 2}, {8, 2}, {5'000, 1}}));
  CHECK_EQUAL(tickring::batch_sums(world.arena, tickring::kOtherModels).sizes.total, 2u);
  CHECK(tickring::batch_sums(world.arena, 0).buckets.empty());
}

static void count_outside_the_arena_is_refused_whole() {
  World world(dimensions(1, 1));
  CHECK(refused([&] { RequestRecorder(world.arena, 1); }));
  RequestRecorder recorder(world.arena, 0);
  EnginePort engine = world.engine();
  CHECK(refused([&] { recorder.ended(tickring::kRequestRows, 0, 0, 1, 1); }));
  CHECK(refused([&] { recorder.ended(0, tickring::kRequestClasses, 0, 1, 1); }));
  CHECK(refused([&] { recorder.ended(0, 0, tickring::kCodes, 1, 1); }));
  CHECK(refused([&] { recorder.refused(0, 0, 0, tickring::kNoReason + 1); }));
  CHECK(refused([&] { recorder.exemplar(tickring::kRequestRows, 0, {}); }));
  CHECK(refused([&] { engine.count_batch(1, 1, 1, 1); }));
  CHECK(refused([&] { engine.count_batch(0, 1, 0, 1); }));
  CHECK(refused([&] { world.frontend(0).publish_held(1, 0, 1); }));
  CHECK(refused([&] { world.frontend(0).publish_held(0, tickring::kClasses, 1); }));
  const std::vector<std::uint32_t> bad{tickring::kBatchRows}, long_list{0, 1};
  const auto with = [&](const std::vector<std::uint32_t>& rows) {
    return [&world, &rows] {
      EnginePort(world.arena, 0, world.engine_fds[0], world.frontend_fds, tickring::kAllModels, rows);
    };
  };
  CHECK(refused(with(bad)));
  CHECK(refused(with(long_list)));
  const RequestSums sums = tickring::request_sums(world.arena, 0, 0);
  CHECK_EQUAL(all(sums.codes) + all(sums.shed) + all(sums.request.counts), 0u);
  CHECK_EQUAL(all(tickring::batch_sums(world.arena, 0).sizes.counts), 0u);
}

static void newest_exemplar_of_all_front_ends_is_told() {
  World world(dimensions(2, 1));
  RequestRecorder first(world.arena, 0), second(world.arena, 1);
  first.exemplar(0, 0, {1, 2, 60'000, 10});
  second.exemplar(0, 0, {3, 4, 70'000, 20});
  first.exemplar(0, 0, {5, 6, 80'000, 15});
  first.exemplar(0, 0, {7, 8, 20'000'000'000, 5});
  const RequestSums sums = tickring::request_sums(world.arena, 0, 0);
  CHECK_EQUAL(sums.exemplars[1].trace_high, 3u);
  CHECK_EQUAL(sums.exemplars[1].trace_low, 4u);
  CHECK_EQUAL(sums.exemplars[1].value_ns, 70'000u);
  CHECK_EQUAL(sums.exemplars[tickring::kDurationBuckets - 1].trace_high, 7u);
  CHECK_EQUAL(sums.exemplars[0].at_ns, 0u);
  CHECK_EQUAL(all(sums.request.counts), 0u);
}

static void exemplar_is_whole_or_not_there() {
  World world(dimensions(1, 1));
  std::atomic<bool> over{false};
  std::uint64_t found = 0;
  Thread reader([&] {
    points.jitter = 3;
    unsigned idle = 0;
    while (!over || found == 0) {
      const ExemplarFacts facts = tickring::request_sums(world.arena, 0, 0).exemplars[0];
      CHECK_EQUAL(facts.trace_high, facts.trace_low);
      CHECK_EQUAL(facts.trace_high, facts.at_ns);
      found += facts.at_ns != 0;
      let_the_other_run(++idle);
    }
  });
  points.jitter = 5;
  RequestRecorder recorder(world.arena, 0);
  for (std::uint64_t i = 1; i <= kRounds / 10; ++i) recorder.exemplar(0, 0, {i, i, i % 100, i});
  over = true;
  reader.join();
}

static void counts_never_go_back_for_a_reader() {
  World world(dimensions(2, 1));
  std::atomic<bool> over{false};
  Thread reader([&] {
    std::uint64_t requests = 0, ns = 0, batches = 0;
    unsigned idle = 0;
    while (!over) {
      const RequestSums sums = tickring::request_sums(world.arena, 0, 0);
      CHECK(all(sums.request.counts) >= requests);
      CHECK(sums.request.total >= ns);
      requests = all(sums.request.counts), ns = sums.request.total;
      const std::uint64_t now = all(tickring::batch_sums(world.arena, 0).sizes.counts);
      CHECK(now >= batches);
      batches = now;
      let_the_other_run(++idle);
    }
  });
  Thread other([&] {
    RequestRecorder recorder(world.arena, 1);
    for (std::int64_t i = 0; i < kRounds; ++i) recorder.ended(0, 0, 0, i, i);
  });
  RequestRecorder recorder(world.arena, 0);
  EnginePort engine = world.engine();
  for (std::uint32_t i = 1; i <= kRounds; ++i) {
    recorder.ended(0, 0, 0, i, i);
    engine.count_batch(0, 1, 1 + i % 70, i);
  }
  other.join();
  over = true;
  reader.join();
  CHECK_EQUAL(all(tickring::request_sums(world.arena, 0, 0).request.counts), 2u * kRounds);
  CHECK_EQUAL(all(tickring::batch_sums(world.arena, 0).sizes.counts), std::uint64_t{kRounds});
}

static void recorder_killed_anywhere_leaves_counts_that_go_on() {
  bool survived = false;
  for (int point = 1; !survived; ++point) {
    CHECK(point < 20);
    World world(dimensions(1, 1));
    RequestRecorder(world.arena, 0).exemplar(0, 0, {1, 1, 1, 1});
    Process process([&world, point] {
      points.fatal_in = point;
      RequestRecorder recorder(world.arena, 0);
      recorder.ended(0, 0, 0, 100, 50);
      recorder.exemplar(0, 0, {2, 2, 2, 2});
    });
    survived = process.survived();
    const RequestSums left = tickring::request_sums(world.arena, 0, 0);
    CHECK(left.codes[0] <= 1 && all(left.request.counts) <= left.codes[0]);
    CHECK_EQUAL(left.exemplars[0].trace_high, left.exemplars[0].trace_low);
    CHECK_EQUAL(left.exemplars[0].trace_high, left.exemplars[0].at_ns);  // one of the two, or none

    RequestRecorder successor(world.arena, 0);
    successor.ended(0, 0, 0, 100, 50);
    successor.exemplar(0, 0, {3, 3, 3, 3});
    const RequestSums sums = tickring::request_sums(world.arena, 0, 0);
    CHECK_EQUAL(sums.codes[0], left.codes[0] + 1);
    CHECK_EQUAL(all(sums.request.counts), all(left.request.counts) + 1);
    CHECK_EQUAL(sums.exemplars[0].trace_low, 3u);
  }
}

}  // namespace ring_test
