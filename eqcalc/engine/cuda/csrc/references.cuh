// What the energy owes to species and pairs besides the network, and how crowded atoms are:
// eqcalc.nn.reference, eqcalc.nn.crowding; the same formulas as ../../csrc/pair_terms.h. In double.

// 1 at r = 0; value, slope and curvature zero at the cutoff
__device__ inline void envelope(double r, double cutoff, int power, double &u, double &slope)
{
  const double y = r / cutoff, p = power;
  const double a = (p + 1.0) * (p + 2.0) / 2.0, b = p * (p + 2.0), c = p * (p + 1.0) / 2.0;
  double q = 1.0;
  for (int n = 1; n < power; n++) q *= y;
  u = 1.0 + q * y * (-a + y * (b - c * y));
  slope = q * (-a * p + y * (b * (p + 1.0) - c * (p + 2.0) * y)) / cutoff;
}

// Ziegler, Biersack and Littmark (1985), half to each atom; adds energy (eV) and slope (eV/Å)
__device__ inline void core(const double *c, int ab, double r, double &energy, double &slope)
{
  const double *charges = c + CORE_AT, *screening = charges + PAIRS, *cutoff = screening + PAIRS;
  const double *amplitudes = cutoff + PAIRS, *decays = amplitudes + CORE_TERMS;
  if (r >= cutoff[ab]) return;
  const double x = r / screening[ab];
  double phi = 0.0, phi_slope = 0.0;
  for (int n = 0; n < CORE_TERMS; n++) {
    const double term = amplitudes[n] * exp(-decays[n] * x);
    phi += term;
    phi_slope -= decays[n] * term / screening[ab];
  }
  double u, u_slope;
  envelope(r, cutoff[ab], CORE_POWER, u, u_slope);
  const double q = 0.5 * charges[ab] / r;
  energy += q * phi * u;
  slope += q * (phi_slope * u + phi * u_slope - phi * u / r);
}

// the pair potential, half to each atom
__device__ inline void pair(const double *c, int ab, double r, double &energy, double &slope)
{
  if (r >= PAIR_CUTOFF) return;
  const double *coefficients = c + PAIR_AT + ab * PAIR_TERMS;
  const double decay = exp(-PAIR_RATE * r);
  double sum = 0.0, sum_slope = 0.0, power = 1.0;
  for (int k = 0; k < PAIR_TERMS; k++) {
    power *= decay;
    sum += coefficients[k] * power;
    sum_slope -= PAIR_RATE * (k + 1) * coefficients[k] * power;
  }
  double u, u_slope;
  envelope(r, PAIR_CUTOFF, 6, u, u_slope);
  energy += 0.5 * sum * u;
  slope += 0.5 * (sum_slope * u + sum * u_slope);
}

// 1 up to x = begin, 0 from x = end on, with two continuous derivatives
__device__ inline double fall(double begin, double end, double x, double &slope)
{
  const double t = (x - begin) / (end - begin);
  slope = 0.0;
  if (t <= 0.0) return 1.0;
  if (t >= 1.0) return 0.0;
  slope = -30.0 * t * t * (1.0 - t) * (1.0 - t) / (end - begin);
  return 1.0 - t * t * t * (10.0 + t * (6.0 * t - 15.0));
}

// number and closeness of one neighbour, and their derivatives by r
struct Crowd {
  double number, close, number_slope, close_slope;
};

// constants: distances [pairs], closest [pairs], largest [species], then the ends of crowded,
// counted and close
__device__ inline Crowd crowd(const double *c, int ab, double r)
{
  const double *distances = c + CROWDING_AT, *closest = distances + PAIRS;
  const double *ends = closest + PAIRS + NUM_SPECIES;
  Crowd one = {0.0, 0.0, 0.0, 0.0};
  const double d = distances[ab];
  if (CROWDING_COUNTS) {
    const double near = closest[ab];
    one.number = fall(ends[2], ends[3], r / d, one.number_slope);
    one.close = fall(ends[4], ends[5], r / near, one.close_slope);
    one.number_slope /= d;
    one.close_slope /= near;
  } else {
    const double q = d / r, q2 = q * q, q4 = q2 * q2, q8 = q4 * q4;
    double u, u_slope;
    envelope(r, CUTOFF, 6, u, u_slope);
    one.number = q8 * u;
    one.number_slope = q8 * (u_slope - 8.0 * u / r);
  }
  return one;
}

// energies begin with these terms, gradients of edges with theirs
extern "C" __global__ void __launch_bounds__(128) references(const Task t)
{
  const double *c = t.constants;
  EACH(i, 0, t.num_local)
  {
    const int a = t.species[i];
    double energy = c[SHIFT_AT + a], number = 0.0, close = 0.0, nearest = CUTOFF;
    for (int e = t.first_edge[i]; e < t.first_edge[i + 1]; e++) {
      if (t.r[e] < 0.0) continue;
      const double *v = t.vec + 3LL * e;
      const double r = length(v);
      nearest = fmin(nearest, r);
      const int ab = a * NUM_SPECIES + t.edge_species[e];
      double slope = 0.0;
      if (CORE_AT >= 0) core(c, ab, r, energy, slope);
      if (PAIR_AT >= 0) pair(c, ab, r, energy, slope);
      if (CROWDING_AT >= 0) {
        const Crowd one = crowd(c, ab, r);
        number += one.number;
        close += one.close;
      }
      for (int d = 0; d < 3; d++) t.gradient[3LL * e + d] = slope * v[d] / r;
    }
    if (CROWDING_AT >= 0) {
      const double *ends = c + CROWDING_AT + 2 * PAIRS + NUM_SPECIES;
      const double largest = c[CROWDING_AT + 2 * PAIRS + a];
      double by_number, by_close;
      const double few = fall(ends[0], ends[1], number / largest, by_number);
      const double apart = fall(0.0, 1.0, close, by_close);
      t.calm[i] = few * apart;
      t.calm_slope[2LL * i] = by_number * apart / largest;
      t.calm_slope[2LL * i + 1] = few * by_close;
      t.calm_pull[i] = -CROWDING_COST;
      energy += CROWDING_COST * (1.0 - few * apart);
      t.factor[i] = T(few * apart);
    }
    t.energies[i] = energy;
    t.nearest[i] = nearest;
  }
}

// once all layers have pulled at how calm atoms are
extern "C" __global__ void __launch_bounds__(128) crowding_gradients(const Task t)
{
  EACH(e, 0, t.num_edges)
  {
    if (t.r[e] < 0.0 || CROWDING_AT < 0) continue;
    const int i = t.dst[e];
    if (!(t.calm[i] < 1.0)) continue;
    const double *v = t.vec + 3LL * e;
    const double r = length(v);
    const Crowd one = crowd(t.constants, t.species[i] * NUM_SPECIES + t.edge_species[e], r);
    const double slope = t.calm_pull[i] *
        (t.calm_slope[2LL * i] * one.number_slope + t.calm_slope[2LL * i + 1] * one.close_slope);
    for (int d = 0; d < 3; d++) t.gradient[3LL * e + d] += slope * v[d] / r;
  }
}
