// What everything in the arena is built of: limits, alignment, and counters that have one writer.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>

// Tests define this to die, or to yield, at a named point of an operation.
#ifndef TICKRING_POINT
#define TICKRING_POINT(name) ((void)0)
#endif

namespace tickring {

// Two lines, not one: x86 prefetches lines in pairs, so neighbours closer than this still ping-pong.
inline constexpr std::size_t kLine = 64;
inline constexpr std::size_t kNoFalseSharing = 128;
inline constexpr std::size_t kPage = 4096;

inline constexpr std::uint32_t kClasses = 5;
inline constexpr std::uint32_t kMaxFrontends = 64;
inline constexpr std::uint32_t kMaxEngines = 32;
inline constexpr std::uint32_t kMaxModels = 64;
inline constexpr std::uint32_t kMaxBuckets = 64;
inline constexpr std::uint32_t kMaxSlotsPerFrontend = 1u << 16;
inline constexpr std::uint64_t kMaxRowBytes = 1ull << 30;
inline constexpr std::uint64_t kNoDeadline = std::numeric_limits<std::uint64_t>::max();

// A shared atomic must be the bare integer: no lock beside it, no padding.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(std::atomic<std::uint8_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint64_t>) == 8);
static_assert(sizeof(std::atomic<std::uint8_t>) == 1);

// Single writer: a load and a store, no locked instruction. relaxed: a count announces nothing.
inline void add(std::atomic<std::uint64_t>& counter, std::uint64_t by) {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}
inline void bump(std::atomic<std::uint64_t>& counter) { add(counter, 1); }

template <std::size_t N>
std::uint64_t sum(const std::atomic<std::uint64_t> (&counters)[N]) {
  std::uint64_t total = 0;
  for (const auto& counter : counters) total += counter.load(std::memory_order_relaxed);
  return total;
}

}  // namespace tickring
