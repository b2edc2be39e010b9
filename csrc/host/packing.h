// Best-fit packing of texts into bins, all at once or as they come. Reference: modernbert_fast/packing.py
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace modernbert_fast::host {

/// The bin of each text. The longest text goes first, ties in order; each goes to the bin with the least room that
/// still holds it, the lowest bin among equals, or to a new bin.
std::vector<int64_t> best_fit(const int64_t* lengths, int64_t count, int64_t capacity);

/// Texts of a stream that wait for a bin.
class Waiting {
 public:
  void add(const int64_t* items, const int64_t* lengths, int64_t count);

  /// A bin: the oldest texts as long as the next one fits, then the longest that fits, the oldest among equals. Empty
  /// when fewer than `texts` texts or `tokens` tokens wait. Throws std::invalid_argument when the oldest text is
  /// longer.
  std::vector<int64_t> take(int64_t capacity, size_t texts, int64_t tokens);

  /// Items and lengths, oldest first.
  std::pair<std::vector<int64_t>, std::vector<int64_t>> texts() const;

 private:
  struct Text {
    int64_t item, length;
  };
  using ByAge = std::map<int64_t, Text>;

  int64_t move(ByAge::iterator text, std::vector<int64_t>& bin);

  ByAge by_age_;                                     // by number
  std::set<std::pair<int64_t, int64_t>> by_length_;  // (length, number)
  int64_t tokens_ = 0, added_ = 0;
};

}  // namespace modernbert_fast::host
