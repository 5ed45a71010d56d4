// The two ends of the arena: a front end's port and an engine's port.
//
// A slot has one owner. Pushing it to a lane gives it to the engine, completing it gives it back, and
// both are one store of a tail. Each port is used by one thread at a time: in Python that is what
// holding the GIL through the call means. Only EnginePort::wait() runs without it, and so may run
// beside wake() and complete(): it touches nothing but the gate, `seen_pushes_` and `sleeps`.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "ring.hpp"

namespace tickring {

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
        gate_(arena.frontend_gate(frontend), own_eventfd) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("frontend", frontend, 0, dims.frontends - 1);
    Layout::check("engine eventfds", engine_eventfds.size(), dims.engines, dims.engines);
    for (std::uint32_t engine = 0; engine < dims.engines; ++engine) {
      const std::uint64_t pair = arena_.layout().pair_index(engine, frontend);
      engine_gates_.emplace_back(arena_.engine_gate(engine), engine_eventfds[engine]);
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
      header.epoch = epoch;
      header.exclusive = ticket.exclusive ? 1 : 0;
      header.cancelled.store(0, std::memory_order_relaxed);  // published with the tail
      if (!lane.stage(i, LaneEntry{ticket.key, slots[i], 0})) return false;
    }
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

  // Takes back every slot the engines have completed. `take(slot, header)` runs while the slot is
  // this front end's again. Returns how many.
  template <typename Take>
  std::size_t drain(Take take) {
    std::size_t drained = 0;
    for (auto& ring : completions_) {
      bool corrupt = false;
      const std::uint64_t count = ring.available(corrupt);
      for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint32_t slot = ring.peek(i);
        if (!owns(slot)) continue;  // an engine gone mad answers nothing of ours
        take(slot, static_cast<const SlotHeader&>(arena_.slot(slot)));
        ++drained;
      }
      ring.pop(count);
    }
    return drained;
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

  std::uint32_t first_slot() const { return first_slot_; }

 private:
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
  std::vector<Gate> engine_gates_;
  std::vector<SpscRing<std::uint32_t>> completions_;  // by engine
  std::vector<SpscRing<LaneEntry>> lanes_;            // by engine, model, class
};

// The queued items of one class of one model, over all front ends.
struct ClassBacklog {
  std::uint64_t depth = 0;
  std::uint64_t key = kNoDeadline;          // smallest
  std::uint64_t enqueued_ns = kNoDeadline;  // of the oldest
  std::uint64_t deadline_ns = kNoDeadline;  // soonest among the lane heads
};

// When a batch ran and how big it was, for the headers of its slots.
struct BatchFacts {
  std::uint64_t dispatched_ns = 0;
  std::uint64_t compute_start_ns = 0;
  std::uint64_t compute_end_ns = 0;
  std::uint64_t batch = 0;
  std::uint32_t size = 0;
  std::uint32_t bucket = 0;
};

