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

}  // namespace modernbert_fast::host
