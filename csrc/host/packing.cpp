#include "packing.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace modernbert_fast::host {

std::vector<int64_t> best_fit(const int64_t* lengths, int64_t count, int64_t capacity) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });

  std::vector<int64_t> bin_of(count);
  std::set<std::pair<int64_t, int64_t>> open;  // (room, bin)
  int64_t bins = 0;
  for (int64_t text : order) {
    const auto fit = open.lower_bound({lengths[text], 0});
    int64_t room = capacity, bin = bins;
    if (fit == open.end()) {
      ++bins;
    } else {
      std::tie(room, bin) = *fit;
      open.erase(fit);
    }
    open.emplace(room - lengths[text], bin);
    bin_of[text] = bin;
  }
  return bin_of;
}

void Waiting::add(const int64_t* items, const int64_t* lengths, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    by_age_.emplace_hint(by_age_.end(), added_, Text{items[i], lengths[i]});
    by_length_.emplace(lengths[i], added_++);
    tokens_ += lengths[i];
  }
}

std::vector<int64_t> Waiting::take(int64_t capacity, size_t texts, int64_t tokens) {
  std::vector<int64_t> bin;
  if (by_age_.size() < texts || tokens_ < tokens) return bin;
  int64_t room = capacity;
  while (!by_age_.empty() && by_age_.begin()->second.length <= room) room -= move(by_age_.begin(), bin);
  if (bin.empty() && !by_age_.empty()) {
    const Text& oldest = by_age_.begin()->second;
    throw std::invalid_argument("item " + std::to_string(oldest.item) + " has " + std::to_string(oldest.length) +
                                " tokens, more than a bin of " + std::to_string(capacity) + " holds");
  }
  for (;;) {
    const auto beyond = by_length_.lower_bound({room + 1, 0});
    if (beyond == by_length_.begin()) return bin;
    const auto longest = by_length_.lower_bound({std::prev(beyond)->first, 0});
    room -= move(by_age_.find(longest->second), bin);
  }
}

int64_t Waiting::move(ByAge::iterator text, std::vector<int64_t>& bin) {
  const auto [number, held] = *text;
  by_age_.erase(text);
  by_length_.erase({held.length, number});
  tokens_ -= held.length;
  bin.push_back(held.item);
  return held.length;
}

std::pair<std::vector<int64_t>, std::vector<int64_t>> Waiting::texts() const {
  std::vector<int64_t> items, lengths;
  for (const auto& [number, text] : by_age_) {
    items.push_back(text.item);
    lengths.push_back(text.length);
  }
  return {items, lengths};
}

}  // namespace modernbert_fast::host
