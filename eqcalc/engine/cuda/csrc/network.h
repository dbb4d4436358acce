// The network on a GPU: the host's side of what ../../csrc/network.h does on a CPU. It knows rows
// and layers by name and the order of the kernels; what these do is generated
// (eqcalc.engine.cuda.source).
//
// Rows that layers hand on, and those that the way back needs, are kept for all atoms. The others
// have room for `chunk` own atoms, and a layer takes so many at a time where memory is short; edges
// by neighbour are listed for each of these chunks.

#pragma once
#include "step.h"
#include "table.h"

#include <cstdio>
#include <map>
#include <memory>

namespace {

class Network {
 public:
  // number, in_turn: as of Device
  Network(const Record &from, int number, bool in_turn) :
      device_(std::string(from.text("driver")), number, in_turn, std::string(from.text("image"))),
      num_species_(from.integer("num_species")), num_y_(from.integer("num_y")),
      atoms_per_block_(from.integer("atoms_per_block")), fades_(from.integer("fades")),
      graphs_(from.integer("graphs")), pool_width_(from.integer("pool_width")),
      num_counts_(from.integer("num_counts")), num_features_(from.integer("num_features"))
  {
    const Device::Use use(device_);
    processors_ = device_.processors();
    for (const char *name :
         {"geometry", "edge_gradients", "own_forces", "neighbour_forces", "virial_sums", "watch",
          "pack", "add_rows", "references", "crowding_gradients", "count_factors", "count_pulls",
          "count_gradients"})
      common_.push_back(device_.kernel(name));
    std::vector<std::string_view> names;
    for (const Record &row : from.records("rows")) {
      names.push_back(row.text("name"));
      rows_.push_back(std::make_unique<Row>(row, device_));
    }
    if (rows_.size() > MOST_ROWS)
      throw std::runtime_error("the network has too many rows for a GPU");
    const auto row = [&](std::string_view name) {
      const auto found = std::find(names.begin(), names.end(), name);
      if (found == names.end()) refuse("row", name);
      return static_cast<int>(found - names.begin());
    };
    for (const Record &layer : from.records("layers"))
      layers_.push_back(std::make_unique<Layer>(layer, device_, row));
    if (from.has("counts")) counts_ = std::make_unique<RadialTable>(from.record("counts"), device_);
    give(weights_, from.array("weights"));
    give(constants_, from.array("constants"));
  }

  ~Network()
  {
    const Device::Use use(device_, std::nothrow);
    if (!use.holds()) return;
    const Waits waits(device_);
    forget_steps();
  }

  // nothing that was queued is left to be done, as after an error
  void settle() const
  {
    const Device::Use use(device_, std::nothrow);
    if (use.holds()) const Waits waits(device_);
  }

  I num_layers() const { return static_cast<I>(layers_.size()); }
  I num_features() const { return num_features_; }
  I width(I layer) const { return rows_[layers_[layer]->features]->width; }
  void limit_memory(I bytes)
  {
    memory_limit_ = bytes;
    device_.spare(bytes == 0);
  }

  I bytes() const
  {
    I sum = pool_.bytes() + dx_[0].bytes() + dx_[1].bytes() + weights_.bytes() + constants_.bytes();
    for (const auto &row : rows_) sum += row->values.bytes() + row->gradients.bytes();
    for (const auto &layer : layers_) sum += layer->radial.bytes();
    for (const auto *b : {&kind_, &edge_species_, &watched_}) sum += b->bytes();
    for (const auto *b : {&vec_, &positions_, &r_, &calm_, &count_pulls_, &energies_, &gradient_,
                          &forces_, &virials_, &virial_sums_, &limits_, &features_})
      sum += b->bytes();
    for (const auto *b : {&u_, &inverse_r_, &told_slope_, &y_, &dy_, &dr_, &factor_, &packed_})
      sum += b->bytes();
    return sum + list_.bytes();
  }

  void place(const eqcalc_graph &graph, const eqcalc_list &list)
  {
    const Device::Use use(device_);
    placed_ = false;
    for (bool again = true; !placed_; again = false) {
      try {
        list_.give(graph, list, num_species_);
        reserve();
        list_.by_neighbour();
        placed_ = true;
      } catch (...) {     // a list before may have had more of something; a smaller one may fit
        give_back();
        if (!again) throw;
      }
    }
  }

