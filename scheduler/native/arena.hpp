// The arena as one process sees it: where its parts are, and what the supervisor does to them.
//
// One arena is one shared mapping (a memfd, or anonymous memory for threads). Every process maps it
// at an address of its own, so nothing in it is a pointer: only indexes and offsets, and each is
// checked before use.
#pragma once

#include <utility>

#include "layout.hpp"

namespace tickring {

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
    const Arena arena(base, layout);
    for (std::uint32_t engine = 0; engine < layout.dims.engines; ++engine) {
      arena.served(engine).store(kAllModels, std::memory_order_relaxed);
    }
    return arena;
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
  FrontendStats& frontend_stats(std::uint32_t frontend) const {
    return at<FrontendStats>(layout_.frontend_stats + frontend * sizeof(FrontendStats));
  }
  Forecast& forecast(std::uint32_t engine, std::uint32_t model) const {
    const std::uint64_t index = std::uint64_t{engine} * layout_.dims.models + model;
    return at<Forecast>(layout_.forecasts + index * sizeof(Forecast));
  }
  Notice& notice(std::uint32_t engine) const {
    return at<Notice>(layout_.notices + engine * sizeof(Notice));
  }
  std::atomic<std::uint64_t>& free_at(std::uint32_t engine) const { return notice(engine).free_at_ns; }
  // A bit for each model that the engine serves.
  std::atomic<std::uint64_t>& served(std::uint32_t engine) const { return notice(engine).models; }
  std::atomic<std::uint64_t>& in_flight(std::uint32_t engine) const { return notice(engine).in_flight; }
  RequestCell& request_cell(std::uint32_t frontend, std::uint32_t row, std::uint32_t cls) const {
    const std::uint64_t index = (std::uint64_t{frontend} * kRequestRows + row) * kRequestClasses + cls;
    return at<RequestCell>(layout_.request_cells + index * sizeof(RequestCell));
  }
  BatchCell& batch_cell(std::uint32_t engine, std::uint32_t row) const {
    return at<BatchCell>(layout_.batch_cells + (std::uint64_t{engine} * kBatchRows + row) * sizeof(BatchCell));
  }
  // Items that a front end has admitted and not pushed yet.
  std::atomic<std::uint64_t>& held(std::uint32_t frontend, std::uint32_t model, std::uint32_t cls) const {
    const std::uint64_t index = std::uint64_t{model} * kClasses + cls;
    return at<std::atomic<std::uint64_t>>(layout_.held + frontend * layout_.held_bytes() +
                                          index * sizeof(std::uint64_t));
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

  // Items in a lane, for somebody who owns neither end of it.
  std::uint64_t queued(std::uint64_t lane) const { return between(lane_control(lane)); }

  // Items of one class of one model that wait for an engine, over all front ends.
  std::uint64_t depth(std::uint32_t engine, std::uint32_t model, std::uint32_t cls) const {
    std::uint64_t items = 0;
    for (std::uint32_t frontend = 0; frontend < layout_.dims.frontends; ++frontend) {
      items += queued(layout_.lane_index(engine, frontend, model, cls));
    }
    return items;
  }

  // Items of one class of one model that wait at the entrance, over all front ends.
  std::uint64_t held_items(std::uint32_t model, std::uint32_t cls) const {
    std::uint64_t items = 0;
    for (std::uint32_t frontend = 0; frontend < layout_.dims.frontends; ++frontend) {
      items += held(frontend, model, cls).load(std::memory_order_relaxed);
    }
    return items;
  }

  // Items that an engine has to do, queued or in a batch; and a count of what it has done so far: it
  // changes with every take, end, completion and discard, and with nothing else. The lanes are read
  // first: an item that has left its lane is among the taken then (see EnginePort::take), so what
  // waits is never found nowhere.
  std::pair<std::uint64_t, std::uint64_t> engine_progress(std::uint32_t engine) const {
    const std::uint64_t first = layout_.lane_index(engine, 0, 0, 0);
    const std::uint64_t lanes = layout_.lane_index(engine + 1, 0, 0, 0) - first;
    std::uint64_t waiting = 0;
    for (std::uint64_t lane = 0; lane < lanes; ++lane) waiting += queued(first + lane);
    const EngineStats& stats = engine_stats(engine);
    const std::uint64_t in_batches = stats.in_batches();
    std::uint64_t steps = stats.taken.load(std::memory_order_relaxed) +
                          stats.completed.load(std::memory_order_relaxed) +
                          stats.discarded.load(std::memory_order_relaxed) + sum(stats.ended);
    // Items may wait for company: then a look at them is all there is to do. With a batch running it is
    // not, or one instance that looks would hide another that hangs.
    if (in_batches == 0) steps += stats.looks.load(std::memory_order_relaxed);
    return {waiting + in_batches, steps};
  }

  // Completions that a front end has not taken back, over all engines; and a count that changes
  // when it takes some back.
  std::pair<std::uint64_t, std::uint64_t> frontend_progress(std::uint32_t frontend) const {
    std::uint64_t undelivered = 0, delivered = 0;
    for (std::uint32_t engine = 0; engine < layout_.dims.engines; ++engine) {
      const RingControl& control = completion_control(layout_.pair_index(engine, frontend));
      undelivered += between(control);
      delivered += control.head.load(std::memory_order_relaxed);
    }
    return {undelivered, delivered};
  }

  // Empties every ring of a front end, ends what died with it as lost, and starts its next epoch. Only
  // while neither that front end nor any engine touches them: the supervisor calls it between a death
  // and the next start. A batch in flight touches them: its completion would give the next front end a
  // slot that it is using.
  void reset_frontend(std::uint32_t frontend) const {
    for (std::uint32_t engine = 0; engine < layout_.dims.engines; ++engine) reset_pair(engine, frontend);
    frontend_gate(frontend).sleeping.store(0, std::memory_order_relaxed);
    FrontendStats& stats = frontend_stats(frontend);
    add(stats.ended[kLost], stats.open());
    for (std::uint32_t model = 0; model < layout_.dims.models; ++model) {
      for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
        held(frontend, model, cls).store(0, std::memory_order_relaxed);
      }
    }
    epoch(frontend).fetch_add(1, std::memory_order_release);
  }

