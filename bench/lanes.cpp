// Nanoseconds per item of the lanes, beside the floor: the same bytes written and read in private
// memory, without any synchronisation. Prints one JSON object. Built and run by test_lanes.py.
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "ports.hpp"

using namespace tickring;

namespace {

constexpr std::uint32_t kSlots = 1024;
constexpr std::uint32_t kBatch = 32;
constexpr int kRounds = 20000;

template <typename Work>
double ns_per_item(Work work) {
  const std::uint64_t start = now_ns();
  work();
  return static_cast<double>(now_ns() - start) / (double{kRounds} * kBatch);
}

}  // namespace

int main() {
  Dimensions dims;
  dims.slots_per_frontend = kSlots;
  dims.input_row_bytes = dims.output_row_bytes = 64;
  const std::uint64_t size = Layout::of(dims).total_bytes;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  const Arena arena = Arena::format(memory, size, dims);
  const int engine_fd = eventfd(0, EFD_NONBLOCK), frontend_fd = eventfd(0, EFD_NONBLOCK);
  FrontendPort frontend(arena, 0, frontend_fd, {engine_fd});
  EnginePort engine(arena, 0, engine_fd, {frontend_fd});

  std::vector<std::uint32_t> slots(kBatch);
  std::vector<std::uint8_t> outcomes(kBatch, 1);
  std::uint64_t sum = 0, push_ns = 0, take_ns = 0, complete_ns = 0;
  std::uint64_t key = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t first = static_cast<std::uint64_t>(round) * kBatch % kSlots;
    std::uint64_t at = now_ns();
    for (std::uint32_t i = 0; i < kBatch; ++i) {
      const std::uint32_t slot = static_cast<std::uint32_t>(first + i);
      frontend.push(0, 0, i % kClasses, &slot, 1, Ticket{++key, key, kNoDeadline, i, false});
    }
    push_ns += now_ns() - at;
    at = now_ns();
    const std::size_t taken = engine.take(0, kBatch, 1, 0, slots.data());
    take_ns += now_ns() - at;
    if (taken != kBatch) return 1;
    at = now_ns();
    engine.complete(slots.data(), outcomes.data(), taken, BatchFacts{});
    if (frontend.drain([&sum](std::uint32_t slot, tickring::Outcome, const SlotHeader& header) {
          sum += slot + header.batch_size;
        }) != kBatch) {
      return 1;
    }
    complete_ns += now_ns() - at;
  }

  // The floor: an entry and a header per item, written, then read, by one thread alone.
  std::vector<LaneEntry> entries(kSlots);
  std::vector<SlotHeader> headers(kSlots);
  const double floor_write = ns_per_item([&] {
    for (int round = 0; round < kRounds; ++round) {
      for (std::uint32_t i = 0; i < kBatch; ++i) {
        const std::uint32_t at = (static_cast<std::uint32_t>(round) * kBatch + i) % kSlots;
        SlotHeader& header = headers[at];
        header.enqueued_ns = header.deadline_ns = ++key;
        header.request = i;
              header.exclusive = 0;
        entries[at] = LaneEntry{key, at, 0};
        asm volatile("" ::: "memory");  // each item reaches memory, as a published one must
      }
    }
  });
  const double floor_read = ns_per_item([&] {
    for (int round = 0; round < kRounds; ++round) {
      for (std::uint32_t i = 0; i < kBatch; ++i) {
        const std::uint32_t at = (static_cast<std::uint32_t>(round) * kBatch + i) % kSlots;
        sum += headers[entries[at].slot].deadline_ns + entries[at].key;
        asm volatile("" ::: "memory");
      }
    }
  });
  const double items = double{kRounds} * kBatch;
  std::printf("{\"push_ns\":%.2f,\"take_ns\":%.2f,\"complete_and_drain_ns\":%.2f,"
              "\"floor_write_ns\":%.2f,\"floor_read_ns\":%.2f,\"sum\":%llu}\n",
              static_cast<double>(push_ns) / items, static_cast<double>(take_ns) / items,
              static_cast<double>(complete_ns) / items, floor_write, floor_read,
              static_cast<unsigned long long>(sum));
  return 0;
}