  // of the edges of a list that has been placed; vec [edges, 3] Å; features [own, num_features] eV
  // may be null
  void evaluate(const double *vec, const eqcalc_exchange *exchange, double *energies,
                double *gradient, double *features)
  {
    const Device::Use use(device_);
    if (!placed_) throw std::runtime_error("no list of pairs has been given");
    device_.up(vec_.data(), vec, 3 * list_.num_edges * sizeof(double));
    const I numbers = list_.num_local * num_features_;
    if (features) features_.get(numbers);
    run(nullptr, exchange, gradient != nullptr, features != nullptr);
    if (features) device_.down(features, features_.data(), numbers * sizeof(double));
    device_.down(energies, energies_.data(), list_.num_local * sizeof(double));
    if (gradient) device_.down(gradient, gradient_.data(), 3 * list_.num_edges * sizeof(double));
    device_.wait();
  }

  // of atoms of the list at positions [places, 3] Å
  void step(const double *positions, const eqcalc_exchange *exchange,
            const eqcalc_step_results &results)
  {
    const Device::Use use(device_);
    if (!placed_) throw std::runtime_error("no list of pairs has been given");
    const StepShape shape(list_, num_species_, results);
    double *pinned = host_.get(shape.numbers);
    std::copy_n(positions, 3 * list_.num_places, pinned);
    if (shape.watched) std::copy_n(results.limits, shape.squares, pinned + shape.limits);
    start(shape, exchange);
    device_.wait();
    shape.read(pinned, list_, results);
  }

 private:
  enum Place { NEIGHBOURS, KEPT, AS_VALUES, POOL };

  struct Row {
    I width, slot;     // slot: first number of an atom's share of the pool
    Place value_place, gradient_place;
    OnDevice<T> values, gradients;

    Row(const Record &from, const Device &device) :
        width(from.integer("width")), slot(from.integer("slot")),
        value_place(place(from.text("values"))), gradient_place(place(from.text("gradients"))),
        values(device), gradients(device)
    {
    }
    static Place place(std::string_view name)
    {
      return name == "neighbours" ? NEIGHBOURS
          : name == "kept"        ? KEPT
          : name == "as values"   ? AS_VALUES
                                  : POOL;
    }
  };

  struct Kernel {
    CUfunction function;
    int threads;

    Kernel(const Record &from, const Device &device) :
        function(device.kernel(std::string(from.text("name")))),
        threads(static_cast<int>(from.integer("threads")))
    {
    }
  };

  // one that has slices of a radial table in shared memory, and stays
  struct Slices : Kernel {
    int shared;        // bytes
    I least_atoms, least_edges;     // from how many on it is used

    Slices(const Record &from, const Device &device) :
        Kernel(from, device), shared(static_cast<int>(from.integer("shared"))),
        least_atoms(from.integer("least_atoms")), least_edges(from.integer("least_edges"))
    {
      // layers that share a kernel have tables of different lengths
      device.allow_shared(function, static_cast<int>(from.integer("most_shared")));
    }
  };

  // a convolution's kernel: a block of threads for each atom, or slices
  struct Convolution : Kernel {
    std::unique_ptr<Slices> slices;

    Convolution(const Record &from, const Device &device) : Kernel(from, device)
    {
      if (from.has("slices"))
        slices = std::make_unique<Slices>(from.record("slices"), device);
    }
  };

  struct Layer {
    int features, messages;
    Convolution forward, edges, gather;
    Kernel nodes, nodes_back;
    RadialTable radial;
    OnDevice<T> species_features;
    I count;     // of learned numbers of neighbours, or -1

    template <class Number>
    Layer(const Record &from, const Device &device, const Number &row) :
        features(row(from.text("features"))), messages(row(from.text("messages"))),
        forward(from.record("forward"), device), edges(from.record("edges"), device),
        gather(from.record("gather"), device), nodes(from.record("nodes"), device),
        nodes_back(from.record("nodes_back"), device), radial(from.record("radial"), device),
        species_features(device), count(from.has("count") ? from.integer("count") : -1)
    {
      if (from.has("species_features")) give(species_features, from.array("species_features"));
    }
  };

  enum Common {
    GEOMETRY,
    EDGE_GRADIENTS,
    OWN_FORCES,
    NEIGHBOUR_FORCES,
    VIRIAL_SUMS,
    WATCH,
    PACK,
    ADD_ROWS,
    REFERENCES,
    CROWDING,
    COUNT_FACTORS,
    COUNT_PULLS,
    COUNT_GRADIENTS
  };

