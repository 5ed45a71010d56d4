// What lies where in the arena: plain structs, their sizes, and the offsets between them. The layout
// depends on nothing but `Dimensions`, which the header carries.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>

#include "counters.hpp"
#include "stats.hpp"

namespace tickring {

inline constexpr std::uint64_t kMagic = 0x474e49524b434954;  // "TICKRING", little-endian
inline constexpr std::uint32_t kLayoutVersion = 4;

// How an item ended. Written by the engine before it hands the slot back.
enum class Outcome : std::uint8_t {
  kResult = 1,     // the output row holds the answer
  kError = 2,      // the model raised on this item
  kNonFinite = 3,  // the model answered NaN or Inf, which it must not
  kExpired = 4,    // its deadline passed while it was queued
  kCancelled = 5,  // its caller left while it was queued
};
inline constexpr std::size_t kOutcomes = 6;  // index 0 is never an outcome
// A front end's own seventh: it ended the item itself, because whoever held it died. Never in a slot.
inline constexpr std::size_t kLost = kOutcomes;

// Positions only grow; entry i of a ring lives at i mod capacity.
struct RingControl {
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> tail;  // written by the producer only
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> head;  // written by the consumer only
};
static_assert(sizeof(RingControl) == 2 * kNoFalseSharing);

struct LaneEntry {
  std::uint64_t key;   // ns, CLOCK_MONOTONIC: enqueue time + slack of the class
  std::uint32_t slot;   // index over all partitions
  std::uint32_t epoch;  // of the partition when the item was pushed
};
static_assert(sizeof(LaneEntry) == 16);

// `sleeping` is the consumer's promise to block on its eventfd unless it sees new work.
struct GateState {
  alignas(kNoFalseSharing) std::atomic<std::uint32_t> sleeping;  // written by the consumer only
};
static_assert(sizeof(GateState) == kNoFalseSharing);

// Counts pushes of one front end to one engine, over all lanes between them: the one word an engine
// has to watch per front end, however many lanes there are.
struct Doorbell {
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> pushes;  // written by the front end only
};
static_assert(sizeof(Doorbell) == kNoFalseSharing);

// The slot's owner writes it; a push hands ownership over, a completion hands it back.
struct SlotHeader {
  // -- line 0: by the front end, before the push ------------------------------------------
  alignas(kLine) std::uint64_t enqueued_ns;
  std::uint64_t deadline_ns;  // kNoDeadline: none
  std::uint32_t request;      // the front end's own number; the rows of one request share it
  std::uint8_t exclusive;     // 1: shares a batch with rows of its own request only
  // The one field of the non-owner: the front end sets it while the engine owns the slot.
  std::atomic<std::uint8_t> cancelled;
  std::uint8_t reserved0[42];
  // -- line 1: by the engine, before the completion ---------------------------------------
  alignas(kLine) std::uint64_t dispatched_ns;
  std::uint64_t compute_start_ns;
  std::uint64_t compute_end_ns;
  std::uint64_t batch;  // number of the batch in its engine's life
  std::uint32_t batch_size;
  std::uint32_t batch_bucket;
  std::uint8_t outcome;
  std::uint8_t reserved1[23];
};
static_assert(sizeof(SlotHeader) == 128);
static_assert(offsetof(SlotHeader, dispatched_ns) == kLine);

// The books of one front end. They outlive it, and no count ever goes back. Written by the front end
// alone; between its death and the next start, when nobody else writes, by the supervisor.
struct FrontendStats {
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> admitted;  // items pushed
  std::atomic<std::uint64_t> ended[kOutcomes + 1];               // by Outcome, and kLost
  std::atomic<std::uint64_t> corrupt;  // completions and rings that failed a bounds check
  std::atomic<std::uint64_t> free_slots;

  // Items admitted and not ended. 0 rather than wrapped around if an engine gone mad ended one twice.
  std::uint64_t open() const {
    const std::uint64_t in = admitted.load(std::memory_order_relaxed), out = sum(ended);
    return in > out ? in - out : 0;
  }
};
static_assert(sizeof(FrontendStats) == kNoFalseSharing);

// The books of one engine, kept like those of a front end.
struct EngineStats {
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> taken;  // into a batch
  std::atomic<std::uint64_t> completed;                       // handed back out of a batch
  std::atomic<std::uint64_t> lost;                            // died with the engine in a batch
  std::atomic<std::uint64_t> ended[kOutcomes];                // by Outcome, in a batch or before
  std::atomic<std::uint64_t> discarded;                       // of a dead front end, dropped unanswered
  std::atomic<std::uint64_t> batches;
  std::atomic<std::uint64_t> corrupt;  // entries or indexes that failed a bounds check
  std::atomic<std::uint64_t> sleeps;
  std::atomic<std::uint64_t> looks;  // with or without anything queued; see Arena::engine_progress

