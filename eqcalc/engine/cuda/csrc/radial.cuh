// Radial weights from splines: of 32 channels, which lanes are, at the place w in the table.

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

// where in the table the weights of a distance are, and how far in their interval, -1/2 .. 1/2;
// scale: derivative of that by r
__device__ inline int cursor(const Task &t, int e, T &in_interval, T &scale)
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
  return (here.first + interval) * t.interval_stride +
      (KINDS_AT >= 0 ? t.kind[e] * t.kind_stride : 0);
}
