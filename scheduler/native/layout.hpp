// What lies where in the arena: plain structs, their sizes, and the offsets between them.
//
// One arena is one shared mapping (a memfd, or anonymous memory for threads). Every process maps it
// at an address of its own, so nothing in it is a pointer: only indexes and offsets, and each is
// checked before use. The layout depends on nothing but `Dimensions`, which the header carries.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace tickring {

// Two lines, not one: x86 prefetches lines in pairs, so neighbours closer than this still ping-pong.
inline constexpr std::size_t kLine = 64;
inline constexpr std::size_t kNoFalseSharing = 128;
inline constexpr std::size_t kPage = 4096;

inline constexpr std::uint64_t kMagic = 0x474e49524b434954;  // "TICKRING", little-endian
inline constexpr std::uint32_t kLayoutVersion = 1;

inline constexpr std::uint32_t kClasses = 5;
inline constexpr std::uint32_t kMaxFrontends = 64;
inline constexpr std::uint32_t kMaxEngines = 16;
inline constexpr std::uint32_t kMaxModels = 64;
inline constexpr std::uint32_t kMaxSlotsPerFrontend = 1u << 16;
inline constexpr std::uint64_t kMaxRowBytes = 1ull << 30;
inline constexpr std::uint64_t kNoDeadline = std::numeric_limits<std::uint64_t>::max();

// How an item ended. Written by the engine before it hands the slot back.
enum class Outcome : std::uint8_t {
  kResult = 1,     // the output row holds the answer
  kError = 2,      // the model raised on this item
  kNonFinite = 3,  // the model answered NaN or Inf, which it must not
  kExpired = 4,    // its deadline passed while it was queued
  kCancelled = 5,  // its caller left while it was queued
};
inline constexpr std::size_t kOutcomes = 6;  // index 0 is never an outcome

// A shared atomic must be the bare integer: no lock beside it, no padding.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(std::atomic<std::uint8_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint64_t>) == 8);
static_assert(sizeof(std::atomic<std::uint8_t>) == 1);

// Positions only grow; entry i of a ring lives at i mod capacity.
struct RingControl {
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> tail;  // written by the producer only
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> head;  // written by the consumer only
};
static_assert(sizeof(RingControl) == 2 * kNoFalseSharing);

struct LaneEntry {
  std::uint64_t key;   // ns, CLOCK_MONOTONIC: enqueue time + slack of the class
  std::uint32_t slot;  // index over all partitions
  std::uint32_t reserved;
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
  std::uint32_t epoch;        // of the partition when the item was pushed
  std::uint8_t exclusive;     // 1: shares a batch with rows of its own request only
  // The one field of the non-owner: the front end sets it while the engine owns the slot.
  std::atomic<std::uint8_t> cancelled;
  std::uint8_t reserved0[38];
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

// Counters of one engine, written by it alone and read by the supervisor.
struct EngineStats {
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> taken;
  std::atomic<std::uint64_t> ended[kOutcomes];  // by Outcome
  std::atomic<std::uint64_t> discarded;         // of a dead front end, dropped unanswered
  std::atomic<std::uint64_t> batches;
  std::atomic<std::uint64_t> corrupt;  // entries or indexes that failed a bounds check
  std::atomic<std::uint64_t> sleeps;
};
static_assert(sizeof(EngineStats) == kNoFalseSharing);

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
    layout.slot_headers = place(layout.slots() * sizeof(SlotHeader), kNoFalseSharing);
    // Pages of their own, so that a device driver can register the slabs and nothing else.
    layout.input_slab = place(layout.slots() * dims.input_row_bytes, kPage);
    layout.output_slab = place(layout.slots() * dims.output_row_bytes, kPage);
    layout.total_bytes = round_up(at, kPage);
    return layout;
  }
};

// First page of the arena. Written by the supervisor; epochs change when a partition is reset.
struct ArenaHeader {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t reserved;
  Dimensions dims;
  std::uint64_t total_bytes;
  alignas(kLine) std::atomic<std::uint32_t> epoch[kMaxFrontends];
};
static_assert(sizeof(ArenaHeader) <= kPage);

// An arena as one process sees it: the mapping and where things are in it. Does not own the mapping.
class Arena {
 public:
  // Lays a zeroed buffer out. Throws std::invalid_argument when it is too small or not on a page.
  static Arena format(void* base, std::uint64_t size, const Dimensions& dims) {
    check_start(base);
    const Layout layout = Layout::of(dims);
    if (size < layout.total_bytes) {
      throw std::invalid_argument("arena of " + std::to_string(size) + " bytes, needed are " +
                                  std::to_string(layout.total_bytes));
    }
    auto* header = static_cast<ArenaHeader*>(base);
    header->layout_version = kLayoutVersion;
    header->dims = layout.dims;
    header->total_bytes = layout.total_bytes;
    header->magic = kMagic;  // other processes are started after this; no ordering is needed
    return Arena(base, layout);
  }