  // taken == completed + in_batches() + lost. Another process may read the three at different
  // moments: never below 0.
  std::uint64_t in_batches() const {
    const std::uint64_t out =
        completed.load(std::memory_order_relaxed) + lost.load(std::memory_order_relaxed);
    const std::uint64_t in = taken.load(std::memory_order_relaxed);
    return in > out ? in - out : 0;
  }
};
static_assert(sizeof(EngineStats) == kNoFalseSharing);

// What one batch size costs, as the engine measured it.
struct ForecastBucket {
  std::atomic<std::uint32_t> size;
  std::uint32_t reserved;
  std::atomic<std::uint64_t> median_ns;
  std::atomic<std::uint64_t> high_ns;
  std::atomic<std::uint64_t> floor_ns;
};
static_assert(sizeof(ForecastBucket) == 32);

// What an engine expects of one model. Written by the engine; front ends and the supervisor read it
// without a lock, so a reader may see parts of two publications. That is harmless: each number is
// whole, two publications differ little, and all of it is an estimate.
struct Forecast {
  alignas(kNoFalseSharing) std::atomic<std::uint32_t> target;  // the target size, in items
  std::atomic<std::uint32_t> bucket_count;
  std::atomic<std::uint64_t> item_ns;  // of engine time that one queued item costs
  alignas(kNoFalseSharing) ForecastBucket buckets[kMaxBuckets];
};
static_assert(sizeof(Forecast) == kNoFalseSharing + kMaxBuckets * sizeof(ForecastBucket));

// What an engine tells all front ends, beside its forecasts.
struct Notice {
  // The instant at which an instance is expected to be free; 0: one is.
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> free_at_ns;
  // A bit for each model that it serves: the lanes of the others are empty, and nobody need look.
  std::atomic<std::uint64_t> models;
  std::atomic<std::uint64_t> in_flight;  // batches; for whoever watches
};
static_assert(sizeof(Notice) == kNoFalseSharing);
static_assert(kMaxModels == 64);  // bits of Notice::models
inline constexpr std::uint64_t kAllModels = ~std::uint64_t{0};

// Calls with each model whose bit is set, below `models`.
template <typename Call>
void for_each_model(std::uint64_t bits, std::uint32_t models, Call call) {
  if (models < kMaxModels) bits &= (std::uint64_t{1} << models) - 1;
  for (; bits != 0; bits &= bits - 1) call(static_cast<std::uint32_t>(__builtin_ctzll(bits)));
}

struct Dimensions {
  std::uint32_t frontends = 1;
  std::uint32_t engines = 1;
  std::uint32_t models = 1;
  std::uint32_t slots_per_frontend = 1024;
  std::uint64_t input_row_bytes = 0;   // room for one item's inputs; rounded up to kLine
  std::uint64_t output_row_bytes = 0;  // room for one item's outputs; rounded up to kLine
};

// Layout of everything behind the header, as byte offsets from the start of the arena.
struct Layout {
  Dimensions dims;
  std::uint64_t ring_capacity = 0;  // of every lane and completion ring: a power of two
  std::uint64_t lanes = 0;
  std::uint64_t completions = 0;
  std::uint64_t doorbells = 0;
  std::uint64_t engine_gates = 0;
  std::uint64_t frontend_gates = 0;
  std::uint64_t engine_stats = 0;
  std::uint64_t frontend_stats = 0;
  std::uint64_t forecasts = 0;
  std::uint64_t notices = 0;
  std::uint64_t request_cells = 0;
  std::uint64_t batch_cells = 0;
  std::uint64_t held = 0;
  std::uint64_t slot_headers = 0;
  std::uint64_t input_slab = 0;
  std::uint64_t output_slab = 0;
  std::uint64_t total_bytes = 0;

