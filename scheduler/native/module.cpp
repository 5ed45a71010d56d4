// Python's view of the arena: converts types, nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "ports.hpp"
#include "py_arena.hpp"
#include "py_records.hpp"
#include "rows.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using tickring::Buffer;
using tickring::check_engine;
using tickring::check_frontend;
using tickring::check_model;
using tickring::count_of;
using tickring::list_of;
using tickring::PyArena;

// Taken with noconvert(): a converted array is a copy, and what is written into it would be lost.
using Slots = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Instants = nb::ndarray<std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Outcomes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using MutableOutcomes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using AnyRows = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

struct PyScatter {
  PyArena arena;
  tickring::Scatter scatter;
};

tickring::Dimensions dimensions(std::uint32_t frontends, std::uint32_t engines, std::uint32_t models,
                                std::uint32_t slots_per_frontend, std::uint64_t input_row_bytes,
                                std::uint64_t output_row_bytes) {
  tickring::Dimensions dims;
  dims.frontends = frontends;
  dims.engines = engines;
  dims.models = models;
  dims.slots_per_frontend = slots_per_frontend;
  dims.input_row_bytes = input_row_bytes;
  dims.output_row_bytes = output_row_bytes;
  return dims;
}

// Rows move while other threads of the engine compute, so this runs without the GIL.
void gather_inputs(const PyArena& self, const Slots& slots, std::uint64_t offset, const Rows& into) {
  const std::size_t row_bytes = into.shape(1);
  tickring::Layout::check("rows", into.shape(0), slots.size(), std::numeric_limits<std::uint64_t>::max());
  tickring::check_place(offset, row_bytes, self.arena.layout().dims.input_row_bytes);
  tickring::check_slots(self.arena, slots.data(), slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    std::memcpy(into.data() + i * row_bytes, self.arena.input_row(slots.data()[i]) + offset, row_bytes);
  }
}

// Below this many bytes a copy is over before another thread has taken the GIL, and to get it back from one
// that computes in Python takes milliseconds.
constexpr std::uint64_t kCopyWithGil = 256 << 10;

void scatter(const PyScatter& self, const Slots& slots, const nb::sequence& outputs,
             std::uint32_t bucket, const MutableOutcomes& outcomes) {
  const auto& places = self.scatter.places();
  tickring::Layout::check("bucket", bucket, slots.size(), std::numeric_limits<std::uint32_t>::max());
  tickring::Layout::check("outcomes", outcomes.size(), slots.size(), std::numeric_limits<std::uint64_t>::max());
  tickring::Layout::check("outputs", nb::len(outputs), places.size(), places.size());
  tickring::check_slots(self.arena.arena, slots.data(), slots.size());
  std::vector<AnyRows> arrays;  // keeps them alive
  std::vector<const std::uint8_t*> rows;
  arrays.reserve(places.size());
  rows.reserve(places.size());
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    AnyRows array;
    if (!nb::try_cast<AnyRows>(outputs[i], array, false)) {
      throw nb::type_error((places[i].name + " is no contiguous array in host memory").c_str());
    }
    // Also where enough are left: whose row is missing, nobody knows.
    if (array.ndim() == 0 || array.shape(0) != bucket) {
      const std::size_t count = array.ndim() == 0 ? 0 : array.shape(0);
      throw nb::value_error((places[i].name + " has " + std::to_string(count) + " rows, the batch has " +
                             std::to_string(bucket)).c_str());
    }
    if (array.nbytes() != places[i].item_bytes * bucket) {
      throw nb::value_error((places[i].name + " has " + std::to_string(array.nbytes()) + " bytes, allowed is " +
                             std::to_string(places[i].item_bytes * bucket)).c_str());
    }
    rows.push_back(static_cast<const std::uint8_t*>(array.data()));
    arrays.push_back(std::move(array));
    bytes += places[i].item_bytes * slots.size();
  }
  if (bytes < kCopyWithGil) {
    self.scatter.run(slots.data(), slots.size(), rows, outcomes.data());
  } else {
    nb::gil_scoped_release released;
    self.scatter.run(slots.data(), slots.size(), rows, outcomes.data());
  }
}

