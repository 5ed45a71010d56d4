// An engine's port: takes items by urgency, hands them back, waits for more.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "arena.hpp"
#include "ring.hpp"

namespace tickring {

inline constexpr std::uint32_t kAllClasses = (1u << kClasses) - 1;  // bit 0: the most urgent

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

// What an engine publishes about a model; the lists by bucket, of equal length. See Forecast.
struct ForecastFacts {
  std::uint32_t target = 0;
  std::uint64_t item_ns = 0;
  std::vector<std::uint32_t> sizes;
  std::vector<std::uint64_t> median_ns;
  std::vector<std::uint64_t> high_ns;
  std::vector<std::uint64_t> floor_ns;
};

class EnginePort {
 public:
  // `frontend_eventfds`: one per front end. `own_eventfd`: where this engine is woken. `models`: a bit for
  // each that it serves; nothing may be pushed to the others. `rows`: by model, where its batches are counted;
  // those past the end of the list in the row of their own number.
  EnginePort(const Arena& arena, std::uint32_t engine, int own_eventfd,
             const std::vector<int>& frontend_eventfds, std::uint64_t models = kAllModels,
             std::vector<std::uint32_t> rows = {})
      : arena_(arena),
        gate_(arena.engine_gate(engine), own_eventfd),
        stats_(&arena.engine_stats(engine)),
        engine_(engine),
        models_(models),
        rows_(std::move(rows)) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("engine", engine, 0, dims.engines - 1);
    Layout::check("frontend eventfds", frontend_eventfds.size(), dims.frontends, dims.frontends);
    Layout::check("rows", rows_.size(), 0, dims.models);
    for (const std::uint32_t row : rows_) Layout::check("row", row, 0, kBatchRows - 1);
    for (auto row = static_cast<std::uint32_t>(rows_.size()); row < dims.models; ++row) rows_.push_back(row);
    gate_.check_open();
    for (std::uint32_t frontend = 0; frontend < dims.frontends; ++frontend) {
      const std::uint64_t pair = arena_.layout().pair_index(engine, frontend);
      frontend_gates_.emplace_back(arena_.frontend_gate(frontend), frontend_eventfds[frontend]);
      frontend_gates_.back().check_open();
      completions_.emplace_back(arena_.completion_control(pair), arena_.completion_entries(pair),
                                arena_.layout().ring_capacity);
    }
    arena_.served(engine).store(models, std::memory_order_relaxed);  // for estimates
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
    bump(stats_->looks);
    seen_pushes_ = pushes();  // before the lanes are read: a push in between is noticed later
    const Dimensions& dims = arena_.layout().dims;
    for_each_model(models_, dims.models, [&](std::uint32_t model) {
      for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
        ClassBacklog backlog;
        for (std::uint32_t frontend = 0; frontend < dims.frontends; ++frontend) {
          auto& ring = lane(model, cls, frontend);
          const std::uint64_t count = readable(ring);
          if (count == 0) continue;
          const LaneEntry head = ring.peek();
          backlog.depth += count;
          backlog.key = std::min(backlog.key, head.key);
          if (!owned_by(head.slot, frontend) || !is_current(head, frontend)) continue;  // take() drops it
          const SlotHeader& header = arena_.slot(head.slot);
          backlog.enqueued_ns = std::min(backlog.enqueued_ns, header.enqueued_ns);
          backlog.deadline_ns = std::min(backlog.deadline_ns, header.deadline_ns);
        }
        if (backlog.depth != 0) report(model, cls, backlog);
      }
    });
  }

  // Takes up to `max` live items of a model in the order of (key, class, front end) into `slots`.
  // Cancelled items, and items whose deadline is before `now` + `expected_ns`, are completed on the
  // way and do not count. An exclusive item ends the batch before it or is alone with its request.
  // Lanes of classes whose bit in `classes` is clear (bit 0: the most urgent) stay as they are.
  std::size_t take(std::uint32_t model, std::size_t max, std::uint64_t now, std::uint64_t expected_ns,
                   std::uint32_t* slots, std::uint32_t classes = kAllClasses) {
    const Dimensions& dims = arena_.layout().dims;
    Layout::check("model", model, 0, dims.models - 1);
    Layout::check("classes", classes, 0, kAllClasses);
    heads_.clear();
    for (std::uint32_t cls = 0; cls < kClasses; ++cls) {
      if ((classes >> cls & 1u) == 0) continue;
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
      } else if (!is_current(head.entry, head.frontend)) {
        // Of a front end that is gone: nobody waits for an answer, and the next one owns the header.
        bump(stats_->discarded);
      } else {
        const SlotHeader& header = arena_.slot(slot);
        const bool alone = header.exclusive != 0;
        if (header.cancelled.load(std::memory_order_relaxed) != 0) {
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
          bump(stats_->taken);  // before the pop: whoever finds the lane without it finds it here
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
    add(stats_->completed, count);
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

  // Publishes what this engine expects of a model. Throws std::invalid_argument for an unknown one,
  // for more than kMaxBuckets sizes, and when the lists differ in length.
  void publish_forecast(std::uint32_t model, const ForecastFacts& facts) {
    Layout::check("model", model, 0, arena_.layout().dims.models - 1);
    const std::size_t count = facts.sizes.size();
    Layout::check("sizes", count, 0, kMaxBuckets);
    Layout::check("median_ns", facts.median_ns.size(), count, count);
    Layout::check("high_ns", facts.high_ns.size(), count, count);
    Layout::check("floor_ns", facts.floor_ns.size(), count, count);
    // relaxed: see Forecast.
    Forecast& forecast = arena_.forecast(engine_, model);
    forecast.target.store(facts.target, std::memory_order_relaxed);
    forecast.item_ns.store(facts.item_ns, std::memory_order_relaxed);
    for (std::size_t i = 0; i < count; ++i) {
      ForecastBucket& bucket = forecast.buckets[i];
      bucket.size.store(facts.sizes[i], std::memory_order_relaxed);
      bucket.median_ns.store(facts.median_ns[i], std::memory_order_relaxed);
      bucket.high_ns.store(facts.high_ns[i], std::memory_order_relaxed);
      bucket.floor_ns.store(facts.floor_ns[i], std::memory_order_relaxed);
    }
    // release: a reader of this count finds no bucket that was never written.
    forecast.bucket_count.store(static_cast<std::uint32_t>(count), std::memory_order_release);
  }

  // Counts a batch that has run: `size` rows in a batch of `bucket`, from dispatch to outputs ready.
  // Throws std::invalid_argument for an unknown model or a bucket of 0.
  void count_batch(std::uint32_t model, std::uint32_t size, std::uint32_t bucket, std::int64_t compute_ns) {
    Layout::check("model", model, 0, arena_.layout().dims.models - 1);
    Layout::check("bucket", bucket, 1, std::numeric_limits<std::uint32_t>::max());
    const std::uint64_t ns = compute_ns < 0 ? 0 : static_cast<std::uint64_t>(compute_ns);
    arena_.batch_cell(engine_, rows_[model]).record(size, bucket, ns);
  }

  // For whoever watches; nothing depends on it.
  void publish_in_flight(std::uint64_t batches) {
    arena_.in_flight(engine_).store(batches, std::memory_order_relaxed);
  }

  // Publishes when an instance will be free; 0: one is.
  void publish_free_at(std::uint64_t ns) {
    arena_.free_at(engine_).store(ns, std::memory_order_relaxed);
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

  // relaxed: epochs change only while no engine touches the partition.
  bool is_current(const LaneEntry& entry, std::uint32_t frontend) const {
    return entry.epoch == arena_.epoch(frontend).load(std::memory_order_relaxed);
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
  std::uint64_t models_;
  std::vector<std::uint32_t> rows_;  // by model
  std::uint64_t seen_pushes_ = 0;
  std::vector<Gate> frontend_gates_;
  std::vector<SpscRing<std::uint32_t>> completions_;  // by front end
  std::vector<SpscRing<LaneEntry>> lanes_;            // by model, class, front end
  std::vector<Head> heads_;                           // scratch of take(), kept for its memory
  std::array<std::uint64_t, kMaxFrontends> staged_{};
};

}  // namespace tickring
