// What this processor and operating system can run. Torch-free: the CPU operators and _host share it.
#pragma once

#include <stddef.h>

namespace modernbert_fast::cpu {

struct CpuFlag {
  const char* name;
  bool present;
};

/// Every flag this project asks about, in a fixed order; empty on processors other than x86-64.
const CpuFlag* cpu_flags(size_t* count);

/// True if the named flag is present. A name that is not in the list is absent.
bool cpu_has(const char* name);

}  // namespace modernbert_fast::cpu