void copy_deadlines(const PyArena& self, const Slots& slots, const Instants& into) {
  tickring::Layout::check("into", into.size(), slots.size(), slots.size());
  tickring::check_slots(self.arena, slots.data(), slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) into.data()[i] = self.arena.slot(slots.data()[i]).deadline_ns;
}

nb::list list_of(const tickring::PerClass& values) {
  nb::list out;
  for (const std::uint64_t value : values) out.append(value);
  return out;
}

nb::dict engine_stats(const PyArena& self, std::uint32_t engine) {
  check_engine(self, engine);
  const tickring::EngineStats& stats = self.arena.engine_stats(engine);
  nb::dict out;
  out["taken"] = count_of(stats.taken);
  out["completed"] = count_of(stats.completed);
  out["lost"] = count_of(stats.lost);
  out["ended"] = list_of(stats.ended);
  out["discarded"] = count_of(stats.discarded);
  out["batches"] = count_of(stats.batches);
  out["corrupt"] = count_of(stats.corrupt);
  out["sleeps"] = count_of(stats.sleeps);
  return out;
}

nb::dict frontend_stats(const PyArena& self, std::uint32_t frontend) {
  check_frontend(self, frontend);
  const tickring::FrontendStats& stats = self.arena.frontend_stats(frontend);
  nb::dict out;
  out["admitted"] = count_of(stats.admitted);
  out["ended"] = list_of(stats.ended);
  out["corrupt"] = count_of(stats.corrupt);
  return out;
}

nb::dict forecast(const PyArena& self, std::uint32_t engine, std::uint32_t model) {
  check_engine(self, engine);
  check_model(self, model);
  const tickring::Forecast& published = self.arena.forecast(engine, model);
  nb::dict out;
  out["target"] = published.target.load(std::memory_order_relaxed);
  out["item_ns"] = count_of(published.item_ns);
  // acquire: pairs with publish_forecast(). Bounded: it comes from shared memory.
  const std::uint32_t count =
      std::min(published.bucket_count.load(std::memory_order_acquire), tickring::kMaxBuckets);
  nb::list buckets;
  for (std::uint32_t i = 0; i < count; ++i) {
    const tickring::ForecastBucket& bucket = published.buckets[i];
    buckets.append(nb::make_tuple(bucket.size.load(std::memory_order_relaxed), count_of(bucket.median_ns),
                                  count_of(bucket.high_ns), count_of(bucket.floor_ns)));
  }
  out["buckets"] = buckets;
  return out;
}

nb::object deadline_or_none(std::uint64_t deadline_ns) {
  if (deadline_ns == tickring::kNoDeadline) return nb::none();
  return nb::int_(deadline_ns);
}

}  // namespace

