// Tests of the ring without Python: by property, under threads, and with processes that are killed.
//
//   g++ -std=c++17 -pthread ring_test.cpp -o ring_test && ./ring_test [part of a test's name]
//
// Prints one line per test; exits 1 if one failed. tests/scheduler/native/test_native_build.py runs it
// plain and under TSan, ASan and UBSan. TSan follows threads only: what two processes do to each other
// is the same code over the same kind of memory, which is why the threads here share an arena too.
#include "ring_test_books.hpp"
#include "ring_test_deaths.hpp"
#include "ring_test_properties.hpp"
#include "ring_test_races.hpp"
#include "ring_test_stats.hpp"

namespace ring_test {

struct Test {
  const char* name;
  void (*run)();
};

// The tests are static functions, so the compiler warns of one that is missing here.
#define TEST(function) {#function, function}
constexpr Test kTests[] = {
    TEST(spsc_is_fifo_and_publishes_what_was_written_before),
    TEST(full_is_a_value_and_positions_wrap_around),
    TEST(either_end_can_be_taken_over),
    TEST(parts_of_the_arena_are_aligned_and_apart),
    TEST(take_follows_key_then_class_then_front_end),
    TEST(cancelled_and_expired_items_end_without_being_taken),
    TEST(exclusive_item_is_alone_with_its_request),
    TEST(item_of_an_older_epoch_is_dropped_unanswered),
    TEST(item_of_an_older_epoch_is_dropped_though_its_slot_is_used_again),
    TEST(index_outside_the_arena_is_counted_and_not_followed),
    TEST(tail_beyond_capacity_is_counted_and_closes_the_lane),
    TEST(completion_of_another_front_ends_slot_is_ignored),
    TEST(caller_error_throws_and_hands_nothing_over),
    TEST(slot_that_came_back_fits_into_any_lane),
    TEST(front_end_counts_what_it_admits_and_how_that_ends),
    TEST(books_of_a_front_end_close_when_its_partition_is_reset),
    TEST(books_of_an_engine_close_when_its_rings_are_reset),
    TEST(item_expired_in_a_batch_is_completed_and_one_expired_before_is_not),
    TEST(completion_that_makes_no_sense_is_counted),
    TEST(slot_that_cannot_be_handed_back_leaves_its_batch),
    TEST(books_with_too_many_ends_stay_closed),
    TEST(backlog_sums_over_front_ends_and_models),
    TEST(lane_that_makes_no_sense_counts_for_nothing),
    TEST(take_leaves_the_lanes_of_other_classes_alone),
    TEST(steps_change_with_whatever_an_engine_does_to_an_item),
    TEST(engine_without_progress_keeps_its_count_of_steps),
    TEST(item_is_among_the_waiting_at_every_point_of_a_take),
    TEST(front_end_without_progress_keeps_its_position),
    TEST(forecast_is_read_while_it_is_published),
    TEST(forecast_of_the_wrong_shape_is_refused_whole),
    TEST(reset_engine_keeps_its_forecast_but_not_when_it_is_free),
    TEST(only_lanes_of_served_models_are_looked_at),
    TEST(port_with_a_closed_eventfd_is_refused),
    TEST(push_at_any_point_of_a_wait_ends_it),
    TEST(engine_may_fall_asleep_at_any_point_of_a_push),
    TEST(completion_at_any_point_of_arming_is_noticed),
    TEST(every_slot_comes_back_once_with_its_own_answer),
    TEST(gate_never_loses_a_wake_up),
    TEST(completion_and_arming_front_end_never_miss_each_other),
    TEST(push_and_waiting_engine_never_miss_each_other),
    TEST(batch_completes_while_its_engine_waits),
    TEST(two_processes_exchange_slots),
    TEST(producer_killed_anywhere_leaves_whole_requests),
    TEST(wake_up_outlives_a_producer_killed_before_its_write),
    TEST(engine_killed_anywhere_hands_nothing_back_twice),
    TEST(duration_is_counted_in_the_first_bucket_that_has_room),
    TEST(requests_of_all_front_ends_add_up),
    TEST(request_without_a_dispatch_has_no_queue_wait),
    TEST(what_was_counted_outlives_a_reset_and_what_was_there_does_not),
    TEST(bucket_keeps_its_position_and_those_without_one_share_the_last),
    TEST(batches_of_all_engines_add_up_by_bucket),
    TEST(count_outside_the_arena_is_refused_whole),
    TEST(newest_exemplar_of_all_front_ends_is_told),
    TEST(exemplar_is_whole_or_not_there),
    TEST(counts_never_go_back_for_a_reader),
    TEST(recorder_killed_anywhere_leaves_counts_that_go_on),
};

inline bool passes(const Test& test) {
  const std::uint64_t start = tickring::now_ns();
  std::string failure;
  points = {};
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

}  // namespace ring_test

int main(int argc, char** argv) {
  bool all = true;
  for (const ring_test::Test& test : ring_test::kTests) {
    if (argc < 2 || std::strstr(test.name, argv[1]) != nullptr) all = ring_test::passes(test) && all;
  }
  return all ? 0 : 1;
}
