// Asynchronous work of one thread.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

namespace simt {

/// What a thread has asked for and is done when it waits, a group at a time; the last group is open.
class Queue {
 public:
  void clear() { groups_.assign(1, {}); }
  void add(std::function<void()> work) { groups_.back().push_back(std::move(work)); }
  void commit() { groups_.emplace_back(); }
  void wait(size_t pending) {
    while (groups_.size() > pending + 1) {
      for (const auto& work : groups_.front()) work();
      groups_.erase(groups_.begin());
    }
  }

 private:
  std::vector<std::vector<std::function<void()>>> groups_;
};

}  // namespace simt