  // Both rounded up, so that the control of the next ring is aligned however small the rings are.
  std::uint64_t lane_bytes() const {
    return sizeof(RingControl) + round_up(ring_capacity * sizeof(LaneEntry), kNoFalseSharing);
  }
  std::uint64_t completion_bytes() const {
    return sizeof(RingControl) + round_up(ring_capacity * sizeof(std::uint32_t), kNoFalseSharing);
  }
  // The items that a front end holds at its entrance, by model and class.
  std::uint64_t held_bytes() const {
    return round_up(std::uint64_t{dims.models} * kClasses * sizeof(std::uint64_t), kNoFalseSharing);
  }
  std::uint64_t slots() const { return std::uint64_t{dims.frontends} * dims.slots_per_frontend; }
  std::uint64_t lane_count() const {
    return std::uint64_t{dims.engines} * dims.frontends * dims.models * kClasses;
  }
  std::uint64_t lane_index(std::uint32_t engine, std::uint32_t frontend, std::uint32_t model,
                           std::uint32_t cls) const {
    return ((std::uint64_t{engine} * dims.frontends + frontend) * dims.models + model) * kClasses + cls;
  }
  std::uint64_t pair_index(std::uint32_t engine, std::uint32_t frontend) const {
    return std::uint64_t{engine} * dims.frontends + frontend;
  }

  static constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
  }

  static void check(const char* name, std::uint64_t value, std::uint64_t low, std::uint64_t high) {
    if (value < low || value > high) {
      throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", allowed is " +
                                  std::to_string(low) + " to " + std::to_string(high));
    }
  }

  // Throws std::invalid_argument naming the dimension that is out of range.
  static Layout of(Dimensions dims) {
    check("frontends", dims.frontends, 1, kMaxFrontends);
    check("engines", dims.engines, 1, kMaxEngines);
    check("models", dims.models, 1, kMaxModels);
    check("slots_per_frontend", dims.slots_per_frontend, 1, kMaxSlotsPerFrontend);
    check("input_row_bytes", dims.input_row_bytes, 1, kMaxRowBytes);
    check("output_row_bytes", dims.output_row_bytes, 1, kMaxRowBytes);
    dims.input_row_bytes = round_up(dims.input_row_bytes, kLine);
    dims.output_row_bytes = round_up(dims.output_row_bytes, kLine);

    Layout layout;
    layout.dims = dims;
    // A ring that can hold every slot of its front end is never full for the owner of a free slot.
    layout.ring_capacity = 1;
    while (layout.ring_capacity < dims.slots_per_frontend) layout.ring_capacity *= 2;

    std::uint64_t at = kPage;  // behind the header
    auto place = [&at](std::uint64_t bytes, std::uint64_t alignment) {
      at = round_up(at, alignment);
      const std::uint64_t start = at;
      at += bytes;
      return start;
    };
    const std::uint64_t pairs = std::uint64_t{dims.engines} * dims.frontends;
    layout.lanes = place(layout.lane_count() * layout.lane_bytes(), kNoFalseSharing);
    layout.completions = place(pairs * layout.completion_bytes(), kNoFalseSharing);
    layout.doorbells = place(pairs * sizeof(Doorbell), kNoFalseSharing);
    layout.engine_gates = place(dims.engines * sizeof(GateState), kNoFalseSharing);
    layout.frontend_gates = place(dims.frontends * sizeof(GateState), kNoFalseSharing);
    layout.engine_stats = place(dims.engines * sizeof(EngineStats), kNoFalseSharing);
    layout.frontend_stats = place(dims.frontends * sizeof(FrontendStats), kNoFalseSharing);
    layout.forecasts =
        place(std::uint64_t{dims.engines} * dims.models * sizeof(Forecast), kNoFalseSharing);
    layout.notices = place(dims.engines * sizeof(Notice), kNoFalseSharing);
    // Mostly never touched: a page that nobody counts in takes no memory.
    layout.request_cells = place(
        std::uint64_t{dims.frontends} * kRequestRows * kRequestClasses * sizeof(RequestCell), kNoFalseSharing);
    layout.batch_cells =
        place(std::uint64_t{dims.engines} * kBatchRows * sizeof(BatchCell), kNoFalseSharing);
    layout.held = place(dims.frontends * layout.held_bytes(), kNoFalseSharing);
    layout.slot_headers = place(layout.slots() * sizeof(SlotHeader), kNoFalseSharing);
    // Pages of their own, so that a device driver can register the slabs and nothing else.
    layout.input_slab = place(layout.slots() * dims.input_row_bytes, kPage);
    layout.output_slab = place(layout.slots() * dims.output_row_bytes, kPage);
    layout.total_bytes = round_up(at, kPage);
    return layout;
  }
};

}  // namespace tickring
