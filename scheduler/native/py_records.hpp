// Python's view of what is counted of requests and batches: converts types, nothing else.
#pragma once

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "py_arena.hpp"
#include "records.hpp"

namespace tickring {

inline constexpr std::size_t kTraceIdBytes = 16;

inline std::uint64_t big_endian(const char* bytes) {
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < 8; ++i) number = number << 8 | static_cast<std::uint8_t>(bytes[i]);
  return number;
}

inline nb::bytes trace_id(const ExemplarFacts& facts) {
  char bytes[kTraceIdBytes];
  for (std::size_t i = 0; i < 8; ++i) {
    bytes[i] = static_cast<char>(facts.trace_high >> (56 - 8 * i));
    bytes[8 + i] = static_cast<char>(facts.trace_low >> (56 - 8 * i));
  }
  return nb::bytes(bytes, kTraceIdBytes);
}

inline nb::dict request_counts(const PyArena& self, std::uint32_t row, std::uint32_t cls) {
  Layout::check("row", row, 0, kRequestRows - 1);
  Layout::check("class", cls, 0, kRequestClasses - 1);
  const RequestSums sums = request_sums(self.arena, row, cls);
  nb::list exemplars;
  for (std::size_t bucket = 0; bucket < kDurationBuckets; ++bucket) {
    const ExemplarFacts& facts = sums.exemplars[bucket];
    if (facts.at_ns != 0) exemplars.append(nb::make_tuple(bucket, trace_id(facts), facts.value_ns, facts.at_ns));
  }
  nb::dict out;
  out["codes"] = list_of(sums.codes);
  out["shed"] = list_of(sums.shed);
  out["request"] = list_of(sums.request.counts);
  out["request_ns"] = sums.request.total;
  out["queue_wait"] = list_of(sums.queue_wait.counts);
  out["queue_wait_ns"] = sums.queue_wait.total;
  out["exemplars"] = exemplars;
  return out;
}

inline nb::dict batch_counts(const PyArena& self, std::uint32_t row) {
  Layout::check("row", row, 0, kBatchRows - 1);
  const BatchSums sums = batch_sums(self.arena, row);
  nb::list compute;
  for (const BucketSums& each : sums.buckets) {
    compute.append(nb::make_tuple(each.bucket, list_of(each.compute.counts), each.compute.total));
  }
  nb::dict out;
  out["sizes"] = list_of(sums.sizes.counts);
  out["rows"] = sums.sizes.total;
  out["padding"] = sums.padding;
  out["compute"] = compute;
  return out;
}

inline void bind_records(nb::module_& m, nb::class_<PyArena>& arena) {
  using namespace nb::literals;
  m.def(
      "duration_bounds_ns", [] { return list_of(kDurationBoundsNs); },
      nb::sig("def duration_bounds_ns() -> list[int]"),
      "Upper bounds, inclusive, of the buckets of every duration.");
  m.def(
      "batch_size_bounds", [] { return list_of(kBatchSizeBounds); },
      nb::sig("def batch_size_bounds() -> list[int]"), "Likewise of batch sizes.");
  m.attr("OTHER_MODELS") = kOtherModels;
  m.attr("NO_MODEL") = kNoModel;
  m.attr("NO_CLASS") = kNoClass;
  m.attr("CODES") = kCodes;
  m.attr("REASONS") = kReasons;
  m.attr("NO_REASON") = kNoReason;

  arena
      .def("request_counts", &request_counts, "row"_a, "cls"_a,
           nb::sig("def request_counts(self, row: int, cls: int) -> dict[str, typing.Any]"),
           "Over all front ends. Lists: `codes`, `shed` by reason, `request` and `queue_wait` by bucket; sums: "
           "`request_ns`, `queue_wait_ns`; `exemplars`: bucket, trace id, its duration and when (ns since 1970).")
      .def("batch_counts", &batch_counts, "row"_a,
           nb::sig("def batch_counts(self, row: int) -> dict[str, typing.Any]"),
           "Over all engines. `sizes` by bucket of batch_size_bounds(), `rows`, `padding`, and `compute`: tuples of "
           "batch bucket, counts and sum (ns); of batch bucket 0 what has no position of its own.")
      .def(
          "held",
          [](const PyArena& self, std::uint32_t model, std::uint32_t cls) {
            check_model(self, model);
            Layout::check("class", cls, 0, kClasses - 1);
            return self.arena.held_items(model, cls);
          },
          "model"_a, "cls"_a, "Items held at the entrance, over all front ends.")
      .def(
          "in_flight",
          [](const PyArena& self, std::uint32_t engine) {
            check_engine(self, engine);
            return count_of(self.arena.in_flight(engine));
          },
          "engine"_a, "Batches, as that engine last published.");

  nb::class_<RequestRecorder>(m, "RequestRecorder")
      .def(
          "__init__",
          [](RequestRecorder* self, const PyArena& of, std::uint32_t frontend) {
            new (self) RequestRecorder(of.arena, frontend);
          },
          "arena"_a, "frontend"_a, nb::keep_alive<1, 2>())
      .def("ended", &RequestRecorder::ended, "row"_a, "cls"_a, "code"_a, "request_ns"_a, "queue_wait_ns"_a,
           "`queue_wait_ns` below 0: it was never dispatched.")
      .def("refused", &RequestRecorder::refused, "row"_a, "cls"_a, "code"_a, "reason"_a,
           "Counts without durations. `reason` NO_REASON: it was not shed.")
      .def(
          "exemplar",
          [](RequestRecorder& self, std::uint32_t row, std::uint32_t cls, std::uint64_t request_ns,
             const nb::bytes& trace, std::uint64_t at_ns) {
            Layout::check("trace id bytes", trace.size(), kTraceIdBytes, kTraceIdBytes);
            self.exemplar(row, cls, {big_endian(trace.c_str()), big_endian(trace.c_str() + 8), request_ns, at_ns});
          },
          "row"_a, "cls"_a, "request_ns"_a, "trace_id"_a, "at_ns"_a,
          "`trace_id`: 16 bytes. `at_ns`: since 1970. The newest of each bucket is kept.");
}

}  // namespace tickring