  Device device_;
  I num_species_, num_y_, atoms_per_block_, fades_, graphs_, pool_width_, num_counts_,
      num_features_;
  I processors_;
  std::vector<CUfunction> common_;
  std::vector<std::unique_ptr<Row>> rows_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::unique_ptr<RadialTable> counts_;     // learned numbers of neighbours
  OnDevice<T> weights_{device_};
  OnDevice<double> constants_{device_};

  I memory_limit_ = 0;     // bytes; 0: what the device has
  bool placed_ = false;
  // steps that have been queued since the device's memory was what it is, and what was recorded
  std::map<StepShape::Key, CUgraphExec> steps_;
  std::int64_t generation_ = 0;
  PairList list_{device_};
  OnDevice<int> kind_{device_}, edge_species_{device_}, watched_{device_};
  OnDevice<double> vec_{device_}, positions_{device_}, r_{device_}, calm_{device_},
      count_pulls_{device_}, energies_{device_}, gradient_{device_}, forces_{device_},
      virials_{device_}, virial_sums_{device_}, limits_{device_}, features_{device_};
  OnDevice<T> u_{device_}, inverse_r_{device_}, told_slope_{device_}, y_{device_}, dy_{device_},
      dr_{device_}, factor_{device_}, pool_{device_}, packed_{device_};
  OnDevice<T> dx_[2] = {OnDevice<T>(device_), OnDevice<T>(device_)};
  Pinned<T> host_rows_{device_};
  Pinned<double> host_{device_};

  // memory of a list, but the list's own and the pool, and of how many numbers it is
  template <class Visit> void of_list(const Visit &visit)
  {
    const I e = list_.capacity, n = list_.num_local, nodes = list_.num_nodes;
    for (OnDevice<double> *numbers : {&vec_, &gradient_}) visit(*numbers, 3 * e);
    visit(r_, e);
    for (OnDevice<int> *numbers : {&kind_, &edge_species_}) visit(*numbers, e);
    for (OnDevice<T> *numbers : {&inverse_r_, &told_slope_, &dr_}) visit(*numbers, e);
    for (OnDevice<T> *numbers : {&y_, &dy_}) visit(*numbers, e * num_y_);
    visit(u_, 3 * e);
    visit(energies_, 2 * n);
    if (fades_) {
      visit(factor_, (1 + num_counts_) * n);
      visit(calm_, 4 * n);
      visit(count_pulls_, num_counts_ * n);
    }
    for (I k = 1; k < num_layers(); k++)
      visit(rows_[layers_[k]->features]->values, nodes * width(k));
    for (OnDevice<T> &dx : dx_) visit(dx, nodes * widest());
    for (const auto &row : rows_) {
      if (row->value_place == KEPT) visit(row->values, n * row->width);
      if (row->gradient_place == KEPT) visit(row->gradients, n * row->width);
    }
    visit(positions_, 3 * list_.num_places);
    visit(forces_, 3 * nodes);
  }

  // what steps take when they need it, besides
  template <class Visit> void of_steps(const Visit &visit)
  {
    visit(virials_, 9 * list_.num_nodes);
    visit(virial_sums_, 9 * StepShape::MOST_SUMS);
    visit(watched_, 2 * list_.num_local);
    visit(limits_, num_species_ * num_species_);
    visit(packed_, list_.num_sent * widest());
  }

  // numbers of an atom that other processes may have
  I widest() const
  {
    I most = 0;
    for (I k = 1; k < num_layers(); k++) most = std::max(most, width(k));
    return most;
  }

  // bytes that all but the pool will have taken
  I needed()
  {
    I sum = bytes() - pool_.bytes() + list_.more_by_neighbour();
    const auto add = [&sum](auto &memory, I count) { sum += memory.more(count); };
    of_list(add);
    of_steps(add);
    return sum;
  }

  // all memory of lists
  void give_back()
  {
    const auto all = [](auto &memory, I) { memory.give_back(); };
    of_list(all);
    of_steps(all);
    pool_.give_back();
    list_.give_back();
  }

