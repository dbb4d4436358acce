// The only place where threads are started. OpenMP may grant fewer than are asked for
// (OMP_THREAD_LIMIT, OMP_DYNAMIC, nested regions, cgroups), so work is divided into a number of
// items that does not depend on it, and those threads that there are take all of them.
//
// EQCALC_STD_THREADS: std::thread in the place of OpenMP, of whose barriers ThreadSanitizer knows
// nothing.

#pragma once
#include "callee.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <stdexcept>

#ifdef EQCALC_STD_THREADS
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace {

using I = std::int64_t;

// how many to ask for where the caller does not say
inline int most_threads()
{
#ifdef EQCALC_STD_THREADS
  return EQCALC_STD_THREADS;
#else
  return omp_get_max_threads();
#endif
}

// calls member(t, team) for t = 0 .. team - 1 at once; team <= threads
inline void start_team(int threads, const Callee<int, int> &member)
{
#ifdef EQCALC_STD_THREADS
  std::vector<std::thread> others;
  for (int t = 1; t < threads; t++) others.emplace_back(member, t, threads);
  member(0, threads);
  for (std::thread &other : others) other.join();
#else
#pragma omp parallel num_threads(threads)
  member(omp_get_thread_num(), omp_get_num_threads());
#endif
}

// Calls work(k) once for each k = 0 .. count - 1, on at most `threads` threads. Thread t begins
// with k = t; the rest go to whoever is free. Throws the first exception of a thread.
APART inline void in_parallel(I count, int threads, const Callee<I> &work)
{
  threads = static_cast<int>(std::min<I>(threads, count));
  if (threads < 2) {
    for (I k = 0; k < count; k++) work(k);
    return;
  }
  std::atomic<I> taken{0};
  std::atomic<bool> failed{false};
  std::exception_ptr first;
  start_team(threads, [&](int t, int team) {
    try {
      for (I k = t; k < count; k = team + taken.fetch_add(1, std::memory_order_relaxed)) work(k);
    } catch (...) {
      if (!failed.exchange(true)) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

// Calls work(begin, end) for `threads` equal parts of 0 .. count - 1.
APART inline void in_ranges(I count, int threads, const Callee<I, I> &work)
{
  threads = std::max(1, threads);
  in_parallel(threads, threads, [&](I k) { work(count * k / threads, count * (k + 1) / threads); });
}

// what functions of training return: 0, or 1: an input is out of range, 2: out of memory
template <class Call> int guarded(const Call &call)
{
  try {
    call();
    return 0;
  } catch (const std::invalid_argument &) {
    return 1;
  } catch (const std::exception &) {     // std::bad_alloc, std::length_error
    return 2;
  }
}

}     // namespace
