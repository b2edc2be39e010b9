// Best-fit-decreasing packing of texts into bins. Reference: modernbert_fast/packing.py
#pragma once

#include <cstdint>
#include <vector>

namespace modernbert_fast::host {

/// The bin of each text. The longest text goes first, ties in order; each goes to the bin with the least room that
/// still holds it, the lowest bin among equals, or to a new bin.
std::vector<int64_t> best_fit(const int64_t* lengths, int64_t count, int64_t capacity);

}  // namespace modernbert_fast::host