  // memory of a list, and how many atoms are worked on at once
  void reserve()
  {
    const I n = list_.num_local, least = std::min(n, LEAST_CHUNK);
    const I each = std::max<I>(1, pool_width_ * static_cast<I>(sizeof(T)));
    if (memory_limit_) {
      const I most = needed() + least * each;
      if (memory_limit_ < most) refuse_limit(most);
    }
    of_list([](auto &memory, I count) { memory.get(count); });
    const I all = needed(), later = all + pool_.bytes() - bytes();
    I left = static_cast<I>(device_.free_bytes()) / 10 * 9 + pool_.bytes() - later;
    if (memory_limit_) left = std::min(left, memory_limit_ - all);
    I chunk = std::clamp<I>(left / each, least, std::max<I>(n, 1));
    if (memory_limit_ && pool_.bytes() > std::min(n, chunk) * each) pool_.give_back();
    while (!pool_.have(std::min(n, chunk) * pool_width_)) {     // others take memory, too
      if (chunk <= least) throw std::bad_alloc();
      chunk = std::max(least, chunk / 2);
    }
    list_.cut(chunk);
  }

  void refuse_limit(I least) const
  {
    char text[240];
    std::snprintf(
        text, sizeof(text),
        "%lld atoms with %lld pairs need at least %.4g GB of the GPU, but memory_limit is "
        "%.4g GB: raise it, or use fewer atoms per process",
        static_cast<long long>(list_.num_local), static_cast<long long>(list_.num_edges),
        1.001e-9 * static_cast<double>(least), 1e-9 * static_cast<double>(memory_limit_));
    throw std::runtime_error(text);
  }

  // queues a step; of a small system the second time, and from then on, as one piece of work
  void start(const StepShape &shape, const eqcalc_exchange *exchange)
  {
    if (generation_ != device_.generation()) forget_steps();
    const bool small = graphs_ && !exchange && list_.chunks.size() == 1 &&
        list_.num_local <= PairList::SMALL;
    const auto found = small ? steps_.find(shape.key(list_)) : steps_.end();
    if (found == steps_.end()) {
      queue_step(shape, exchange);
      if (generation_ != device_.generation()) forget_steps();
      if (small) steps_[shape.key(list_)] = nullptr;
      return;
    }
    if (!found->second) found->second = device_.record([&] { queue_step(shape, nullptr); });
    device_.start(found->second);
  }

  void forget_steps()
  {
    for (const auto &[key, recorded] : steps_) device_.forget(recorded);
    steps_.clear();
    generation_ = device_.generation();
  }

  void queue_step(const StepShape &shape, const eqcalc_exchange *exchange)
  {
    const I n = list_.num_nodes, own = list_.num_local, places = list_.num_places;
    double *pinned = host_.data();
    device_.up(positions_.get(3 * places), pinned, 3 * places * sizeof(double));
    if (shape.watched)
      device_.up(limits_.get(shape.squares), pinned + shape.limits, shape.squares * sizeof(double));
    run(positions_.data(), exchange, shape.forces, false);
    Task t = task();
    if (shape.watched) {
      t.limits = limits_.data();
      t.numbers = watched_.get(2 * own);
      t.near_edges = t.numbers + own;
      flat(WATCH, t, own);
      device_.down(pinned + shape.found, t.numbers, 2 * own * sizeof(int));
    }
    if (shape.forces) {
      t.forces = forces_.get(3 * n);
      t.virials = shape.virials || shape.sums ? virials_.get(9 * n) : nullptr;
      flat(OWN_FORCES, t, n);
      for (const Chunk &chunk : list_.chunks) {
        by_neighbour_of(t, chunk);
        flat(NEIGHBOUR_FORCES, t, t.end);
      }
      t.begin = 0;
      device_.down(pinned + shape.at_forces, t.forces, 3 * n * sizeof(double));
      if (shape.virials) device_.down(pinned + shape.at_virials, t.virials, 9 * n * sizeof(double));
      if (shape.sums) {
        t.virial_sums = virial_sums_.get(9 * StepShape::MOST_SUMS);
        device_.launch(common_[VIRIAL_SUMS], shape.sums, 128, t);
        device_.down(pinned + shape.at_sums, t.virial_sums, 9 * shape.sums * sizeof(double));
      }
    }
    device_.down(pinned + shape.energies, energies_.data(), 2 * own * sizeof(double));
  }

  // own atoms that are worked on at once at least
  static constexpr I LEAST_CHUNK = 256;

