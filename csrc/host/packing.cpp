#include "packing.h"

#include <algorithm>
#include <numeric>
#include <set>
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

void Packed::push(const std::vector<int64_t>& bin) {
  items.insert(items.end(), bin.begin(), bin.end());
  bounds.push_back(static_cast<int64_t>(items.size()));
}

Packed Bins::add(const int64_t* items, const int64_t* lengths, int64_t count, int64_t capacity) {
  Packed complete;
  for (int64_t i = 0; i < count; ++i) {
    auto fit = open_.lower_bound({lengths[i], 0});
    if (fit == open_.end()) {
      if (open_.size() == limit_) {
        complete.push(open_.begin()->second);
        open_.erase(open_.begin());
      }
      fit = open_.try_emplace({capacity, opened_++}).first;
    }
    auto bin = open_.extract(fit);
    bin.key().first -= lengths[i];
    bin.mapped().push_back(items[i]);
    if (bin.key().first == 0)
      complete.push(bin.mapped());
    else
      open_.insert(std::move(bin));
  }
  return complete;
}

Packed Bins::open() const {
  Packed bins;
  for (const auto& [key, items] : open_) bins.push(items);
  return bins;
}

std::pair<std::vector<int64_t>, std::vector<int64_t>> Bins::keys() const {
  std::vector<int64_t> rooms, numbers;
  for (const auto& [key, items] : open_) {
    rooms.push_back(key.first);
    numbers.push_back(key.second);
  }
  return {rooms, numbers};
}

void Bins::load(const int64_t* items, const int64_t* bounds, const int64_t* rooms, const int64_t* numbers, size_t count,
                int64_t opened) {
  open_.clear();
  for (size_t i = 0; i < count; ++i) open_[{rooms[i], numbers[i]}].assign(items + bounds[i], items + bounds[i + 1]);
  opened_ = opened;
}

}  // namespace modernbert_fast::host