  // Empties every ring of an engine and counts what was in its batches as lost. Only while no front
  // end pushes and the engine is gone. Its forecasts stay: they are the best guess until the next
  // engine has measured.
  void reset_engine(std::uint32_t engine) const {
    for (std::uint32_t frontend = 0; frontend < layout_.dims.frontends; ++frontend) {
      reset_pair(engine, frontend);
    }
    engine_gate(engine).sleeping.store(0, std::memory_order_relaxed);
    free_at(engine).store(0, std::memory_order_relaxed);
    in_flight(engine).store(0, std::memory_order_relaxed);
    EngineStats& stats = engine_stats(engine);
    add(stats.lost, stats.in_batches());
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

  // Entries of a ring. 0 when the positions make no sense, and when the reader was held up between
  // the two for so long that more than a whole ring went by.
  std::uint64_t between(const RingControl& control) const {
    // acquire: whoever moved the head had seen the tail at or beyond it, so this tail is not behind it.
    const std::uint64_t head = control.head.load(std::memory_order_acquire);
    const std::uint64_t count = control.tail.load(std::memory_order_relaxed) - head;
    return count <= layout_.ring_capacity ? count : 0;
  }

  void reset_pair(std::uint32_t engine, std::uint32_t frontend) const {
    // Positions never go back: an engine that goes on with other front ends looks at these lanes, empty
    // since its discard(), and must not find between two stores what it has already dropped.
    auto reset = [](RingControl& control) {
      control.head.store(control.tail.load(std::memory_order_acquire), std::memory_order_release);
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