class EnginePort {
 public:
  // `frontend_eventfds`: one per front end. `own_eventfd`: where this engine is woken.
  EnginePort(const Arena& arena, std::uint32_t engine, int own_eventfd,
             const std::vector<int>& frontend_eventfds)
      : arena_(arena),
        gate_(arena.engine_gate(engine), own_eventfd),
        stats_(&arena.engine_stats(engine)),
        engine_(engine) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("engine", engine, 0, dims.engines - 1);
    Layout::check("frontend eventfds", frontend_eventfds.size(), dims.frontends, dims.frontends);
    for (std::uint32_t frontend = 0; frontend < dims.frontends; ++frontend) {
      const std::uint64_t pair = arena_.layout().pair_index(engine, frontend);
      frontend_gates_.emplace_back(arena_.frontend_gate(frontend), frontend_eventfds[frontend]);
      completions_.emplace_back(arena_.completion_control(pair), arena_.completion_entries(pair),
                                arena_.layout().ring_capacity);
    }
    // by model first: a take merges the lanes of one model
    for (std::uint32_t model = 0; model < dims.models; ++model) {
      for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
        for (std::uint32_t frontend = 0; frontend < dims.frontends; ++frontend) {
          const std::uint64_t lane = arena_.layout().lane_index(engine, frontend, model, cls);
          lanes_.emplace_back(arena_.lane_control(lane), arena_.lane_entries(lane),
                              arena_.layout().ring_capacity);
        }
      }
    }
  }

  // Reports every class of every model that has items queued: report(model, class, backlog).
  // Whatever is pushed after this call makes the next wait() return at once.
  template <typename Report>
  void look(Report report) {
    seen_pushes_ = pushes();  // before the lanes are read: a push in between is noticed later
    const Dimensions& dims = arena_.layout().dims;
    for (std::uint32_t model = 0; model < dims.models; ++model) {
      for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
        ClassBacklog backlog;
        for (std::uint32_t frontend = 0; frontend < dims.frontends; ++frontend) {
          auto& ring = lane(model, cls, frontend);
          const std::uint64_t count = readable(ring);
          if (count == 0) continue;
          const LaneEntry head = ring.peek();
          backlog.depth += count;
          backlog.key = std::min(backlog.key, head.key);
          if (!owned_by(head.slot, frontend)) continue;  // take() will count and drop it
          const SlotHeader& header = arena_.slot(head.slot);
          backlog.enqueued_ns = std::min(backlog.enqueued_ns, header.enqueued_ns);
          backlog.deadline_ns = std::min(backlog.deadline_ns, header.deadline_ns);
        }
        if (backlog.depth != 0) report(model, cls, backlog);
      }
    }
  }

  // Takes up to `max` live items of a model in the order of (key, class, front end) into `slots`.
  // Cancelled items, and items whose deadline is before `now` + `expected_ns`, are completed on the
  // way and do not count. An exclusive item ends the batch before it or is alone with its request.
  std::size_t take(std::uint32_t model, std::size_t max, std::uint64_t now, std::uint64_t expected_ns,
                   std::uint32_t* slots) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("model", model, 0, dims.models - 1);
    heads_.clear();
    for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
      for (std::uint32_t frontend = 0; frontend < dims.frontends; ++frontend) {
        auto& ring = lane(model, cls, frontend);
        if (const std::uint64_t count = readable(ring)) {
          heads_.push_back(Head{ring.peek(), &ring, count, 0, frontend});
        }
      }
    }
    std::size_t taken = 0;
    std::uint32_t exclusive_request = 0;
    std::uint32_t exclusive_frontend = kMaxFrontends;  // none
    while (taken < max && !heads_.empty()) {
      // First of equals wins, so equal keys are ordered by class, then by front end.
      std::size_t best = 0;
      for (std::size_t i = 1; i < heads_.size(); ++i) {
        if (heads_[i].entry.key < heads_[best].entry.key) best = i;
      }
      Head& head = heads_[best];
      const std::uint32_t slot = head.entry.slot;
      if (!owned_by(slot, head.frontend)) {
        bump(stats_->corrupt);
      } else {
        const SlotHeader& header = arena_.slot(slot);
        const bool alone = header.exclusive != 0;
        if (header.epoch != arena_.epoch(head.frontend).load(std::memory_order_relaxed)) {
          bump(stats_->discarded);  // of a front end that is gone: nobody waits for an answer
        } else if (header.cancelled.load(std::memory_order_relaxed) != 0) {
          end_unserved(slot, head.frontend, Outcome::kCancelled, now);
        } else if (header.deadline_ns < now + expected_ns) {
          end_unserved(slot, head.frontend, Outcome::kExpired, now);
        } else if (taken != 0 && (alone || exclusive_frontend != kMaxFrontends) &&
                   !(alone && header.request == exclusive_request && head.frontend == exclusive_frontend)) {
          break;
        } else {
          if (alone) {
            exclusive_request = header.request;
            exclusive_frontend = head.frontend;
          }
          slots[taken++] = slot;
        }
      }
      ++head.used;
      if (head.used == head.count) {
        head.ring->pop(head.used);
        heads_.erase(heads_.begin() + static_cast<std::ptrdiff_t>(best));
      } else {
        head.entry = head.ring->peek(head.used);
      }
    }
    for (Head& head : heads_) head.ring->pop(head.used);
    add(stats_->taken, taken);
    flush();
    return taken;
  }

  // Hands slots back to their front ends; outcomes[i] belongs to slots[i]. One signal per front end.
  // Throws std::invalid_argument for a slot outside the arena; then none is handed back.
  void complete(const std::uint32_t* slots, const std::uint8_t* outcomes, std::size_t count,
                const BatchFacts& facts) {
    for (std::size_t i = 0; i < count; ++i) {
      Layout::check("slot", slots[i], 0, arena_.layout().slots() - 1);
      Layout::check("outcome", outcomes[i], 1, kOutcomes - 1);
    }
    for (std::size_t i = 0; i < count; ++i) {
      SlotHeader& header = arena_.slot(slots[i]);
      header.dispatched_ns = facts.dispatched_ns;
      header.compute_start_ns = facts.compute_start_ns;
      header.compute_end_ns = facts.compute_end_ns;
      header.batch = facts.batch;
      header.batch_size = facts.size;
      header.batch_bucket = facts.bucket;
      hand_back(slots[i], slots[i] / arena_.layout().dims.slots_per_frontend,
                static_cast<Outcome>(outcomes[i]));
    }
    bump(stats_->batches);
    flush();
  }

  // Drops what a dead front end has queued. Its items in a batch stay with that batch.
  std::uint64_t discard(std::uint32_t frontend) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("frontend", frontend, 0, dims.frontends - 1);
    std::uint64_t dropped = 0;
    for (std::uint32_t model = 0; model < dims.models; ++model) {
      for (std::uint32_t cls = 0; cls < kClasses; ++cls) dropped += lane(model, cls, frontend).discard();
    }
    add(stats_->discarded, dropped);
    return dropped;
  }

  // Waits until something is pushed after the last look(), wake() is called, or `timeout_ns` passes.
  // Spins for up to `spin_ns` of it first, then sleeps. True: something was pushed.
  bool wait(std::uint64_t timeout_ns, std::uint64_t spin_ns) {
    if (pushes() != seen_pushes_) return true;
    if (spin_ns != 0) {
      const std::uint64_t start = now_ns();
      const std::uint64_t limit = std::min(spin_ns, timeout_ns);
      do {
        for (int i = 0; i < 16; ++i) pause_cpu();
        if (pushes() != seen_pushes_) return true;
        ::sched_yield();  // to whoever waits for this core, first of all the front end that we wait for
      } while (now_ns() - start < limit);
      timeout_ns -= timeout_ns == kNoDeadline ? 0 : limit;
    }
    gate_.arm();
    if (pushes() == seen_pushes_) {
      bump(stats_->sleeps);
      gate_.block(timeout_ns);
    }
    gate_.disarm();
    return pushes() != seen_pushes_;
  }

  // From any thread: ends a wait(), or the next one.
  void wake() { gate_.ring(); }

  const EngineStats& stats() const { return *stats_; }
  std::uint32_t engine() const { return engine_; }

 private:
  struct Head {
    LaneEntry entry;
    SpscRing<LaneEntry>* ring;
    std::uint64_t count;
    std::uint64_t used;
    std::uint32_t frontend;
  };

  // Single writer: a load and a store, no locked instruction.
  static void add(std::atomic<std::uint64_t>& counter, std::uint64_t by) {
    counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }
  static void bump(std::atomic<std::uint64_t>& counter) { add(counter, 1); }

  SpscRing<LaneEntry>& lane(std::uint32_t model, std::uint32_t cls, std::uint32_t frontend) {
    return lanes_[(std::uint64_t{model} * kClasses + cls) * arena_.layout().dims.frontends + frontend];
  }

  std::uint64_t readable(SpscRing<LaneEntry>& ring) {
    bool corrupt = false;
    const std::uint64_t count = ring.available(corrupt);
    if (corrupt) bump(stats_->corrupt);
    return count;
  }

  bool owned_by(std::uint32_t slot, std::uint32_t frontend) const {
    return slot / arena_.layout().dims.slots_per_frontend == frontend;
  }

  std::uint64_t pushes() const {
    std::uint64_t sum = 0;
    for (std::uint32_t frontend = 0; frontend < arena_.layout().dims.frontends; ++frontend) {
      // seq_cst: see Gate; also acquire, so that the lanes read next hold what was announced.
      sum += arena_.doorbell(arena_.layout().pair_index(engine_, frontend))
                 .pushes.load(std::memory_order_seq_cst);
    }
    return sum;
  }

  void end_unserved(std::uint32_t slot, std::uint32_t frontend, Outcome outcome, std::uint64_t now) {
    SlotHeader& header = arena_.slot(slot);
    header.dispatched_ns = header.compute_start_ns = header.compute_end_ns = now;
    header.batch = 0;
    header.batch_size = header.batch_bucket = 0;
    hand_back(slot, frontend, outcome);
  }

  // Stages a slot for its front end; flush() makes it visible.
  void hand_back(std::uint32_t slot, std::uint32_t frontend, Outcome outcome) {
    arena_.slot(slot).outcome = static_cast<std::uint8_t>(outcome);
    if (completions_[frontend].stage(staged_[frontend], slot)) {
      ++staged_[frontend];
      bump(stats_->ended[static_cast<std::size_t>(outcome)]);
    } else {
      bump(stats_->corrupt);  // a ring with room for every slot is full: its positions are wrong
    }
  }

  void flush() {
    for (std::uint32_t frontend = 0; frontend < arena_.layout().dims.frontends; ++frontend) {
      if (staged_[frontend] == 0) continue;
      completions_[frontend].publish(staged_[frontend], std::memory_order_seq_cst);
      staged_[frontend] = 0;
      frontend_gates_[frontend].signal();
    }
  }

  Arena arena_;
  Gate gate_;
  EngineStats* stats_;
  std::uint32_t engine_;
  std::uint64_t seen_pushes_ = 0;
  std::vector<Gate> frontend_gates_;
  std::vector<SpscRing<std::uint32_t>> completions_;  // by front end
  std::vector<SpscRing<LaneEntry>> lanes_;            // by model, class, front end
  std::vector<Head> heads_;                           // scratch of take(), kept for its memory
  std::array<std::uint64_t, kMaxFrontends> staged_{};
};

}  // namespace tickring
