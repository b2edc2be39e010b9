// The executor's own test: kernels that are right, and kernels whose fault it must find. probe NAME runs one of them;
// it prints "fine", or what was wrong.
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "launch.cuh"
#include "warp.cuh"

using namespace modernbert_fast::cuda;

namespace {

constexpr int kThreads = 128;

template <class Kernel, class... Args>
void run(Kernel* kernel, size_t shared_bytes, Args... args) {
  launch(kernel, dim3(4), dim3(kThreads), shared_bytes, nullptr, args...);
}

float* floats() { return reinterpret_cast<float*>(shared_memory()); }
void expect(bool ok, const char* what) {
  if (!ok) throw std::runtime_error(what);
}

// ---- right ----

void reversed_kernel(int* y) {
  int* s = reinterpret_cast<int*>(shared_memory());
  s[threadIdx.x] = threadIdx.x;
  sync_block();
  y[blockIdx.x * kThreads + threadIdx.x] = s[kThreads - 1 - threadIdx.x];
}

void reversed() {
  std::vector<int> y(4 * kThreads);
  run(reversed_kernel, kThreads * sizeof(int), y.data());
  for (int i = 0; i < 4 * kThreads; ++i) expect(y[i] == kThreads - 1 - i % kThreads, "a wrong order");
}

void lanes_kernel(float* y) {
  const int lane = lane_of_thread();
  float value = shuffle_xor(lane * 1.0f, 5) == (lane ^ 5);
  value *= shuffle_up(lane, 3) == (lane < 3 ? lane : lane - 3) && warp_sum(lane) == 496;
  sync_warp();
  sync_threads(1 + warp_of_thread() / 2, 64);
  y[threadIdx.x] = value;
}

void lanes() {
  std::vector<float> y(kThreads);
  run(lanes_kernel, 0, y.data());
  for (float value : y) expect(value == 1, "a lane has another value");
}

/// c (16, 8) = a (16, depth) b (depth, 8) by tensor cores, a and b through shared memory and ldmatrix.
template <class T, int kDepth>
void product_kernel(const T* a, const T* b, float* c) {
  T* s = reinterpret_cast<T*>(shared_memory());
  const int lane = lane_of_thread();
  if (warp_of_thread() > 0) return;
  for (int i = lane * 8; i < (16 + 8) * kDepth; i += kWarp * 8) {
    cp_async_16(s + i, i < 16 * kDepth ? a + i : b + i - 16 * kDepth);
    cp_async_commit();
  }
  cp_async_wait<0>();
  sync_warp();
  float d[4] = {};
  if constexpr (kDepth == 16) {
    uint32_t x[4], y[4];
    ldmatrix_x4(x, s + (lane % 16) * kDepth + lane / 16 * 8);
    ldmatrix_x4_trans(y, s + 16 * kDepth + lane % 16 * 8);
    mma_m16n8k16<T>(d, x, {y[0], y[1]});
  } else {
    uint32_t x[4], y[4];
    ldmatrix_x4(x, s + lane % 16 * kDepth);
    ldmatrix_x4_trans(y, s + 16 * kDepth + lane % 8 * 8);
    mma_m16n8k8(d, {x[0], x[1]}, y[0]);
  }
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <class T, int kDepth>
void product() {
  alignas(16) T a[16 * kDepth], b[kDepth * 8];
  for (int i = 0; i < 16 * kDepth; ++i) a[i] = from_float<T>(i * 7 % 13 - 6);
  for (int i = 0; i < kDepth * 8; ++i) b[i] = from_float<T>(i * 5 % 11 - 5);
  float c[16 * 8];
  run(product_kernel<T, kDepth>, 1024, static_cast<const T*>(a), static_cast<const T*>(b), &c[0]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += to_float(a[i * kDepth + k]) * to_float(b[k * 8 + j]);
      expect(c[i * 8 + j] == sum, "a wrong product");
    }
}

/// Every finite half comes back, and what lies between two goes to the nearer, ties to even.
template <class T>
void conversions() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T x = {static_cast<uint16_t>(bits)}, next = {static_cast<uint16_t>(bits + 1)};
    const float low = to_float(x), high = to_float(next);
    if (low != low || high != high || bits == 0x7fff || bits == 0xffff) continue;
    expect(from_float<T>(low).bits == bits, "a number does not come back");
    if (std::isinf(high)) continue;
    const float middle = static_cast<float>((static_cast<double>(low) + high) / 2);
    expect(from_float<T>(middle).bits == bits + bits % 2, "a tie does not go to even");
    expect(from_float<T>(std::nextafter(middle, low)).bits == bits, "not to the nearer");
    expect(from_float<T>(std::nextafter(middle, high)).bits == bits + 1, "not to the nearer");
  }
  expect(std::isnan(to_float(from_float<T>(NAN))) && std::isinf(to_float(from_float<T>(3e38f * 10))),
         "NaN or infinity");
}