  Task task() const
  {
    Task t{};
    list_.fill(t);
    t.vec = vec_.data();
    t.r = r_.data();
    t.kind = kind_.data();
    t.edge_species = edge_species_.data();
    t.u = u_.data();
    t.inverse_r = inverse_r_.data();
    t.told_slope = told_slope_.data();
    t.y = y_.data();
    t.dy = dy_.data();
    t.dr = dr_.data();
    t.factor = factor_.data();
    t.calm = calm_.data();
    if (fades_) {
      t.calm_pull = calm_.data() + list_.num_local;
      t.calm_slope = calm_.data() + 2 * list_.num_local;
    }
    t.count_pulls = count_pulls_.data();
    t.weights = weights_.data();
    t.constants = constants_.data();
    t.energies = energies_.data();
    t.num_features = static_cast<int>(num_features_);
    t.nearest = energies_.data() + list_.num_local;
    t.gradient = gradient_.data();
    return t;
  }

  // a thread for each of n
  void flat(Common kernel, Task &t, I n)
  {
    device_.launch(common_[kernel], (std::max<I>(n - t.begin, 0) + 127) / 128, 128, t);
  }

  static void by_neighbour_of(Task &t, const Chunk &chunk)
  {
    t.begin = static_cast<int>(chunk.first_row);
    t.end = static_cast<int>(chunk.end_row);
  }

  // a task of layer k on own atoms of a chunk; back: on the way back, gradients of the features that
  // its steps make are in dx_[above]
  Task task_of(I k, const Chunk &chunk, bool back, int above)
  {
    Task t = task();
    const Layer &layer = *layers_[k];
    t.begin = static_cast<int>(chunk.begin);
    t.end = static_cast<int>(chunk.end);
    layer.radial.fill(t);
    if (layer.count >= 0) {     // messages have a factor of their own, and that a pull
      t.factor += (1 + layer.count) * list_.num_local;
      t.calm_pull = t.count_pulls + layer.count * list_.num_local;
    }
    t.sources = k == 0 ? edge_species_.data() : t.src;
    t.x = k == 0 ? layer.species_features.data() : rows_[layer.features]->values.data();
    for (std::size_t r = 0; r < rows_.size(); r++) {
      const Row &row = *rows_[r];
      // as if the pool began with the first of all atoms
      T *pool = pool_.data() + (chunk.end - chunk.begin) * row.slot - chunk.begin * row.width;
      t.values[r] = row.value_place == POOL ? pool : row.values.data();
      switch (row.gradient_place) {
        case NEIGHBOURS:
          t.gradients[r] = dx_[above].data();
          break;
        case KEPT:
          t.gradients[r] = row.gradients.data();
          break;
        case AS_VALUES:
          t.gradients[r] = t.values[r];
          break;
        case POOL:
          t.gradients[r] = pool;
      }
    }
    t.messages = back ? t.gradients[layer.messages] : t.values[layer.messages];
    return t;
  }

  void run(const double *positions, const eqcalc_exchange *exchange, bool back, bool features)
  {
    Task t = task();
    t.positions = positions;
    flat(GEOMETRY, t, list_.capacity);
    flat(REFERENCES, t, list_.num_local);
    if (counts_) {
      counts_->fill(t);
      flat(COUNT_FACTORS, t, list_.num_local);
    }
    const auto inner = list_.chunks.begin() + list_.num_inner_chunks(), last = list_.chunks.end();
    for (I k = 0; k < num_layers(); k++) {
      const bool asks = k > 0 && exchange;
      if (asks) begin_sending(k);
      std::for_each(list_.chunks.begin(), inner,
                    [&](const Chunk &chunk) { forward(k, chunk, features); });
      if (asks) end_sending(k, *exchange);
      std::for_each(inner, last, [&](const Chunk &chunk) { forward(k, chunk, features); });
    }
    // a process without edges has no gradient to give, but the others wait for its exchanges
    if (!back && !exchange) return;
    for (I k = num_layers() - 1; k >= 0; k--) {
      const bool asks = k > 0 && exchange;
      if (k > 0) device_.clear(dx_[k % 2].data(), list_.num_nodes * width(k) * sizeof(T));
      std::for_each(inner, last, [&](const Chunk &chunk) { backward(k, chunk); });
      if (asks) begin_returning(k);
      std::for_each(list_.chunks.begin(), inner, [&](const Chunk &chunk) { backward(k, chunk); });
      if (asks) end_returning(k, *exchange);
    }
    if (counts_) {
      flat(COUNT_PULLS, t, list_.num_local);
      flat(COUNT_GRADIENTS, t, list_.capacity);
    }
    flat(EDGE_GRADIENTS, t, list_.capacity);
    if (fades_) flat(CROWDING, t, list_.capacity);
  }

