// The functions of interface.h.

#pragma once
#include "network.h"
#include "pairs.h"

namespace {

// edges of a list of pairs, between steps
struct Selected {
  Buffer<I> src, dst;
  Buffer<double> vec, gradient;
  I bytes() const { return src.bytes() + dst.bytes() + vec.bytes() + gradient.bytes(); }
};

struct Engine {
  Network network;
  Selected selected;
  explicit Engine(const Record &from) : network(from) {}
};

Network &network_of(void *engine)
{
  return static_cast<Engine *>(engine)->network;
}

int failed(const std::exception &error, char *text, I size)
{
  std::snprintf(text, size, "%s", error.what());
  return 1;
}

}     // namespace

extern "C" {

int eqcalc_interface_version()
{
  return EQCALC_INTERFACE_VERSION;
}

int eqcalc_open(const char *network, I bytes, void **engine, char *error, I size)
{
  try {
    *engine = new Engine(read_description(network, bytes));
    return 0;
  } catch (const std::bad_alloc &) {
    return failed(std::runtime_error("out of memory"), error, size);
  } catch (const std::exception &e) {
    return failed(e, error, size);
  }
}

COLD void eqcalc_close(void *engine)
{
  delete static_cast<Engine *>(engine);
}

int eqcalc_evaluate(void *engine, const eqcalc_graph *graph, const eqcalc_exchange *exchange,
                    int threads, double *energies, double *gradient, char *error, I size)
{
  return eqcalc_evaluate_uncertainty(engine, graph, exchange, threads, energies, gradient, nullptr,
                                     error, size);
}

int eqcalc_evaluate_uncertainty(void *engine, const eqcalc_graph *graph,
                                const eqcalc_exchange *exchange, int threads, double *energies,
                                double *gradient, const eqcalc_uncertainty *uncertainty,
                                char *error, I size)
{
  const eqcalc_uncertainty nothing = {nullptr, nullptr, nullptr};
  try {
    network_of(engine).evaluate(*graph, exchange, threads, energies, gradient,
                                uncertainty ? *uncertainty : nothing);
    return 0;
  } catch (const std::bad_alloc &) {
    failed(std::runtime_error("out of memory: use fewer atoms per process"), error, size);
    return EQCALC_OUT_OF_MEMORY;
  } catch (const std::exception &e) {
    return failed(e, error, size);
  }
}

int eqcalc_num_features(void *engine)
{
  return static_cast<int>(network_of(engine).num_features());
}

int eqcalc_has_uncertainty(void *engine)
{
  return network_of(engine).has_uncertainty();
}

int eqcalc_exchange_widths(void *engine, int *widths, int count)
{
  const Network &network = network_of(engine);
  const int layers = static_cast<int>(network.num_layers());
  for (int k = 1; k < layers && k <= count; k++) widths[k - 1] = static_cast<int>(network.width(k));
  return layers - 1;
}

COLD I eqcalc_memory(void *engine)
{
  return network_of(engine).bytes() + static_cast<Engine *>(engine)->selected.bytes();
}

int eqcalc_evaluate_pairs(void *engine, const eqcalc_graph *pairs, const double *shifts,
                          const double *positions, double cutoff, int threads, double *energies,
                          double *forces, double *virials, double *nearest, char *error, I size)
{
  Selected &s = static_cast<Engine *>(engine)->selected;
  eqcalc_graph graph = *pairs;
  I place;
  try {
    I *src = s.src.get(pairs->num_edges), *dst = s.dst.get(pairs->num_edges);
    double *vec = s.vec.get(3 * pairs->num_edges);
    graph.num_edges = eqcalc_select(pairs->num_local, pairs->num_edges, pairs->edge_src,
                                    pairs->edge_dst, shifts, positions, cutoff, src, dst, vec,
                                    &place);
    if (graph.num_edges < 0) throw std::runtime_error("pairs refer to atoms that are not there");
    graph.edge_src = src;
    graph.edge_dst = dst;
    graph.edge_vec = vec;
    const double *v = vec + 3 * place;
    *nearest = place < 0 ? cutoff : root(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    if (forces) s.gradient.get(3 * graph.num_edges + 1);
  } catch (const std::bad_alloc &) {
    failed(std::runtime_error("out of memory: use fewer atoms per process"), error, size);
    return EQCALC_OUT_OF_MEMORY;
  } catch (const std::exception &e) {
    return failed(e, error, size);
  }
  double *gradient = forces ? s.gradient.data() : nullptr;
  const int result =
      eqcalc_evaluate(engine, &graph, nullptr, threads, energies, gradient, error, size);
  if (result == 0 && forces)
    eqcalc_forces(graph.num_local, graph.num_edges, graph.edge_src, graph.edge_dst, graph.edge_vec,
                  gradient, forces, virials);
  return result;
}
}