NB_MODULE(_ring, m) {
  m.doc() = "Lanes, completions and gates in shared memory; see the headers beside module.cpp.";
  m.attr("CLASSES") = tickring::kClasses;
  m.attr("NO_DEADLINE") = tickring::kNoDeadline;
  m.attr("MAX_FRONTENDS") = tickring::kMaxFrontends;
  m.attr("MAX_MODELS") = tickring::kMaxModels;
  m.attr("MAX_BUCKETS") = tickring::kMaxBuckets;
  m.attr("MAX_SLOTS_PER_FRONTEND") = tickring::kMaxSlotsPerFrontend;

  m.def("now_ns", &tickring::now_ns, "CLOCK_MONOTONIC, nanoseconds.");
  m.def(
      "all_finite",
      [](nb::bytes data, std::uint32_t float_bytes) {
        return tickring::all_finite(static_cast<const std::uint8_t*>(data.data()), data.size(), float_bytes);
      },
      "data"_a, "float_bytes"_a,
      "Whether no float among these, of 2, 4 or 8 bytes each and one after the other, is NaN or infinite.");
  m.def(
      "arena_bytes",
      [](std::uint32_t frontends, std::uint32_t engines, std::uint32_t models,
         std::uint32_t slots_per_frontend, std::uint64_t input_row_bytes, std::uint64_t output_row_bytes) {
        return tickring::Layout::of(dimensions(frontends, engines, models, slots_per_frontend,
                                               input_row_bytes, output_row_bytes))
            .total_bytes;
      },
      nb::kw_only(), "frontends"_a, "engines"_a, "models"_a, "slots_per_frontend"_a, "input_row_bytes"_a,
      "output_row_bytes"_a, "Bytes an arena of these dimensions needs.");

  nb::class_<PyArena> arena(m, "Arena");
  arena
      .def_static(
          "format",
          [](Buffer buffer, std::uint32_t frontends, std::uint32_t engines, std::uint32_t models,
             std::uint32_t slots_per_frontend, std::uint64_t input_row_bytes,
             std::uint64_t output_row_bytes) {
            auto made = tickring::Arena::format(buffer.data(), buffer.size(),
                                                dimensions(frontends, engines, models, slots_per_frontend,
                                                           input_row_bytes, output_row_bytes));
            return PyArena{std::move(buffer), made};
          },
          "buffer"_a.noconvert(), nb::kw_only(), "frontends"_a, "engines"_a, "models"_a, "slots_per_frontend"_a,
          "input_row_bytes"_a, "output_row_bytes"_a)
      .def_static(
          "attach",
          [](Buffer buffer) {
            auto made = tickring::Arena::attach(buffer.data(), buffer.size());
            return PyArena{std::move(buffer), made};
          },
          "buffer"_a.noconvert())
      .def_prop_ro("frontends", [](const PyArena& self) { return self.arena.layout().dims.frontends; })
      .def_prop_ro("engines", [](const PyArena& self) { return self.arena.layout().dims.engines; })
      .def_prop_ro("models", [](const PyArena& self) { return self.arena.layout().dims.models; })
      .def_prop_ro("slots_per_frontend",
                   [](const PyArena& self) { return self.arena.layout().dims.slots_per_frontend; })
      .def_prop_ro("input_row_bytes",
                   [](const PyArena& self) { return self.arena.layout().dims.input_row_bytes; })
      .def_prop_ro("output_row_bytes",
                   [](const PyArena& self) { return self.arena.layout().dims.output_row_bytes; })
      .def_prop_ro("input_slab", [](const PyArena& self) { return self.arena.layout().input_slab; })
      .def_prop_ro("output_slab", [](const PyArena& self) { return self.arena.layout().output_slab; })
      .def_prop_ro("slot_headers", [](const PyArena& self) { return self.arena.layout().slot_headers; })
      .def_prop_ro("slots", [](const PyArena& self) { return self.arena.layout().slots(); })
      .def("epoch",
           [](const PyArena& self, std::uint32_t frontend) {
             check_frontend(self, frontend);
             return self.arena.epoch(frontend).load(std::memory_order_acquire);
           })
      .def("reset_frontend",
           [](const PyArena& self, std::uint32_t frontend) {
             check_frontend(self, frontend);
             self.arena.reset_frontend(frontend);
           })
      .def("reset_engine",
           [](const PyArena& self, std::uint32_t engine) {
             check_engine(self, engine);
             self.arena.reset_engine(engine);
           })
      .def("gather_inputs", &gather_inputs, "slots"_a.noconvert(), "offset"_a, "into"_a.noconvert(),
           nb::call_guard<nb::gil_scoped_release>())
      .def("deadlines", &copy_deadlines, "slots"_a.noconvert(), "into"_a.noconvert(),
           "Copies the deadline (ns) of each slot; NO_DEADLINE: none. For the owner of the slots.")
      .def("engine_stats", &engine_stats,
           nb::sig("def engine_stats(self, engine: int, /) -> dict[str, typing.Any]"),
           "Counters by name; `ended` is a list by outcome. What is not `completed` or `lost` of what was "
           "`taken` is in a batch.")
      .def("frontend_stats", &frontend_stats, "frontend"_a,
           nb::sig("def frontend_stats(self, frontend: int) -> dict[str, typing.Any]"),
           "`admitted`, `corrupt`, and `ended`: a list by outcome, the last of them LOST.")
      .def(
          "free_slots",
          [](const PyArena& self, std::uint32_t frontend) {
            check_frontend(self, frontend);
            return count_of(self.arena.frontend_stats(frontend).free_slots);
          },
          "frontend"_a, "What that front end last published.")
      .def(
          "engine_progress",
          [](const PyArena& self, std::uint32_t engine) {
            check_engine(self, engine);
            const auto [waiting, steps] = self.arena.engine_progress(engine);
            return nb::make_tuple(waiting, steps);
          },
          "engine"_a, nb::sig("def engine_progress(self, engine: int) -> tuple[int, int]"),
          "Items queued or in a batch, and a count that changes with whatever the engine does to one.")
      .def(
          "frontend_progress",
          [](const PyArena& self, std::uint32_t frontend) {
            check_frontend(self, frontend);
            const auto [undelivered, delivered] = self.arena.frontend_progress(frontend);
            return nb::make_tuple(undelivered, delivered);
          },
          "frontend"_a, nb::sig("def frontend_progress(self, frontend: int) -> tuple[int, int]"),
          "Completions not drained, and a count that changes with every drain of one.")
      .def(
          "depth",
          [](const PyArena& self, std::uint32_t engine, std::uint32_t model, std::uint32_t cls) {
            check_engine(self, engine);
            check_model(self, model);
            tickring::Layout::check("class", cls, 0, tickring::kClasses - 1);
            return self.arena.depth(engine, model, cls);
          },
          "engine"_a, "model"_a, "cls"_a, "Items queued, over all front ends.")
      .def("forecast", &forecast, "engine"_a, "model"_a,
           nb::sig("def forecast(self, engine: int, model: int) -> dict[str, typing.Any]"),
           "`target` (items), `item_ns`, and `buckets`: tuples of size, median, high and floor (ns).")
      .def(
          "free_at_ns",
          [](const PyArena& self, std::uint32_t engine) {
            check_engine(self, engine);
            return count_of(self.arena.free_at(engine));
          },
          "engine"_a, "When an instance is expected to be free; 0: one is.");
  tickring::bind_records(m, arena);

  nb::class_<PyScatter>(m, "Scatter")
      .def(
          "__init__",
          [](PyScatter* self, const PyArena& of,
             const std::vector<std::tuple<std::string, std::uint64_t, std::uint64_t, std::uint32_t>>& places) {
            std::vector<tickring::OutputPlace> list;
            for (const auto& [name, offset, item_bytes, float_bytes] : places) {
              list.push_back({name, offset, item_bytes, float_bytes});
            }
            new (self) PyScatter{of, tickring::Scatter(of.arena, std::move(list))};
          },
          "arena"_a, "places"_a,
          "`places`: name, offset in the row, bytes of an item, and bytes of an element that must be finite (0: "
          "any) of each output.")
      .def(
          "run", &scatter, "slots"_a.noconvert(), "outputs"_a, "bucket"_a, "outcomes"_a.noconvert(),
          nb::sig("def run(self, slots: numpy.typing.NDArray[numpy.uint32], outputs: "
                  "collections.abc.Sequence[numpy.typing.NDArray[typing.Any]], bucket: int, outcomes: "
                  "numpy.typing.NDArray[numpy.uint8]) -> None"),
          "Row i of each output, `[bucket, ...]`, to slots[i]; outcomes[i] is RESULT or NON_FINITE. ValueError "
          "or TypeError naming the output that does not fit; nothing is copied then.");

  nb::class_<tickring::FrontendPort>(m, "FrontendPort")
      .def(
          "__init__",
          [](tickring::FrontendPort* self, const PyArena& of, std::uint32_t frontend, int eventfd,
             const std::vector<int>& engine_eventfds) {
            new (self) tickring::FrontendPort(of.arena, frontend, eventfd, engine_eventfds);
          },
          "arena"_a, "frontend"_a, "eventfd"_a, "engine_eventfds"_a, nb::keep_alive<1, 2>())
      .def(
          "push",
          [](tickring::FrontendPort& self, std::uint32_t engine, std::uint32_t model, std::uint32_t cls,
             const std::vector<std::uint32_t>& slots, std::uint64_t key, std::uint64_t enqueued_ns,
             std::uint64_t deadline_ns, std::uint32_t request, bool exclusive) {
            return self.push(engine, model, cls, slots.data(), slots.size(),
                             tickring::Ticket{key, enqueued_ns, deadline_ns, request, exclusive});
          },
          "engine"_a, "model"_a, "cls"_a, "slots"_a, "key"_a, "enqueued_ns"_a, "deadline_ns"_a, "request"_a,
          "exclusive"_a)
      .def("cancel", &tickring::FrontendPort::cancel, "slot"_a)
      .def("drain",
           [](tickring::FrontendPort& self) {
             nb::list out;
             self.drain([&out](std::uint32_t slot, tickring::Outcome outcome,
                               const tickring::SlotHeader& header) {
               out.append(nb::make_tuple(slot, static_cast<std::uint8_t>(outcome), header.enqueued_ns,
                                         header.dispatched_ns, header.compute_start_ns,
                                         header.compute_end_ns, header.batch, header.batch_size,
                                         header.batch_bucket));
             });
             return out;
           },
           nb::sig("def drain(self) -> list[tuple[int, int, int, int, int, int, int, int, int]]"),
           "Slot, outcome, enqueued, dispatched, compute start and end (ns), batch, its size and bucket.")
      .def("publish_free_slots", &tickring::FrontendPort::publish_free_slots, "count"_a)
      .def("publish_held", &tickring::FrontendPort::publish_held, "model"_a, "cls"_a, "items"_a)
      .def("end_unqueued", &tickring::FrontendPort::end_unqueued, "count"_a, "outcome"_a,
           "Notes that `count` items were admitted and ended here without ever being pushed.")
      .def("lose", &tickring::FrontendPort::lose, "count"_a,
           "Notes that `count` open items ended here as LOST. ValueError when fewer are open.")
      .def(
          "depths",
          [](const tickring::FrontendPort& self, std::uint32_t engine) { return list_of(self.depths(engine)); },
          "engine"_a, nb::sig("def depths(self, engine: int) -> list[int]"),
          "Items that wait for an engine, by class, over all front ends and models.")
      .def(
          "backlog_ns",
          [](const tickring::FrontendPort& self, std::uint32_t engine) {
            return list_of(self.backlog_ns(engine));
          },
          "engine"_a, nb::sig("def backlog_ns(self, engine: int) -> list[int]"),
          "What those items cost in engine time, by the engine's forecast.")
      .def("arm", &tickring::FrontendPort::arm)
      .def("woken", &tickring::FrontendPort::woken)
      .def_prop_ro("first_slot", &tickring::FrontendPort::first_slot);

  nb::class_<tickring::EnginePort>(m, "EnginePort")
      .def(
          "__init__",
          [](tickring::EnginePort* self, const PyArena& of, std::uint32_t engine, int eventfd,
             const std::vector<int>& frontend_eventfds, std::uint64_t models,
             std::vector<std::uint32_t> rows) {
            new (self)
                tickring::EnginePort(of.arena, engine, eventfd, frontend_eventfds, models, std::move(rows));
          },
          "arena"_a, "engine"_a, "eventfd"_a, "frontend_eventfds"_a, "models"_a = tickring::kAllModels,
          "rows"_a = std::vector<std::uint32_t>(),
          "`models`: a bit for each that the engine serves; the lanes of the others stay empty. `rows`: by model, "
          "where its batches are counted; past its end, in the row of the model's own number.",
          nb::keep_alive<1, 2>())
      .def("look",
           [](tickring::EnginePort& self) {
             nb::list out;
             self.look([&out](std::uint32_t model, std::uint32_t cls, const tickring::ClassBacklog& backlog) {
               out.append(nb::make_tuple(model, cls, backlog.depth, backlog.key, backlog.enqueued_ns,
                                         deadline_or_none(backlog.deadline_ns)));
             });
             return out;
           },
           nb::sig("def look(self) -> list[tuple[int, int, int, int, int, int | None]]"),
           "Model, class, depth, smallest key, oldest enqueue and soonest deadline (ns), where depth > 0.")
      .def(
          "take",
          [](tickring::EnginePort& self, std::uint32_t model, std::uint64_t now, std::uint64_t expected_ns,
             nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> into,
             std::uint32_t classes) {
            return self.take(model, into.size(), now, expected_ns, into.data(), classes);
          },
          "model"_a, "now_ns"_a, "expected_ns"_a, "into"_a.noconvert(), "classes"_a = tickring::kAllClasses,
          "Fills `into` and returns how many. `classes`: a bit for each it may take, bit 0 the most urgent.")
      .def(
          "complete",
          [](tickring::EnginePort& self, Slots slots, Outcomes outcomes, std::uint64_t dispatched_ns,
             std::uint64_t compute_start_ns, std::uint64_t compute_end_ns, std::uint64_t batch,
             std::uint32_t bucket) {
            tickring::Layout::check("outcomes", outcomes.size(), slots.size(), slots.size());
            self.complete(slots.data(), outcomes.data(), slots.size(),
                          tickring::BatchFacts{dispatched_ns, compute_start_ns, compute_end_ns, batch,
                                               static_cast<std::uint32_t>(slots.size()), bucket});
          },
          "slots"_a.noconvert(), "outcomes"_a.noconvert(), "dispatched_ns"_a, "compute_start_ns"_a,
          "compute_end_ns"_a, "batch"_a, "bucket"_a)
      .def("discard", &tickring::EnginePort::discard, "frontend"_a)
      .def(
          "publish_forecast",
          [](tickring::EnginePort& self, std::uint32_t model, std::uint32_t target, std::uint64_t item_ns,
             std::vector<std::uint32_t> sizes, std::vector<std::uint64_t> median_ns,
             std::vector<std::uint64_t> high_ns, std::vector<std::uint64_t> floor_ns) {
            self.publish_forecast(
                model, {target, item_ns, std::move(sizes), std::move(median_ns),
                        std::move(high_ns), std::move(floor_ns)});
          },
          "model"_a, "target"_a, "item_ns"_a, "sizes"_a, "median_ns"_a, "high_ns"_a,
          "floor_ns"_a, "The last four by bucket. ValueError naming one that is too long or of another length.")
      .def("count_batch", &tickring::EnginePort::count_batch, "model"_a, "size"_a, "bucket"_a, "compute_ns"_a)
      .def("publish_in_flight", &tickring::EnginePort::publish_in_flight, "batches"_a)
      .def("publish_free_at", &tickring::EnginePort::publish_free_at, "ns"_a,
           "When an instance will be free; 0: one is.")
      .def("wait", &tickring::EnginePort::wait, "timeout_ns"_a, "spin_ns"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("wake", &tickring::EnginePort::wake);
}
