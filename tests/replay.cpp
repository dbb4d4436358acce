// Calls recorded calls of compiled kernels again, each array in memory of exactly its size, and
// compares what they leave with what was recorded: replay FILE. Linked with the kernels' sources.
//
// A file holds records: length of a name, name, count, number of arrays, and of each array whether
// it holds numbers, its bytes, and the content before and after the call.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <dlfcn.h>

#include "interface.h"

using I = std::int64_t;

struct Array {
  bool numbers;
  I size;
  void *data;     // malloc'ed
  std::vector<char> after;
};

static void stop(const std::string &why)
{
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(3);
}

static void take(FILE *file, void *to, I size)
{
  if (std::fread(to, 1, size, file) != static_cast<std::size_t>(size)) stop("cut short");
}

static I integer(FILE *file)
{
  I n;
  take(file, &n, sizeof(n));
  return n;
}

template <class F> static F *find(const char *name)
{
  void *symbol = dlsym(RTLD_DEFAULT, name);
  if (!symbol) stop(std::string("no function ") + name);
  return reinterpret_cast<F *>(symbol);
}

template <std::size_t... N>
static int call(const char *name, I count, std::vector<Array> &arrays, std::index_sequence<N...>)
{
  if (arrays.size() == sizeof...(N))
    return find<int(I, decltype((void)N, (void *)nullptr)...)>(name)(count, arrays[N].data...);
  if constexpr (sizeof...(N) < 16)
    return call(name, count, arrays, std::make_index_sequence<sizeof...(N) + 1>());
  stop("too many arrays");
  return 1;
}

static void *network = nullptr;

// species, edge_src, edge_dst, edge_vec, energies, gradient
static int evaluate(int threads, std::vector<Array> &a)
{
  const I atoms = a[0].size / 8, edges = a[1].size / 8;
  const auto integers = [&](int n) { return static_cast<const I *>(a[n].data); };
  const eqcalc_graph graph = {
      atoms,       atoms,       atoms,       edges,
      integers(0), integers(1), integers(2), static_cast<double *>(a[3].data)};
  char error[400];
  auto *run = find<decltype(eqcalc_evaluate)>("eqcalc_evaluate");
  auto *energies = static_cast<double *>(a[4].data), *gradient = static_cast<double *>(a[5].data);
  if (run(network, &graph, nullptr, threads, energies, nullptr, error, sizeof(error)) ||
      run(network, &graph, nullptr, threads, energies, gradient, error, sizeof(error)))
    stop(error);
  return 0;
}

// shapes, settings, and matrices one after the other: weights, momentum, gradient
static int muon(I count, std::vector<Array> &a)
{
  const auto *shapes = static_cast<const I *>(a[0].data);
  std::vector<I> addresses;
  for (I k = 0, offset = 0; k < count; offset += shapes[2 * k] * shapes[2 * k + 1], k++)
    for (int n = 2; n < 5; n++)
      addresses.push_back(reinterpret_cast<I>(static_cast<double *>(a[n].data) + offset));
  return find<int(I, const I *, const I *, void *)>("muon_step")(count, shapes, addresses.data(),
                                                                 a[1].data);
}

static void open(const Array &description)
{
  char error[400];
  const auto *bytes = static_cast<const char *>(description.data);
  if (find<decltype(eqcalc_open)>("eqcalc_open")(bytes, description.size, &network, error,
                                                 sizeof(error)))
    stop(error);
}

static void compare(const std::string &name, const Array &a)
{
  if (!a.numbers) {
    if (a.size > 0 && std::memcmp(a.data, a.after.data(), a.size) != 0)
      stop(name + ": changed its input");
    return;
  }
  const I count = a.size / static_cast<I>(sizeof(double));
  std::vector<double> expected(count), got(count);
  std::copy_n(a.after.data(), a.size, reinterpret_cast<char *>(expected.data()));
  std::copy_n(static_cast<const char *>(a.data), a.size, reinterpret_cast<char *>(got.data()));
  double largest = 0.0, difference = 0.0;
  for (I k = 0; k < count; k++) {
    largest = std::max(largest, std::abs(expected[k]));
    difference = std::max(difference, std::abs(got[k] - expected[k]));
    if (!(std::abs(got[k] - expected[k]) < 1e300)) stop(name + ": not a number");
  }
  if (difference > 1e-12 * largest)
    stop(name + ": off by " + std::to_string(difference / largest / 1e-12) + "e-12");
}

int main(int, char **arguments)
{
  FILE *file = std::fopen(arguments[1], "rb");
  if (!file) stop("no file");
  I calls = 0;
  for (I length; std::fread(&length, sizeof(length), 1, file) == 1; calls++) {
    std::string name(length, ' ');
    take(file, name.data(), length);
    const I count = integer(file);
    std::vector<Array> arrays(integer(file));
    for (Array &a : arrays) {
      a.numbers = integer(file);
      a.size = integer(file);
      a.data = std::malloc(a.size);
      a.after.resize(a.size);
      take(file, a.data, a.size);
      take(file, a.after.data(), a.size);
    }
    if (name == "open")
      open(arrays[0]);
    else if (name == "evaluate"   ? evaluate(static_cast<int>(count), arrays)
                 : name == "muon" ? muon(count, arrays)
                                  : call(name.c_str(), count, arrays, std::index_sequence<>()))
      stop(name + " failed");
    for (const Array &a : arrays) {
      compare(name, a);
      std::free(a.data);
    }
  }
  std::fclose(file);
  if (network) find<decltype(eqcalc_close)>("eqcalc_close")(network);
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
