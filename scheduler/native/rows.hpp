// Rows of a batch between the slots and the arrays of an instance. Used by whoever owns the slots.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arena.hpp"

namespace tickring {

inline void check_slots(const Arena& arena, const std::uint32_t* slots, std::size_t count) {
  const std::uint64_t last = arena.layout().slots() - 1;
  for (std::size_t i = 0; i < count; ++i) Layout::check("slot", slots[i], 0, last);
}

// Where `row_bytes` bytes at `offset` lie within a row of `room` bytes.
inline void check_place(std::uint64_t offset, std::uint64_t row_bytes, std::uint64_t room) {
  Layout::check("offset", offset, 0, room);  // first, so that the next line cannot wrap
  Layout::check("offset + row bytes", offset + row_bytes, 0, room);
}

// Whether any element has its exponent all ones: NaN or infinity, in every IEEE 754 format. Without an early
// exit, so that the compiler uses vectors.
template <typename Bits>
bool has_non_finite(const std::uint8_t* bytes, std::uint64_t size, Bits exponent) {
  unsigned found = 0;
  for (std::uint64_t at = 0; at + sizeof(Bits) <= size; at += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, bytes + at, sizeof bits);
    found |= static_cast<unsigned>((bits & exponent) == exponent);
  }
  return found != 0;
}

// Whether every float is; `float_bytes` of each: 2, 4 or 8; 0: these are none.
inline bool all_finite(const std::uint8_t* bytes, std::uint64_t size, std::uint32_t float_bytes) {
  switch (float_bytes) {
    case 2: return !has_non_finite<std::uint16_t>(bytes, size, 0x7c00);
    case 4: return !has_non_finite<std::uint32_t>(bytes, size, 0x7f800000);
    case 8: return !has_non_finite<std::uint64_t>(bytes, size, 0x7ff0000000000000);
    default: return true;
  }
}

// One output of a model: where it lies in a row of the output slab.
struct OutputPlace {
  std::string name;
  std::uint64_t offset;
  std::uint64_t item_bytes;
  std::uint32_t float_bytes;  // of an element that must be finite: 2, 4 or 8; 0: anything goes

  bool is_finite(const std::uint8_t* row) const { return all_finite(row, item_bytes, float_bytes); }
};

// Hands the outputs of one model to their slots: one call per batch, since what runs after a model finds the
// caches full of the model, and every instruction that is not needed is a miss that is not waited for.
class Scatter {
 public:
  // Throws std::invalid_argument naming what does not fit the arena.
  Scatter(const Arena& arena, std::vector<OutputPlace> places) : arena_(arena), places_(std::move(places)) {
    for (const OutputPlace& place : places_) {
      check_place(place.offset, place.item_bytes, arena_.layout().dims.output_row_bytes);
      if (place.float_bytes != 0 && place.float_bytes != 2 && place.float_bytes != 4 && place.float_bytes != 8) {
        throw std::invalid_argument("float_bytes is " + std::to_string(place.float_bytes) +
                                    ", allowed is 0, 2, 4 or 8");
      }
    }
  }

  const std::vector<OutputPlace>& places() const { return places_; }

  // Row i of every output goes to slots[i]; outcomes[i] says whether all that must be finite is. The slots
  // have been checked, and `outputs` holds at least `count` rows for each place.
  void run(const std::uint32_t* slots, std::size_t count, const std::vector<const std::uint8_t*>& outputs,
           std::uint8_t* outcomes) const {
    std::memset(outcomes, static_cast<int>(Outcome::kResult), count);
    for (std::size_t output = 0; output < places_.size(); ++output) {
      const OutputPlace& place = places_[output];
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint8_t* row = outputs[output] + i * place.item_bytes;
        std::memcpy(arena_.output_row(slots[i]) + place.offset, row, place.item_bytes);
        if (!place.is_finite(row)) outcomes[i] = static_cast<std::uint8_t>(Outcome::kNonFinite);
      }
    }
  }

 private:
  Arena arena_;
  std::vector<OutputPlace> places_;
};

}  // namespace tickring