  // Takes over a formatted buffer, trusting nothing but its size.
  // Throws std::invalid_argument when it is not an arena of this layout.
  static Arena attach(void* base, std::uint64_t size) {
    check_start(base);
    const auto* header = static_cast<const ArenaHeader*>(base);
    if (size < kPage || header->magic != kMagic) throw std::invalid_argument("not a tickring arena");
    if (header->layout_version != kLayoutVersion) {
      throw std::invalid_argument("arena layout version " + std::to_string(header->layout_version) +
                                  ", this build speaks " + std::to_string(kLayoutVersion));
    }
    const Layout layout = Layout::of(header->dims);
    if (layout.total_bytes != header->total_bytes || size < layout.total_bytes) {
      throw std::invalid_argument("arena of " + std::to_string(size) + " bytes, its header says " +
                                  std::to_string(header->total_bytes) + ", its dimensions need " +
                                  std::to_string(layout.total_bytes));
    }
    return Arena(base, layout);
  }

  const Layout& layout() const { return layout_; }

  RingControl& lane_control(std::uint64_t lane) const {
    return at<RingControl>(layout_.lanes + lane * layout_.lane_bytes());
  }
  LaneEntry* lane_entries(std::uint64_t lane) const {
    return &at<LaneEntry>(layout_.lanes + lane * layout_.lane_bytes() + sizeof(RingControl));
  }
  RingControl& completion_control(std::uint64_t pair) const {
    return at<RingControl>(layout_.completions + pair * layout_.completion_bytes());
  }
  std::uint32_t* completion_entries(std::uint64_t pair) const {
    return &at<std::uint32_t>(layout_.completions + pair * layout_.completion_bytes() + sizeof(RingControl));
  }
  Doorbell& doorbell(std::uint64_t pair) const {
    return at<Doorbell>(layout_.doorbells + pair * sizeof(Doorbell));
  }
  GateState& engine_gate(std::uint32_t engine) const {
    return at<GateState>(layout_.engine_gates + engine * sizeof(GateState));
  }
  GateState& frontend_gate(std::uint32_t frontend) const {
    return at<GateState>(layout_.frontend_gates + frontend * sizeof(GateState));
  }
  EngineStats& engine_stats(std::uint32_t engine) const {
    return at<EngineStats>(layout_.engine_stats + engine * sizeof(EngineStats));
  }
  SlotHeader& slot(std::uint64_t slot) const {
    return at<SlotHeader>(layout_.slot_headers + slot * sizeof(SlotHeader));
  }
  std::uint8_t* input_row(std::uint64_t slot) const {
    return &at<std::uint8_t>(layout_.input_slab + slot * layout_.dims.input_row_bytes);
  }
  std::uint8_t* output_row(std::uint64_t slot) const {
    return &at<std::uint8_t>(layout_.output_slab + slot * layout_.dims.output_row_bytes);
  }
  std::atomic<std::uint32_t>& epoch(std::uint32_t frontend) const {
    return at<ArenaHeader>(0).epoch[frontend];
  }

  // Empties every ring of a front end and starts its next epoch. Only while neither that front end
  // nor any engine touches them: the supervisor calls it between a death and the next start. A batch in
  // flight touches them: its completion would give the next front end a slot that it is using.
  void reset_frontend(std::uint32_t frontend) const {
    for (std::uint32_t engine = 0; engine < layout_.dims.engines; ++engine) reset_pair(engine, frontend);
    frontend_gate(frontend).sleeping.store(0, std::memory_order_relaxed);
    epoch(frontend).fetch_add(1, std::memory_order_release);
  }

  // Empties every ring of an engine. Only while no front end pushes and the engine is gone.
  void reset_engine(std::uint32_t engine) const {
    for (std::uint32_t frontend = 0; frontend < layout_.dims.frontends; ++frontend) {
      reset_pair(engine, frontend);
    }
    engine_gate(engine).sleeping.store(0, std::memory_order_relaxed);
  }

 private:
  Arena(void* base, const Layout& layout) : base_(static_cast<std::uint8_t*>(base)), layout_(layout) {}

  // Atomics that straddle two cache lines are not atomic, and slabs are registered by the page.
  static void check_start(const void* base) {
    if (reinterpret_cast<std::uintptr_t>(base) % kPage != 0) {
      throw std::invalid_argument("arena does not start on a page of " + std::to_string(kPage) + " bytes");
    }
  }

  template <typename T>
  T& at(std::uint64_t offset) const {
    return *reinterpret_cast<T*>(base_ + offset);
  }

  void reset_pair(std::uint32_t engine, std::uint32_t frontend) const {
    auto reset = [](RingControl& control) {
      control.head.store(0, std::memory_order_relaxed);
      control.tail.store(0, std::memory_order_release);
    };
    for (std::uint32_t model = 0; model < layout_.dims.models; ++model) {
      for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
        reset(lane_control(layout_.lane_index(engine, frontend, model, cls)));
      }
    }
    reset(completion_control(layout_.pair_index(engine, frontend)));
  }

  std::uint8_t* base_;
  Layout layout_;
};

}  // namespace tickring