// ---- faulty ----

void divergent_barrier_kernel() {
  if (threadIdx.x < 64) sync_block();
}
void divergent_lanes_kernel(float* y) {
  y[threadIdx.x] = lane_of_thread() == 3 ? shuffle_xor(1.0f, 1) : shuffle_up(1.0f, 1);
}
void lane_left_out_kernel(float* y) {
  if (lane_of_thread() != 3) y[threadIdx.x] = warp_sum(1.0f);
}
void missing_barrier_kernel(float* y) {
  floats()[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = floats()[(threadIdx.x + 64) % kThreads];
}
void missing_warp_barrier_kernel(float* y) {
  floats()[threadIdx.x] = threadIdx.x;
  y[threadIdx.x] = floats()[threadIdx.x ^ 1];
}
void uninitialised_kernel(float* y) { y[threadIdx.x] = floats()[threadIdx.x]; }
void missing_wait_kernel(const float* x, float* y) {
  if (threadIdx.x % 4 == 0) cp_async_16(floats() + threadIdx.x, x + threadIdx.x);
  cp_async_commit();
  sync_block();
  y[threadIdx.x] = floats()[threadIdx.x];
}
void beyond_shared_kernel(float* y) { y[threadIdx.x] = floats()[kThreads + threadIdx.x] = 1; }
void beyond_global_kernel(float* y) { y[kThreads + threadIdx.x] = 1; }
void misaligned_kernel(float* y) {
  float pack[4] = {};
  store_16(y + 1, pack);
}
void ldmatrix_off_kernel() {
  uint32_t to[4];
  ldmatrix_x4(to, shared_memory() + 8 * lane_of_thread());
}

std::vector<float> out(kThreads);
alignas(16) float in[kThreads];

void order_matters(void (*kernel)(float*)) {
  for (int seed = 0; seed < 8; ++seed) {
    std::vector<float> y(kThreads);
    run(kernel, kThreads * sizeof(float), y.data());
    for (float value : y) expect(value == value, "NaN");
  }
}

const std::map<std::string, void (*)()> kProbes = {
    {"reversed", reversed},
    {"lanes", lanes},
    {"product half 8", product<Half, 8>},
    {"product half 16", product<Half, 16>},
    {"product bfloat16 16", product<BFloat16, 16>},
    {"conversions half", conversions<Half>},
    {"conversions bfloat16", conversions<BFloat16>},
    {"divergent barrier", [] { run(divergent_barrier_kernel, 0); }},
    {"divergent lanes", [] { run(divergent_lanes_kernel, 0, out.data()); }},
    {"lane left out", [] { run(lane_left_out_kernel, 0, out.data()); }},
    {"missing barrier", [] { order_matters(missing_barrier_kernel); }},
    {"missing warp barrier", [] { order_matters(missing_warp_barrier_kernel); }},
    {"uninitialised", [] { order_matters(uninitialised_kernel); }},
    {"missing wait",
     [] {
       run(missing_wait_kernel, kThreads * sizeof(float), static_cast<const float*>(in), out.data());
       for (float value : out) expect(value == value, "NaN");
     }},
    {"beyond shared", [] { run(beyond_shared_kernel, kThreads * sizeof(float), out.data()); }},
    {"beyond global", [] { run(beyond_global_kernel, 0, out.data()); }},
    {"misaligned", [] { run(misaligned_kernel, 0, &in[0]); }},
    {"ldmatrix off", [] { run(ldmatrix_off_kernel, 1024); }},
    {"too much shared", [] { launch(divergent_barrier_kernel, dim3(1), dim3(kThreads), 228 << 10, nullptr); }},
    {"not whole warps", [] { launch(divergent_barrier_kernel, dim3(1), dim3(33), 0, nullptr); }},
};

}  // namespace

int main(int count, char** words) {
  const auto found = kProbes.find(count > 1 ? words[1] : "");
  if (found == kProbes.end()) return 2;
  try {
    found->second();
  } catch (const std::exception& error) {
    puts(error.what());
    return 1;
  }
  puts("fine");
}
