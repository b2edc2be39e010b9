// Best-fit packing of texts into bins, all at once or as they come. Reference: modernbert_fast/packing.py
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace modernbert_fast::host {

/// The bin of each text. The longest text goes first, ties in order; each goes to the bin with the least room that
/// still holds it, the lowest bin among equals, or to a new bin.
std::vector<int64_t> best_fit(const int64_t* lengths, int64_t count, int64_t capacity);

/// Bins end to end: bin i holds items[bounds[i]] to items[bounds[i + 1] - 1].
struct Packed {
  std::vector<int64_t> items, bounds = {0};
  void push(const std::vector<int64_t>& bin);
};

/// At most `limit` bins that are open at a time, for a stream of texts: best fit, the fullest bin leaves for a new one.
class Bins {
 public:
  explicit Bins(size_t limit) : limit_(limit) {}

  /// Adds texts, each of 1 to capacity tokens, and returns the bins that became complete.
  Packed add(const int64_t* items, const int64_t* lengths, int64_t count, int64_t capacity);

  /// The open bins, the fullest first.
  Packed open() const;

  /// Room and number of each open bin, in the same order.
  std::pair<std::vector<int64_t>, std::vector<int64_t>> keys() const;

  void load(const int64_t* items, const int64_t* bounds, const int64_t* rooms, const int64_t* numbers, size_t count,
            int64_t opened);
  void clear() { open_.clear(); }
  int64_t opened() const { return opened_; }

 private:
  size_t limit_;
  int64_t opened_ = 0;
  std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> open_;  // (room, number) -> items
};

}  // namespace modernbert_fast::host
