// What a block can do on sm_90a beyond instructions.cuh: tiles copied by the tensor memory engine, barriers that count
// their bytes, and products of a warpgroup that read shared memory themselves.
//
// The host executor has a header of this name with the same functions, found first: include it as <hopper.cuh>.
#pragma once

#include <cuda.h>
#include <instructions.cuh>
#include <launch.cuh>
#include <type_traits>

namespace modernbert_fast::cuda {

constexpr int kWarpgroup = 128;  // threads

// ---- barriers in shared memory ----

/// Counts arrivals and bytes; its phase flips when both are complete, first from 0 to 1.
using Barrier = uint64_t;

__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// After the inits of one thread, before the block's threads meet: the copying engine sees them too.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives, and adds the bytes that copies will bring in this phase.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
/// Returns once the phase of that parity (0 for the first) is complete.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ready;\n"
      "bra again;\n"
      "ready:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- registers: the whole warpgroup calls these ----

/// Gives registers of each thread back to the block.
template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
/// Waits until the block has that many for each thread.
template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- tiles ----

/// How the copying engine sees (T, H, 64) of 2-byte elements: boxes (kRows, 64) of one head. In shared memory a row is
/// 128 bytes, its 16-byte pieces permuted by the row's number modulo 8; rows beyond T are zero.
struct TileMap {
  CUtensorMap map;
};

template <class T>
TileMap tile_map(const void* data, int64_t rows, int64_t heads, int64_t stride_t, int64_t stride_h, int box_rows) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess) throw std::runtime_error("CUDA: the driver has no tensor maps");
    return reinterpret_cast<Encode>(found);
  }();
  constexpr auto type = std::is_same_v<T, Half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cuuint64_t sizes[] = {64, static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride_h) * sizeof(T),
                                static_cast<cuuint64_t>(stride_t) * sizeof(T)};  // bytes, of all but the first
  const cuuint32_t box[] = {64, 1, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1, 1};
  TileMap tiles;
  const CUresult failed =
      encode(&tiles.map, type, 3, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (failed != CUDA_SUCCESS) throw std::runtime_error("CUDA: no tensor map for these strides");
  return tiles;
}

/// One thread asks for the box that starts at a row of a head; its bytes count at the barrier. `to` is aligned to 1024.
__device__ __forceinline__ void copy_tile(void* to, const TileMap& tiles, int row, int head, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(shared_address(to)),
      "l"(&tiles.map), "r"(0), "r"(head), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

/// What this thread wrote to shared memory with plain stores is there for products, once the threads have met.
__device__ __forceinline__ void fence_for_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Where 16 bytes, `piece` of 8 of a row, of such a tile lie: bytes from its start.
__device__ __forceinline__ int place_in_tile(int row, int piece) { return row * 128 + (piece ^ (row % 8)) * 16; }

// ---- products of a warpgroup: asynchronous, accumulators laid out as eights of mma_m16n8k16, 16 rows a warp ----

/// Names (rows, 64) of such a tile as a factor, from an address aligned to 1024, or 32 bytes (16 columns) further on.
__device__ __forceinline__ uint64_t factor_in_tile(const void* from) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return ((shared_address(from) & 0x3ffff) >> 4) | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

/// Before the first product, and after the registers of one were written by other means.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes a group of products.
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Returns when all but the last kPending groups are done.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Between a wait for products and the use of their accumulators, which the compiler does not know to be related.
template <int kEights>
__device__ __forceinline__ void products_settle(float (&d)[kEights][4]) {
#pragma unroll
  for (int i = 0; i < kEights; ++i)
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
}

/// d (64, 8 kEights) = a (64, 16) b (8 kEights, 16)^T, or d += that: b is 16 columns of the rows of a tile.
template <class T, int kEights>
__device__ __forceinline__ void multiply_by_rows(float (&d)[kEights][4], const uint32_t (&a)[4], uint64_t b, bool adds);

/// d (64, 64) += a (64, 16) b (16, 64): b is 16 rows of a tile, which start a multiple of 1024 bytes into it.
template <class T, int kEights>
__device__ __forceinline__ void multiply_by_columns(float (&d)[kEights][4], const uint32_t (&a)[4], uint64_t b);

// clang-format off
#define MODERNBERT_FAST_8(d, i) \
  "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), \
  "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), "+f"(d[i + 1][3])
#define MODERNBERT_FAST_32(d, i) \
  MODERNBERT_FAST_8(d, i), MODERNBERT_FAST_8(d, i + 2), MODERNBERT_FAST_8(d, i + 4), MODERNBERT_FAST_8(d, i + 6)
#define MODERNBERT_FAST_FIRST_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MODERNBERT_FAST_SECOND_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define MODERNBERT_FAST_PRODUCTS(T, NAME) \
  template <> \
  __device__ __forceinline__ void multiply_by_rows<T, 16>(float(&d)[16][4], const uint32_t(&a)[4], uint64_t b, \
                                                          bool adds) { \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %69, 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME \
                 " {" MODERNBERT_FAST_FIRST_32 MODERNBERT_FAST_SECOND_32 "}, {%64, %65, %66, %67}, %68," \
                 " adds, 1, 1, 0;\n}" \
                 : MODERNBERT_FAST_32(d, 0), MODERNBERT_FAST_32(d, 8) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds))); \
  } \
  template <> \
  __device__ __forceinline__ void multiply_by_rows<T, 8>(float(&d)[8][4], const uint32_t(&a)[4], uint64_t b, \
                                                         bool adds) { \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %37, 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME \
                 " {" MODERNBERT_FAST_FIRST_32 "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n}" \
                 : MODERNBERT_FAST_32(d, 0) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(adds))); \
  } \
  template <> \
  __device__ __forceinline__ void multiply_by_columns<T, 8>(float(&d)[8][4], const uint32_t(&a)[4], uint64_t b) { \
    asm volatile("{\n.reg .pred adds;\nsetp.eq.u32 adds, 0, 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME \
                 " {" MODERNBERT_FAST_FIRST_32 "}, {%32, %33, %34, %35}, %36, adds, 1, 1, 1;\n}" \
                 : MODERNBERT_FAST_32(d, 0) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
  }
// clang-format on

MODERNBERT_FAST_PRODUCTS(Half, "f16")
MODERNBERT_FAST_PRODUCTS(BFloat16, "bf16")
#undef MODERNBERT_FAST_PRODUCTS
#undef MODERNBERT_FAST_SECOND_32
#undef MODERNBERT_FAST_FIRST_32
#undef MODERNBERT_FAST_32
#undef MODERNBERT_FAST_8

}  // namespace modernbert_fast::cuda
