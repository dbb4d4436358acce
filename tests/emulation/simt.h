// Runs CUDA kernels on the CPU, for tests: every thread of a block is a fiber, and barriers, shuffles
// and shared memory mean what they mean on a GPU. Fibers go on in a random order between two
// barriers, and warps at a random pace, so that a barrier that is missing shows as numbers that are
// wrong or change with EQCALC_EMULATION_SEED. Kernels take one structure; simt_end.h follows them.

#include <sys/mman.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#if !defined(__x86_64__)
#error "simt_switch is written for x86-64 only"
#endif

// keeps the registers that a call keeps, and goes on with another stack
extern "C" void simt_switch(void **from, void *to);
asm(R"(
.text
.weak simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace simt {

struct Index {
  unsigned x, y, z;
};

enum Wait { NOTHING, FOR_BLOCK, FOR_WARP, ENDED };

struct Fiber {
  void *stack = nullptr, *at = nullptr;
  int rank = 0;
  Wait wait = NOTHING;
};

constexpr std::size_t STACK = 128 * 1024;
constexpr int WARP = 32;

inline void *scheduler;
inline std::vector<Fiber> fibers;
inline std::vector<unsigned long long> slots;     // what lanes show each other
inline Fiber *now;
inline Index block, grid, dim;
inline char *memory;     // shared, of which the launch says how much; it ends at a forbidden page
inline void (*entry)();

inline void pause(Wait why)
{
  Fiber *self = now;
  self->wait = why;
  simt_switch(&self->at, scheduler);
}

inline void first_call()
{
  entry();
  pause(ENDED);
}

inline void prepare(int threads)
{
  while (static_cast<int>(fibers.size()) < threads) {
    Fiber fiber;
    fiber.stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fibers.push_back(fiber);
  }
  slots.resize(threads);
}

// all threads of one block, to their ends
inline void run_block(int threads, std::mt19937 &random)
{
  std::vector<int> order(threads);
  for (int k = 0; k < threads; k++) {
    Fiber &fiber = fibers[k];
    fiber.rank = order[k] = k;
    fiber.wait = NOTHING;
    // as a call of first_call would leave the stack
    void **top = reinterpret_cast<void **>(static_cast<char *>(fiber.stack) + STACK) - 1;
    *--top = reinterpret_cast<void *>(&first_call);
    for (int r = 0; r < 6; r++) *--top = nullptr;
    fiber.at = top;
  }
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    const unsigned held = threads > WARP ? random() : 0;     // warps that do not go on now
    for (const int k : order) {
      if (fibers[k].wait != NOTHING) continue;
      if (held >> k / WARP & 1) {
        moved = true;     // later
        continue;
      }
      now = &fibers[k];
      simt_switch(&scheduler, now->at);
      moved = true;
    }
    int ended = 0, at_barrier = 0;
    for (int k = 0; k < threads; k++) {
      ended += fibers[k].wait == ENDED;
      at_barrier += fibers[k].wait == FOR_BLOCK;
    }
    if (ended == threads) return;
    for (int w = 0; w < threads; w += WARP) {
      const int end = std::min(threads, w + WARP);
      const auto waits = [](const Fiber &f) { return f.wait == FOR_WARP; };
      if (!std::all_of(fibers.begin() + w, fibers.begin() + end, waits)) continue;
      for (int k = w; k < end; k++) fibers[k].wait = NOTHING;
      moved = true;
    }
    if (at_barrier == threads) {
      for (int k = 0; k < threads; k++) fibers[k].wait = NOTHING;
      moved = true;
    }
    if (!moved)
      throw std::runtime_error(ended ? "a barrier that threads which have ended do not reach"
                                     : "threads wait for each other at different barriers");
  }
}

inline void launch(void (*body)(), Index blocks, Index threads, std::size_t shared)
{
  constexpr std::size_t PAGE = 4096;
  const std::size_t pages = (shared + PAGE - 1) / PAGE * PAGE;
  char *base = static_cast<char *>(
      mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(base + pages, PAGE, PROT_NONE);
  memory = base + pages - (shared + 15) / 16 * 16;
  const char *seed = std::getenv("EQCALC_EMULATION_SEED");
  std::mt19937 random(seed ? std::atoi(seed) : 1);
  entry = body;
  grid = blocks;
  dim = threads;
  prepare(static_cast<int>(threads.x));
  // of a launch with very many blocks the last ones can be all that is looked at
  const char *last = std::getenv("EQCALC_EMULATION_LAST_BLOCKS");
  const unsigned count = last ? std::min<unsigned>(blocks.x, std::atoi(last)) : blocks.x;
  std::vector<unsigned> order(count);
  for (unsigned b = 0; b < count; b++) order[b] = blocks.x - count + b;
  std::shuffle(order.begin(), order.end(), random);
  for (const unsigned b : order) {
    block = {b, 0, 0};
    std::memset(base, 0xff, pages);     // NaN, and -1 of integers
    run_block(static_cast<int>(threads.x), random);
  }
  munmap(base, pages + PAGE);
}

template <class U> U exchange(U value, int lane)
{
  static_assert(sizeof(U) <= 8);
  const int mine = now->rank, warp = mine / WARP * WARP;
  std::memcpy(&slots[mine], &value, sizeof(U));
  pause(FOR_WARP);
  U got;
  std::memcpy(&got, &slots[warp + lane], sizeof(U));
  pause(FOR_WARP);
  return got;
}

}     // namespace simt

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define threadIdx (simt::Index{static_cast<unsigned>(simt::now->rank), 0, 0})
#define blockIdx (simt::block)
#define blockDim (simt::dim)
#define gridDim (simt::grid)

inline char *dynamic_shared()
{
  return simt::memory;
}
inline void __syncthreads()
{
  simt::pause(simt::FOR_BLOCK);
}
inline void __syncwarp(unsigned = ~0u)
{
  simt::pause(simt::FOR_WARP);
}
template <class U> U __shfl_xor_sync(unsigned, U value, int mask)
{
  return simt::exchange(value, simt::now->rank % simt::WARP ^ mask);
}
template <class U> U __ldg(const U *p)
{
  return *p;
}

using std::exp;
using std::max;
using std::min;
using std::sqrt;
