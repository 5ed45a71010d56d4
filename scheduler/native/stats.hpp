// What is counted of requests and of batches: histograms, counts by code and reason, exemplars. A cell has one
// writer at a time and outlives it; whoever reads may find a value that is between two stores of one record.
#pragma once

#include <algorithm>
#include <iterator>

#include "counters.hpp"

namespace tickring {

// Upper bounds of the buckets of every duration, inclusive: 50 µs to 10 s, in nanoseconds.
inline constexpr std::uint64_t kDurationBoundsNs[] = {
    50'000,        100'000,       200'000,       300'000,       500'000,       750'000,
    1'000'000,     1'500'000,     2'000'000,     3'000'000,     5'000'000,     7'500'000,
    10'000'000,    15'000'000,    20'000'000,    30'000'000,    50'000'000,    75'000'000,
    100'000'000,   150'000'000,   200'000'000,   300'000'000,   500'000'000,   750'000'000,
    1'000'000'000, 1'500'000'000, 2'000'000'000, 3'000'000'000, 5'000'000'000, 7'500'000'000,
    10'000'000'000};
// Likewise of batch sizes, in rows.
inline constexpr std::uint64_t kBatchSizeBounds[] = {1,  2,   4,   8,   16,   32,  64,
                                                     128, 256, 512, 1024, 2048, 4096};
inline constexpr std::size_t kDurationBuckets = std::size(kDurationBoundsNs) + 1;
inline constexpr std::size_t kBatchSizeBuckets = std::size(kBatchSizeBounds) + 1;

template <std::size_t N>
constexpr bool ascends(const std::uint64_t (&bounds)[N]) {
  for (std::size_t i = 1; i < N; ++i) {
    if (bounds[i - 1] >= bounds[i]) return false;
  }
  return true;
}
static_assert(ascends(kDurationBoundsNs));
static_assert(ascends(kBatchSizeBounds));

// A row for each model name that is served in the life of a service; where there are more names, the others
// share one, and what ends before its model is known has one, too.
inline constexpr std::uint32_t kOtherModels = kMaxModels;
inline constexpr std::uint32_t kNoModel = kMaxModels + 1;
inline constexpr std::uint32_t kRequestRows = kMaxModels + 2;
inline constexpr std::uint32_t kBatchRows = kMaxModels + 1;
// What ends before its class is known counts for this one.
inline constexpr std::uint32_t kNoClass = kClasses;
inline constexpr std::uint32_t kRequestClasses = kClasses + 1;
inline constexpr std::uint32_t kCodes = 17;  // of gRPC, OK to UNAUTHENTICATED
// Reasons to refuse; what they are is the server's business.
inline constexpr std::uint32_t kReasons = 8;
inline constexpr std::uint32_t kNoReason = kReasons;

template <std::size_t Buckets>
struct HistogramCounts {
  std::atomic<std::uint64_t> counts[Buckets];  // of each bucket alone; the last has what is over all bounds
  std::atomic<std::uint64_t> total;            // sum of all values

  // Returns the bucket.
  std::size_t record(const std::uint64_t (&bounds)[Buckets - 1], std::uint64_t value) {
    const auto bucket =
        static_cast<std::size_t>(std::lower_bound(std::begin(bounds), std::end(bounds), value) - bounds);
    bump(counts[bucket]);
    TICKRING_POINT("in record");
    add(total, value);
    return bucket;
  }
};
using DurationCounts = HistogramCounts<kDurationBuckets>;
using BatchSizeCounts = HistogramCounts<kBatchSizeBuckets>;

// One traced request of a bucket.
struct ExemplarFacts {
  std::uint64_t trace_high = 0;  // the first eight bytes of the trace id as a big-endian number
  std::uint64_t trace_low = 0;   // and the others
  std::uint64_t value_ns = 0;
  std::uint64_t at_ns = 0;  // since the epoch of Unix; 0: there is none
};

// A sequence lock: half of one trace id and half of another would name a trace that never was. A writer that dies
// inside leaves it closed, and the next one opens it again.
class Exemplar {
 public:
  void write(const ExemplarFacts& facts) {
    // odd: being written
    const std::uint64_t closed = version_.load(std::memory_order_relaxed) | 1;
    version_.store(closed, std::memory_order_relaxed);
    // release: whoever sees one of these sees the lock closed.
    TICKRING_POINT("before exemplar");
    trace_high_.store(facts.trace_high, std::memory_order_release);
    TICKRING_POINT("in exemplar");
    trace_low_.store(facts.trace_low, std::memory_order_release);
    value_ns_.store(facts.value_ns, std::memory_order_release);
    at_ns_.store(facts.at_ns, std::memory_order_release);
    version_.store(closed + 1, std::memory_order_release);
  }

  // False: it is being written; nothing has been read.
  bool read(ExemplarFacts& facts) const {
    const std::uint64_t before = version_.load(std::memory_order_acquire);
    ExemplarFacts found;
    // acquire: what they were stored after is seen by the second look at the version.
    found.trace_high = trace_high_.load(std::memory_order_acquire);
    TICKRING_POINT("in look at exemplar");
    found.trace_low = trace_low_.load(std::memory_order_acquire);
    found.value_ns = value_ns_.load(std::memory_order_acquire);
    found.at_ns = at_ns_.load(std::memory_order_acquire);
    if ((before & 1) != 0 || version_.load(std::memory_order_relaxed) != before) return false;
    facts = found;
    return true;
  }

 private:
  std::atomic<std::uint64_t> version_;
  std::atomic<std::uint64_t> trace_high_;
  std::atomic<std::uint64_t> trace_low_;
  std::atomic<std::uint64_t> value_ns_;
  std::atomic<std::uint64_t> at_ns_;
};
static_assert(sizeof(Exemplar) == 40);

// The requests of one model and class that one front end has answered or refused.
struct RequestCell {
  alignas(kNoFalseSharing) std::atomic<std::uint64_t> codes[kCodes];
  std::atomic<std::uint64_t> shed[kReasons];
  DurationCounts request;     // from arrival to answer
  DurationCounts queue_wait;  // from admission to dispatch
  Exemplar exemplars[kDurationBuckets];  // by bucket of `request`
};
static_assert(sizeof(RequestCell) == 2048);

// The batches of one model that one engine has run.
struct BatchCell {
  // A bucket keeps its position for the life of the service; 0: a position that none has.
  alignas(kNoFalseSharing) std::atomic<std::uint32_t> buckets[kMaxBuckets];
  BatchSizeCounts sizes;  // in rows, without padding
  std::atomic<std::uint64_t> padding;
  DurationCounts compute[kMaxBuckets + 1];  // by position; the last for buckets that find none free

  void record(std::uint32_t size, std::uint32_t bucket, std::uint64_t compute_ns) {
    sizes.record(kBatchSizeBounds, size);
    add(padding, bucket > size ? bucket - size : 0);
    compute[position(bucket)].record(kDurationBoundsNs, compute_ns);
  }

 private:
  std::size_t position(std::uint32_t bucket) {
    for (std::size_t i = 0; i < kMaxBuckets; ++i) {
      const std::uint32_t known = buckets[i].load(std::memory_order_relaxed);
      if (known == bucket) return i;
      if (known == 0) {
        buckets[i].store(bucket, std::memory_order_relaxed);
        return i;
      }
    }
    return kMaxBuckets;
  }
};
static_assert(sizeof(BatchCell) % kNoFalseSharing == 0);

}  // namespace tickring
