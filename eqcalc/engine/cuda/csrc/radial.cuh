// Radial weights from splines: of 32 channels, which lanes are, at the place w in the table.

#pragma once
#include "generated/network.cuh"

__device__ inline T spline(const T *w, T t)
{
  T value = __ldg(w + DEGREE * 32);
#pragma unroll
  for (int d = DEGREE - 1; d >= 0; d--) value = value * t + __ldg(w + d * 32);
  return value;
}

__device__ inline T spline(const T *w, T t, T &slope)
{
  T value = __ldg(w + DEGREE * 32);
  slope = value;
  value = value * t + __ldg(w + (DEGREE - 1) * 32);
#pragma unroll
  for (int d = DEGREE - 2; d >= 0; d--) {
    slope = slope * t + value;
    value = value * t + __ldg(w + d * 32);
  }
  return value;
}

// the interval of the table that the distance of an edge is in, or -1 beyond the cutoff; and how far
// in it, -1/2 .. 1/2; scale: derivative of that by r
__device__ inline int interval_of(const Task &t, int e, T &in_interval, T &scale)
{
  const double r = t.r[e];
  if (r < 0.0) return -1;
  int s = t.num_segments - 1;
  while (s > 0 && r < t.segments[s].start) s--;
  const Segment here = t.segments[s];
  const double x = (r - here.start) * here.per_length;
  const int interval = int(fmin(double(here.count - 1), x));
  in_interval = T(x - interval - 0.5);
  scale = T(here.per_length);
  return here.first + interval;
}

// where in the table the weights of an edge are, or -1
__device__ inline int cursor(const Task &t, int e, T &in_interval, T &scale)
{
  const int interval = interval_of(t, e, in_interval, scale);
  if (interval < 0) return -1;
  return interval * t.interval_stride + (KINDS_AT >= 0 ? t.kind[e] * t.kind_stride : 0);
}

// Slices of a table in shared memory (eqcalc.engine.cuda.slices): [intervals, WIDTH channels] of
// these. A lane reads its channel's numbers at once, and 16 bytes of eight lanes lie in all banks.
constexpr int PIECE_BYTES = (DEGREE + 1) * int(sizeof(T));
struct alignas(PIECE_BYTES % 16 ? 8 : 16) Piece {
  T c[DEGREE + 1];
};

__device__ inline T spline(const Piece &from, T t)
{
  const Piece p = from;
  T value = p.c[DEGREE];
#pragma unroll
  for (int d = DEGREE - 1; d >= 0; d--) value = value * t + p.c[d];
  return value;
}

__device__ inline T spline(const Piece &from, T t, T &slope)
{
  const Piece p = from;
  T value = p.c[DEGREE];
  slope = value;
  value = value * t + p.c[DEGREE - 1];
#pragma unroll
  for (int d = DEGREE - 2; d >= 0; d--) {
    slope = slope * t + value;
    value = value * t + p.c[d];
  }
  return value;
}

__device__ inline int intervals_of(const Task &t)
{
  const Segment last = t.segments[t.num_segments - 1];
  return last.first + last.count;
}

// by all threads of a block; from: the first of WIDTH channels in the first interval
template <int WIDTH>
__device__ inline void take_slice(Piece *to, const T *from, int intervals, const Task &t)
{
  constexpr int EACH = WIDTH * (DEGREE + 1);
  for (int n = threadIdx.x; n < intervals * EACH; n += blockDim.x) {
    const int interval = n / EACH, d = n / WIDTH % (DEGREE + 1), c = n % WIDTH;
    to[interval * WIDTH + c].c[d] =
        __ldg(from + (long long)interval * t.interval_stride + d * 32 + c);
  }
}
