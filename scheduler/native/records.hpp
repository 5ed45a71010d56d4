// Who counts requests and batches, and the sums over all who do.
#pragma once

#include <vector>

#include "arena.hpp"

namespace tickring {

// What one front end counts. By one thread.
class RequestRecorder {
 public:
  // Throws std::invalid_argument for a front end that the arena lacks.
  RequestRecorder(const Arena& arena, std::uint32_t frontend) : arena_(arena), frontend_(frontend) {
    Layout::check("frontend", frontend, 0, arena.layout().dims.frontends - 1);
  }

  // A request that was let in has ended. Durations below 0 are taken for 0, but a queue wait below 0 says that it
  // was never dispatched.
  void ended(std::uint32_t row, std::uint32_t cls, std::uint32_t code, std::int64_t request_ns,
             std::int64_t queue_wait_ns) {
    RequestCell& cell = counted(row, cls, code);
    cell.request.record(kDurationBoundsNs, at_least_0(request_ns));
    if (queue_wait_ns >= 0) cell.queue_wait.record(kDurationBoundsNs, at_least_0(queue_wait_ns));
  }

  // A request has ended whose duration says nothing. `reason`: why it was shed; kNoReason: it was not.
  void refused(std::uint32_t row, std::uint32_t cls, std::uint32_t code, std::uint32_t reason) {
    Layout::check("reason", reason, 0, kNoReason);
    RequestCell& cell = counted(row, cls, code);
    if (reason != kNoReason) bump(cell.shed[reason]);
  }

  // The trace of a request that has ended; the one before it of the same bucket is forgotten.
  void exemplar(std::uint32_t row, std::uint32_t cls, const ExemplarFacts& facts) {
    const auto* bucket = std::lower_bound(std::begin(kDurationBoundsNs), std::end(kDurationBoundsNs), facts.value_ns);
    cell(row, cls).exemplars[bucket - kDurationBoundsNs].write(facts);
  }

 private:
  static std::uint64_t at_least_0(std::int64_t ns) { return ns < 0 ? 0 : static_cast<std::uint64_t>(ns); }

  RequestCell& cell(std::uint32_t row, std::uint32_t cls) const {
    Layout::check("row", row, 0, kRequestRows - 1);
    Layout::check("class", cls, 0, kRequestClasses - 1);
    return arena_.request_cell(frontend_, row, cls);
  }

  RequestCell& counted(std::uint32_t row, std::uint32_t cls, std::uint32_t code) const {
    Layout::check("code", code, 0, kCodes - 1);
    RequestCell& found = cell(row, cls);
    bump(found.codes[code]);
    TICKRING_POINT("after code");
    return found;
  }

  Arena arena_;
  std::uint32_t frontend_;
};

template <std::size_t Buckets>
struct HistogramSums {
  std::uint64_t counts[Buckets]{};
  std::uint64_t total = 0;

  void include(const HistogramCounts<Buckets>& other) {
    for (std::size_t i = 0; i < Buckets; ++i) counts[i] += other.counts[i].load(std::memory_order_relaxed);
    total += other.total.load(std::memory_order_relaxed);
  }
};

// Of one model and class, over all front ends.
struct RequestSums {
  std::uint64_t codes[kCodes]{};
  std::uint64_t shed[kReasons]{};
  HistogramSums<kDurationBuckets> request, queue_wait;
  ExemplarFacts exemplars[kDurationBuckets];  // the newest of each bucket

  void include(const RequestCell& cell) {
    for (std::size_t i = 0; i < kCodes; ++i) codes[i] += cell.codes[i].load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < kReasons; ++i) shed[i] += cell.shed[i].load(std::memory_order_relaxed);
    request.include(cell.request);
    queue_wait.include(cell.queue_wait);
    for (std::size_t i = 0; i < kDurationBuckets; ++i) {
      ExemplarFacts found;
      if (cell.exemplars[i].read(found) && found.at_ns > exemplars[i].at_ns) exemplars[i] = found;
    }
  }
};

inline RequestSums request_sums(const Arena& arena, std::uint32_t row, std::uint32_t cls) {
  RequestSums sums;
  for (std::uint32_t frontend = 0; frontend < arena.layout().dims.frontends; ++frontend) {
    sums.include(arena.request_cell(frontend, row, cls));
  }
  return sums;
}

struct BucketSums {
  std::uint32_t bucket;  // 0: of all that found no position of their own
  HistogramSums<kDurationBuckets> compute;
};

// Of one model, over all engines.
struct BatchSums {
  HistogramSums<kBatchSizeBuckets> sizes;
  std::uint64_t padding = 0;
  std::vector<BucketSums> buckets;

  void include(const BatchCell& cell) {
    sizes.include(cell.sizes);
    padding += cell.padding.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < kMaxBuckets; ++i) {
      const std::uint32_t bucket = cell.buckets[i].load(std::memory_order_relaxed);
      if (bucket == 0) return;  // the others are taken in order
      of(bucket).include(cell.compute[i]);
    }
    of(0).include(cell.compute[kMaxBuckets]);
  }

 private:
  HistogramSums<kDurationBuckets>& of(std::uint32_t bucket) {
    for (BucketSums& known : buckets) {
      if (known.bucket == bucket) return known.compute;
    }
    return buckets.emplace_back(BucketSums{bucket, {}}).compute;
  }
};

inline BatchSums batch_sums(const Arena& arena, std::uint32_t row) {
  BatchSums sums;
  for (std::uint32_t engine = 0; engine < arena.layout().dims.engines; ++engine) {
    sums.include(arena.batch_cell(engine, row));
  }
  return sums;
}

}  // namespace tickring