  void forward(I k, const Chunk &chunk, bool features)
  {
    Task t = task_of(k, chunk, false, 0);
    if (features) t.features = features_.data();
    const Layer &layer = *layers_[k];
    convolve(layer.forward, chunk, t);
    nodes(layer.nodes, chunk, t);
  }

  void backward(I k, const Chunk &chunk)
  {
    const int here = static_cast<int>(k % 2);
    Task t = task_of(k, chunk, true, 1 - here);
    t.dx = dx_[here].data();
    const Layer &layer = *layers_[k];
    nodes(layer.nodes_back, chunk, t);
    convolve(layer.edges, chunk, t);
    if (k == 0) return;
    by_neighbour_of(t, chunk);
    convolve(layer.gather, chunk, t);
  }

  // of the chunk's edges; t.begin to t.end: atoms whose sums are made
  void convolve(const Convolution &kernel, const Chunk &chunk, Task &t)
  {
    const I atoms = t.end - t.begin;
    // by a number that does not change as long as a recorded step serves
    const I edges = list_.capacity * (chunk.end - chunk.begin) / std::max<I>(list_.num_local, 1);
    const Slices *slices = kernel.slices.get();
    if (!slices || atoms < slices->least_atoms || edges < slices->least_edges) {
      device_.launch(kernel.function, atoms, kernel.threads, t);
      return;
    }
    const I warps = slices->threads / 32, blocks = std::min(processors_, (atoms + warps - 1) / warps);
    device_.launch(slices->function, blocks, slices->threads, t, slices->shared);
  }

  void nodes(const Kernel &kernel, const Chunk &chunk, Task &t)
  {
    const I blocks = (chunk.end - chunk.begin + atoms_per_block_ - 1) / atoms_per_block_;
    device_.launch(kernel.function, blocks, kernel.threads, t);
  }

  // own rows that other processes have as ghosts, packed
  Task packing(T *rows, I width)
  {
    Task t = task();
    t.num_packed = static_cast<int>(list_.num_sent);
    t.packed_width = static_cast<int>(width);
    t.packed = packed_.get(list_.num_sent * width);
    t.unpacked = rows;
    return t;
  }

  // Own atoms' features to the processes that have them as ghosts, and gradients of ghosts' features
  // to those of their owners. Between the beginning and the end, atoms are worked on that have no
  // ghosts for neighbours, while the processes talk.
  void begin_sending(I k)
  {
    Task t = packing(features(k), width(k));
    flat(PACK, t, list_.num_sent * width(k));
    device_.down(exchanged(k), t.packed, list_.num_sent * width(k) * sizeof(T));
    device_.mark();
  }

  void end_sending(I k, const eqcalc_exchange &exchange)
  {
    const I w = width(k), own = list_.num_local;
    T *host = exchanged(k);
    device_.wait_for_mark();
    exchange.forward(exchange.context, host, static_cast<int>(w));
    device_.up(features(k) + own * w, host + list_.num_sent * w,
               (list_.num_nodes - own) * w * sizeof(T));
  }

  void begin_returning(I k)
  {
    const I w = width(k), own = list_.num_local;
    device_.down(exchanged(k) + list_.num_sent * w, dx_[k % 2].data() + own * w,
                 (list_.num_nodes - own) * w * sizeof(T));
    device_.mark();
  }

  void end_returning(I k, const eqcalc_exchange &exchange)
  {
    const I w = width(k), sent = list_.num_sent, ghosts = list_.num_nodes - list_.num_local;
    T *host = exchanged(k);
    device_.wait_for_mark();
    std::fill_n(host, sent * w, T(0));
    std::fill_n(host + (sent + ghosts) * w, (list_.num_rows - list_.num_nodes) * w, T(0));
    exchange.reverse(exchange.context, host, static_cast<int>(w));
    Task t = packing(dx_[k % 2].data(), w);
    device_.up(t.packed, host, sent * w * sizeof(T));
    flat(ADD_ROWS, t, sent * w);
  }

  T *features(I k) { return rows_[layers_[k]->features]->values.data(); }

  // rows of an exchange, in pinned memory: sent ones, then ghosts
  T *exchanged(I k) { return host_rows_.get((list_.num_sent + list_.num_ghosts()) * width(k)); }
};

}     // namespace
