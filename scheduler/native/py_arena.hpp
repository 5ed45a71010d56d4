// The arena as Python holds it, and how what is read of it becomes Python's.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "arena.hpp"

namespace tickring {

namespace nb = nanobind;

// Taken with noconvert(): a converted array is a copy, and what is written into it would be lost.
using Buffer = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Keeps the buffer alive for as long as anything points into it.
struct PyArena {
  Buffer buffer;
  Arena arena;
};

inline void check_engine(const PyArena& self, std::uint32_t engine) {
  Layout::check("engine", engine, 0, self.arena.layout().dims.engines - 1);
}

inline void check_frontend(const PyArena& self, std::uint32_t frontend) {
  Layout::check("frontend", frontend, 0, self.arena.layout().dims.frontends - 1);
}

inline void check_model(const PyArena& self, std::uint32_t model) {
  Layout::check("model", model, 0, self.arena.layout().dims.models - 1);
}

// relaxed: each count for itself; a reader may see one of them a step ahead of another.
inline std::uint64_t count_of(const std::atomic<std::uint64_t>& value) {
  return value.load(std::memory_order_relaxed);
}

template <std::size_t N>
nb::list list_of(const std::atomic<std::uint64_t> (&counters)[N]) {
  nb::list out;
  for (const auto& counter : counters) out.append(count_of(counter));
  return out;
}

template <std::size_t N>
nb::list list_of(const std::uint64_t (&values)[N]) {
  nb::list out;
  for (const std::uint64_t value : values) out.append(value);
  return out;
}

}  // namespace tickring
