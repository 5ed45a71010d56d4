// A front end's port: pushes items to the engines and takes them back.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "arena.hpp"
#include "ring.hpp"

namespace tickring {

using PerClass = std::array<std::uint64_t, kClasses>;

// What one item may count for in a backlog: 34 s. No forecast is near it, and with it a sum over as
// many items as the largest arena holds does not wrap around, whatever stands in shared memory.
inline constexpr std::uint64_t kMaxItemNs = 1ull << 35;
static_assert(std::uint64_t{kMaxFrontends} * kMaxModels * kMaxSlotsPerFrontend <=
              std::numeric_limits<std::uint64_t>::max() / kMaxItemNs);

// What a front end tells the engine about the rows of one request.
struct Ticket {
  std::uint64_t key = 0;
  std::uint64_t enqueued_ns = 0;
  std::uint64_t deadline_ns = kNoDeadline;
  std::uint32_t request = 0;
  bool exclusive = false;
};

class FrontendPort {
 public:
  // `engine_eventfds`: one per engine. `own_eventfd`: where this front end is woken.
  FrontendPort(const Arena& arena, std::uint32_t frontend, int own_eventfd,
               const std::vector<int>& engine_eventfds)
      : arena_(arena),
        frontend_(frontend),
        first_slot_(frontend * arena.layout().dims.slots_per_frontend),
        gate_(arena.frontend_gate(frontend), own_eventfd),
        stats_(&arena.frontend_stats(frontend)) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("frontend", frontend, 0, dims.frontends - 1);
    Layout::check("engine eventfds", engine_eventfds.size(), dims.engines, dims.engines);
    gate_.check_open();
    for (std::uint32_t engine = 0; engine < dims.engines; ++engine) {
      const std::uint64_t pair = arena_.layout().pair_index(engine, frontend);
      engine_gates_.emplace_back(arena_.engine_gate(engine), engine_eventfds[engine]);
      engine_gates_.back().check_open();
      completions_.emplace_back(arena_.completion_control(pair), arena_.completion_entries(pair),
                                arena_.layout().ring_capacity);
      for (std::uint32_t model = 0; model < dims.models; ++model) {
        for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
          const std::uint64_t lane = arena_.layout().lane_index(engine, frontend, model, cls);
          lanes_.emplace_back(arena_.lane_control(lane), arena_.lane_entries(lane),
                              arena_.layout().ring_capacity);
        }
      }
    }
  }

  // Hands `count` slots, one per row, to an engine; the caller has written their input rows.
  // All of them become visible at once. False: the lane is full, nothing was handed over.
  // Throws std::invalid_argument for a slot outside this partition or an unknown lane.
  bool push(std::uint32_t engine, std::uint32_t model, std::uint32_t cls, const std::uint32_t* slots,
            std::size_t count, const Ticket& ticket) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("engine", engine, 0, dims.engines - 1);
    Layout::check("model", model, 0, dims.models - 1);
    Layout::check("class", cls, 0, kClasses - 1);
    for (std::size_t i = 0; i < count; ++i) check_own(slots[i]);

    auto& lane = lanes_[(std::uint64_t{engine} * dims.models + model) * kClasses + cls];
    const std::uint32_t epoch = arena_.epoch(frontend_).load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < count; ++i) {
      TICKRING_POINT("before stage");
      SlotHeader& header = arena_.slot(slots[i]);
      header.enqueued_ns = ticket.enqueued_ns;
      header.deadline_ns = ticket.deadline_ns;
      header.request = ticket.request;
      header.exclusive = ticket.exclusive ? 1 : 0;
      header.cancelled.store(0, std::memory_order_relaxed);  // published with the tail
      if (!lane.stage(i, LaneEntry{ticket.key, slots[i], epoch})) return false;
    }
    // Before they are visible: a death in between is one more to end as lost, not one ended for nothing.
    add(stats_->admitted, count);
    lane.publish(count);
    // seq_cst: the word that the engine looks at between arming its gate and blocking.
    auto& pushes = arena_.doorbell(arena_.layout().pair_index(engine, frontend_)).pushes;
    pushes.store(pushes.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    engine_gates_[engine].signal();
    TICKRING_POINT("after signal");
    return true;
  }

  // Asks the engine to skip a slot it still queues. A slot already taken is completed as usual.
  void cancel(std::uint32_t slot) {
    check_own(slot);
    // relaxed: a lone hint; the engine acts on it or not, and answers the slot either way.
    arena_.slot(slot).cancelled.store(1, std::memory_order_relaxed);
  }

  // Takes back every slot the engines have completed. `take(slot, outcome, header)` runs while the slot
  // is this front end's again; the outcome has been checked, the one in the header has not. Returns how
  // many.
  template <typename Take>
  std::size_t drain(Take take) {
    std::size_t drained = 0;
    for (auto& ring : completions_) {
      bool corrupt = false;
      const std::uint64_t count = ring.available(corrupt);
      if (corrupt) bump(stats_->corrupt);
      for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint32_t slot = ring.peek(i);
        if (!owns(slot)) {  // an engine gone mad answers nothing of ours
          bump(stats_->corrupt);
          continue;
        }
        const SlotHeader& header = arena_.slot(slot);
        const Outcome outcome = checked(header.outcome);
        bump(stats_->ended[static_cast<std::size_t>(outcome)]);
        take(slot, outcome, header);
        ++drained;
      }
      ring.pop(count);
    }
    return drained;
  }

  // Notes that `count` items ended here as lost, their engine being gone.
  // Throws std::invalid_argument when fewer are open.
  void lose(std::uint64_t count) {
    Layout::check("count", count, 0, stats_->open());
    add(stats_->ended[kLost], count);
  }

  // For whoever watches; nothing depends on it.
  void publish_free_slots(std::uint64_t count) {
    stats_->free_slots.store(count, std::memory_order_relaxed);
  }

  // Notes that `count` items were admitted and ended here without ever being pushed.
  // Throws std::invalid_argument for an outcome that is none.
  void end_unqueued(std::uint64_t count, std::uint32_t outcome) {
    Layout::check("outcome", outcome, 1, kLost);
    add(stats_->admitted, count);
    add(stats_->ended[outcome], count);
  }

  // Says how many items of a class of a model are held at the entrance. Throws std::invalid_argument for an
  // unknown lane.
  void publish_held(std::uint32_t model, std::uint32_t cls, std::uint64_t items) {
    Layout::check("model", model, 0, arena_.layout().dims.models - 1);
    Layout::check("class", cls, 0, kClasses - 1);
    arena_.held(frontend_, model, cls).store(items, std::memory_order_relaxed);
  }

  // Items that wait for an engine, by class, over all front ends and models.
  PerClass depths(std::uint32_t engine) const {
    return weighed_depths(engine, [](const Forecast&) { return std::uint64_t{1}; });
  }

  // The nanoseconds of engine time that those items cost, by the engine's own forecast.
  PerClass backlog_ns(std::uint32_t engine) const {
    return weighed_depths(engine, [](const Forecast& forecast) {
      return std::min(forecast.item_ns.load(std::memory_order_relaxed), kMaxItemNs);
    });
  }

  // Before returning to the event loop: arms the gate. False: completions came in between; drain.
  bool arm() {
    gate_.arm();
    for (auto& ring : completions_) {
      bool corrupt = false;
      if (ring.available(corrupt) != 0) {
        gate_.disarm();
        return false;
      }
    }
    return true;
  }

  // After the event loop reports the eventfd readable.
  void woken() {
    gate_.disarm();
    gate_.clear();
  }

  const FrontendStats& stats() const { return *stats_; }
  std::uint32_t first_slot() const { return first_slot_; }

 private:
  // For every request, so it reads nothing but the two positions of each lane.
  template <typename Weight>
  PerClass weighed_depths(std::uint32_t engine, Weight weight) const {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("engine", engine, 0, dims.engines - 1);
    PerClass sums{};
    // relaxed: whoever pushes to a model has been told by other means that it is served.
    for_each_model(arena_.served(engine).load(std::memory_order_relaxed), dims.models, [&](std::uint32_t model) {
      const std::uint64_t each = weight(arena_.forecast(engine, model));
      for (std::uint32_t frontend = 0; frontend < dims.frontends; ++frontend) {
        std::uint64_t lane = arena_.layout().lane_index(engine, frontend, model, 0);
        for (std::uint64_t& of_class : sums) of_class += arena_.queued(lane++) * each;
      }
    });
    return sums;
  }

  // What is no outcome is an engine's mistake, and for its caller an error.
  Outcome checked(std::uint8_t outcome) {
    if (outcome >= 1 && outcome < kOutcomes) return static_cast<Outcome>(outcome);
    bump(stats_->corrupt);
    return Outcome::kError;
  }

  bool owns(std::uint32_t slot) const {
    return slot - first_slot_ < arena_.layout().dims.slots_per_frontend;  // wraps below: refused too
  }
  void check_own(std::uint32_t slot) const {
    if (!owns(slot)) Layout::check("slot", slot, first_slot_, first_slot_ + arena_.layout().dims.slots_per_frontend - 1);
  }

  Arena arena_;
  std::uint32_t frontend_;
  std::uint32_t first_slot_;
  Gate gate_;
  FrontendStats* stats_;
  std::vector<Gate> engine_gates_;
  std::vector<SpscRing<std::uint32_t>> completions_;  // by engine
  std::vector<SpscRing<LaneEntry>> lanes_;            // by engine, model, class
};

}  // namespace tickring
