// The network on a GPU: the host's side of what ../../csrc/network.h does on a CPU. It knows rows
// and layers by name and the order of the kernels; what these do is generated
// (eqcalc.engine.cuda.source).
//
// Rows that layers hand on, and those that the way back needs, are kept for all atoms. The others
// have room for `chunk` own atoms, and a layer takes so many at a time where memory is short; edges
// by neighbour are listed for each of these chunks.

#include <limits>
#include <memory>

namespace {

class Network {
 public:
  // number, in_turn: as of Device
  Network(const Record &from, int number, bool in_turn) :
      device_(from.text("driver"), number, in_turn, from.text("image")),
      num_species_(from.integer("num_species")), num_y_(from.integer("num_y")),
      atoms_per_block_(from.integer("atoms_per_block")), fades_(from.integer("fades")),
      pool_width_(from.integer("pool_width")), num_features_(from.integer("num_features"))
  {
    const Device::Use use(device_);
    for (const char *name : {"geometry", "edge_gradients", "own_forces", "neighbour_forces",
                             "references", "crowding_gradients"})
      common_.push_back(device_.kernel(name));
    std::vector<std::string> names;
    for (const Record &row : from.records("rows")) {
      names.push_back(row.text("name"));
      rows_.push_back(std::make_unique<Row>(row, device_));
    }
    if (rows_.size() > MOST_ROWS) throw std::runtime_error("the network has too many rows for a GPU");
    const auto row = [&](const std::string &name) {
      const auto found = std::find(names.begin(), names.end(), name);
      if (found == names.end())
        throw std::runtime_error("the network's description has no row '" + name + "'");
      return static_cast<int>(found - names.begin());
    };
    for (const Record &layer : from.records("layers"))
      layers_.push_back(std::make_unique<Layer>(layer, device_, row));
    give(weights_, from.array("weights"));
    give(constants_, from.array("constants"));
  }

  ~Network() { settle(); }

  // nothing that was queued is left to be done, as after an error
  void settle() const
  {
    const Device::Use use(device_);
    const Waits waits(device_);
  }

  I num_layers() const { return static_cast<I>(layers_.size()); }
  I num_features() const { return num_features_; }
  I width(I layer) const { return rows_[layers_[layer]->features]->width; }
  void limit_memory(I bytes) { memory_limit_ = bytes; }

  I bytes() const
  {
    I sum = pool_.bytes() + dx_[0].bytes() + dx_[1].bytes() + weights_.bytes() + constants_.bytes();
    for (const auto &row : rows_) sum += row->values.bytes() + row->gradients.bytes();
    for (const auto &layer : layers_) sum += layer->table.bytes();
    for (const auto *b : {&species_, &first_edge_, &src_, &dst_, &row_, &row_first_, &row_edge_,
                          &kind_, &edge_species_})
      sum += b->bytes();
    for (const auto *b : {&vec_, &shifts_, &positions_, &r_, &calm_, &energies_, &gradient_, &forces_,
                          &virials_, &features_})
      sum += b->bytes();
    for (const auto *b : {&u_, &inverse_r_, &told_slope_, &y_, &dy_, &dr_, &factor_}) sum += b->bytes();
    return sum + host_rows_.bytes() + host_.bytes();
  }

  // a list of pairs, within the cutoff or more; shifts [edges, 3] Å as of Task, or null where
  // vectors will be given
  void place(const eqcalc_graph &graph, const double *shifts)
  {
    const Device::Use use(device_);
    placed_ = false;
    check(graph);
    num_local_ = graph.num_local;
    num_nodes_ = graph.num_nodes;
    num_rows_ = graph.num_rows;
    num_edges_ = graph.num_edges;
    const std::vector<int> species(graph.species, graph.species + num_nodes_);
    const std::vector<int> src(graph.edge_src, graph.edge_src + num_edges_);
    const std::vector<int> dst(graph.edge_dst, graph.edge_dst + num_edges_);
    std::vector<int> first(num_local_ + 1, 0);
    for (const int i : dst) first[i + 1]++;
    for (I i = 0; i < num_local_; i++) first[i + 1] += first[i];
    const Waits waits(device_);
    species_.give(species);
    src_.give(src);
    dst_.give(dst);
    first_edge_.give(first);
    if (shifts) device_.up(shifts_.get(3 * num_edges_), shifts, 3 * num_edges_ * sizeof(double));
    reserve();
    by_neighbour(first, src);
    device_.wait();
    placed_ = true;
  }

  

  // of the edges of a list that has been placed; vec [edges, 3] Å; features [own, num_features] eV
  // may be null
  void evaluate(const double *vec, const eqcalc_exchange *exchange, double *energies,
                double *gradient, double *features)
  {
    const Device::Use use(device_);
    if (!placed_) throw std::runtime_error("no list of pairs has been given");
    device_.up(vec_.data(), vec, 3 * num_edges_ * sizeof(double));
    const I numbers = num_local_ * num_features_;
    if (features) features_.get(numbers);
    run(nullptr, exchange, gradient != nullptr, features != nullptr);
    if (features) device_.down(features, features_.data(), numbers * sizeof(double));
    device_.down(energies, energies_.data(), num_local_ * sizeof(double));
    if (gradient)
      device_.down(gradient, gradient_.data(), 3 * num_edges_ * sizeof(double));
    device_.wait();
  }

  // of atoms at positions [nodes, 3] Å; forces [nodes, 3] and virials [nodes, 9] may be null, both
  // or the latter; nearest: the shortest distance within the cutoff, else that or more
  void step(const double *positions, const eqcalc_exchange *exchange, double *energies,
            double *forces, double *virials, double *nearest)
  {
    const Device::Use use(device_);
    if (!placed_) throw std::runtime_error("no list of pairs has been given");
    const I n = num_nodes_;
    double *pinned = host_.get(15 * n + 2 * num_local_);
    std::copy_n(positions, 3 * n, pinned);
    device_.up(positions_.get(3 * n), pinned, 3 * n * sizeof(double));
    run(positions_.data(), exchange, forces != nullptr, false);
    double *e = pinned + 3 * n, *f = e + 2 * num_local_, *w = f + 3 * n;
    if (forces) {
      Task t = task();
      t.forces = forces_.get(3 * n);
      t.virials = virials ? virials_.get(9 * n) : nullptr;
      flat(OWN_FORCES, t, n);
      for (const Chunk &chunk : chunks_) {
        by_neighbour_of(t, chunk);
        flat(NEIGHBOUR_FORCES, t, t.end);
      }
      device_.down(f, t.forces, 3 * n * sizeof(double));
      if (virials) device_.down(w, t.virials, 9 * n * sizeof(double));
    }
    device_.down(e, energies_.data(), 2 * num_local_ * sizeof(double));
    device_.wait();
    std::copy_n(e, num_local_, energies);
    *nearest = std::numeric_limits<double>::infinity();
    for (I i = 0; i < num_local_; i++) *nearest = std::min(*nearest, e[num_local_ + i]);
    if (forces) std::copy_n(f, 3 * n, forces);
    if (virials) std::copy_n(w, 9 * n, virials);
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
    static Place place(const std::string &name)
    {
      return name == "neighbours" ? NEIGHBOURS : name == "kept" ? KEPT :
          name == "as values" ? AS_VALUES : POOL;
    }
  };

  struct Kernel {
    CUfunction function;
    int threads;

    Kernel(const Record &from, const Device &device) :
        function(device.kernel(from.text("name"))), threads(static_cast<int>(from.integer("threads")))
    {
    }
  };

  struct Layer {
    int features, messages;
    Kernel forward, edges, gather, nodes, nodes_back;
    OnDevice<T> table, species_features;
    OnDevice<Segment> segments;
    int num_segments, interval_stride, kind_stride;

    template <class Number>
    Layer(const Record &from, const Device &device, const Number &row) :
        features(row(from.text("features"))), messages(row(from.text("messages"))),
        forward(from.record("forward"), device), edges(from.record("edges"), device),
        gather(from.record("gather"), device), nodes(from.record("nodes"), device),
        nodes_back(from.record("nodes_back"), device), table(device), species_features(device),
        segments(device), interval_stride(static_cast<int>(from.integer("interval_stride"))),
        kind_stride(static_cast<int>(from.integer("kind_stride")))
    {
      std::vector<Segment> list;
      int intervals = 0;
      const double end = from.number("cutoff");
      for (const Record &segment : from.records("segments")) {
        const int count = static_cast<int>(segment.integer("intervals"));
        list.push_back({segment.number("start"), 0.0, intervals, count});
        intervals += count;
      }
      for (std::size_t n = 0; n < list.size(); n++)
        list[n].per_length =
            list[n].count / ((n + 1 < list.size() ? list[n + 1].start : end) - list[n].start);
      num_segments = static_cast<int>(list.size());
      segments.give(list);
      segments.wait();
      give(table, from.array("table"));
      if (from.has("species_features")) give(species_features, from.array("species_features"));
    }
  };

  // own atoms that are worked on at once, and rows of their edges by neighbour
  struct Chunk {
    I begin, end, first_row, end_row;
  };

  enum Common { GEOMETRY, EDGE_GRADIENTS, OWN_FORCES, NEIGHBOUR_FORCES, REFERENCES, CROWDING };

  Device device_;
  I num_species_, num_y_, atoms_per_block_, fades_, pool_width_, num_features_;
  std::vector<CUfunction> common_;
  std::vector<std::unique_ptr<Row>> rows_;
  std::vector<std::unique_ptr<Layer>> layers_;
  OnDevice<T> weights_{device_};
  OnDevice<double> constants_{device_};

  I memory_limit_ = 0;     // bytes; 0: what the device has
  I num_local_ = 0, num_nodes_ = 0, num_rows_ = 0, num_edges_ = 0;
  bool placed_ = false;
  std::vector<Chunk> chunks_;
  OnDevice<int> species_{device_}, first_edge_{device_}, src_{device_}, dst_{device_}, row_{device_},
      row_first_{device_}, row_edge_{device_}, kind_{device_}, edge_species_{device_};
  OnDevice<double> vec_{device_}, shifts_{device_}, positions_{device_}, r_{device_}, calm_{device_},
      energies_{device_}, gradient_{device_}, forces_{device_}, virials_{device_},
      features_{device_};
  OnDevice<T> u_{device_}, inverse_r_{device_}, told_slope_{device_}, y_{device_}, dy_{device_},
      dr_{device_}, factor_{device_}, pool_{device_};
  OnDevice<T> dx_[2] = {OnDevice<T>(device_), OnDevice<T>(device_)};
  Pinned<T> host_rows_{device_};
  Pinned<double> host_{device_};

  template <class U> static void give(OnDevice<U> &to, const Array &from)
  {
    std::vector<U> values(from.size());
    from.copy(values.data());
    to.give(values);
    to.wait();
  }

  void check(const eqcalc_graph &graph) const
  {
    check_graph(graph, num_species_);
    if (std::max(graph.num_rows, graph.num_edges) > MOST)
      throw std::runtime_error("there are too many atoms or edges for one GPU: use more processes");
  }

  static constexpr I MOST = 2'000'000'000;

  // all memory of a list but that of its edges by neighbour, and how many atoms are worked on at once
  void reserve()
  {
    const I e = num_edges_, n = num_local_;
    vec_.get(3 * e);
    r_.get(e);
    kind_.get(e);
    edge_species_.get(e);
    u_.get(3 * e);
    inverse_r_.get(e);
    told_slope_.get(e);
    y_.get(e * num_y_);
    dy_.get(e * num_y_);
    dr_.get(e);
    gradient_.get(3 * e);
    energies_.get(2 * n);
    if (fades_) {
      factor_.get(n);
      calm_.get(4 * n);
    }
    I widest = 0;
    for (I k = 0; k < num_layers(); k++) {
      Row &row = *rows_[layers_[k]->features];
      if (k > 0) row.values.get(num_nodes_ * row.width);
      if (k > 0) widest = std::max(widest, row.width);
    }
    for (OnDevice<T> &dx : dx_) dx.get(num_nodes_ * widest);
    for (const auto &row : rows_) {
      if (row->value_place == KEPT) row->values.get(n * row->width);
      if (row->gradient_place == KEPT) row->gradients.get(n * row->width);
    }
    const I each = std::max<I>(1, pool_width_ * static_cast<I>(sizeof(T)));
    I left = static_cast<I>(device_.free_bytes()) / 10 * 9 + pool_.bytes();
    if (memory_limit_) left = std::min(left, memory_limit_ - bytes() + pool_.bytes());
    const I chunk = std::clamp<I>(left / each, std::min(n, LEAST_CHUNK), std::max<I>(n, 1));
    pool_.get(std::min(n, chunk) * pool_width_);
    chunks_.clear();
    for (I begin = 0; begin < n; begin += chunk)
      chunks_.push_back({begin, std::min(n, begin + chunk), 0, 0});
  }

  // own atoms that are worked on at once at least
  static constexpr I LEAST_CHUNK = 256;

  // edges of each chunk by neighbour, in their order
  void by_neighbour(const std::vector<int> &first, const std::vector<int> &src)
  {
    std::vector<int> rows, row_first, row_edge(num_edges_), count(num_nodes_, 0), at(num_nodes_);
    for (Chunk &chunk : chunks_) {
      chunk.first_row = static_cast<I>(rows.size());
      const int begin = first[chunk.begin], end = first[chunk.end];
      for (int e = begin; e < end; e++)
        if (count[src[e]]++ == 0) rows.push_back(src[e]);
      std::sort(rows.begin() + chunk.first_row, rows.end());
      int next = begin;
      for (std::size_t n = chunk.first_row; n < rows.size(); n++) {
        row_first.push_back(next);
        at[rows[n]] = next;
        next += count[rows[n]];
        count[rows[n]] = 0;
      }
      for (int e = begin; e < end; e++) row_edge[at[src[e]]++] = e;
      chunk.end_row = static_cast<I>(rows.size());
    }
    row_first.push_back(static_cast<int>(num_edges_));
    const Waits waits(device_);
    row_.give(rows);
    row_first_.give(row_first);
    row_edge_.give(row_edge);
    device_.wait();
  }

  Task task() const
  {
    Task t{};
    t.num_local = static_cast<int>(num_local_);
    t.num_nodes = static_cast<int>(num_nodes_);
    t.num_edges = static_cast<int>(num_edges_);
    t.species = species_.data();
    t.first_edge = first_edge_.data();
    t.src = src_.data();
    t.dst = dst_.data();
    t.shifts = shifts_.data();
    t.rows = row_.data();
    t.row_first = row_first_.data();
    t.row_edge = row_edge_.data();
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
      t.calm_pull = calm_.data() + num_local_;
      t.calm_slope = calm_.data() + 2 * num_local_;
    }
    t.weights = weights_.data();
    t.constants = constants_.data();
    t.energies = energies_.data();
    t.num_features = static_cast<int>(num_features_);
    t.nearest = energies_.data() + num_local_;
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
    t.table = layer.table.data();
    t.segments = layer.segments.data();
    t.num_segments = layer.num_segments;
    t.interval_stride = layer.interval_stride;
    t.kind_stride = layer.kind_stride;
    t.sources = k == 0 ? edge_species_.data() : src_.data();
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
    flat(GEOMETRY, t, num_edges_);
    flat(REFERENCES, t, num_local_);
    for (I k = 0; k < num_layers(); k++) {
      if (k > 0 && exchange) send_features(k, *exchange);
      for (const Chunk &chunk : chunks_) {
        Task mine = task_of(k, chunk, false, 0);
        if (features) mine.features = features_.data();
        device_.launch(layers_[k]->forward.function, chunk.end - chunk.begin,
                       layers_[k]->forward.threads, mine);
        nodes(layers_[k]->nodes, chunk, mine);
      }
    }
    // a process without edges has no gradient to give, but the others wait for its exchanges
    if (!back && !exchange) return;
    for (I k = num_layers() - 1; k >= 0; k--) {
      const int here = static_cast<int>(k % 2);
      T *dx = dx_[here].data();
      if (k > 0) device_.clear(dx, num_nodes_ * width(k) * sizeof(T));
      for (const Chunk &chunk : chunks_) {
        Task mine = task_of(k, chunk, true, 1 - here);
        mine.dx = dx;
        nodes(layers_[k]->nodes_back, chunk, mine);
        device_.launch(layers_[k]->edges.function, chunk.end - chunk.begin,
                       layers_[k]->edges.threads, mine);
        if (k == 0) continue;
        by_neighbour_of(mine, chunk);
        device_.launch(layers_[k]->gather.function, chunk.end_row - chunk.first_row,
                       layers_[k]->gather.threads, mine);
      }
      if (k > 0 && exchange) return_gradients(k, dx, *exchange);
    }
    flat(EDGE_GRADIENTS, t, num_edges_);
    if (fades_) flat(CROWDING, t, num_edges_);
  }

  void nodes(const Kernel &kernel, const Chunk &chunk, Task &t)
  {
    const I blocks = (chunk.end - chunk.begin + atoms_per_block_ - 1) / atoms_per_block_;
    device_.launch(kernel.function, blocks, kernel.threads, t);
  }

  // own atoms' features to the processes that have them as ghosts
  void send_features(I k, const eqcalc_exchange &exchange)
  {
    const I w = width(k);
    T *x = rows_[layers_[k]->features]->values.data(), *host = host_rows_.get(num_rows_ * w);
    device_.down(host, x, num_local_ * w * sizeof(T));
    device_.wait();
    exchange.forward(exchange.context, host, static_cast<int>(w));
    device_.up(x + num_local_ * w, host + num_local_ * w, (num_nodes_ - num_local_) * w * sizeof(T));
  }

  // gradients of ghosts' features are added to those of their owners
  void return_gradients(I k, T *dx, const eqcalc_exchange &exchange)
  {
    const I w = width(k);
    T *host = host_rows_.get(num_rows_ * w);
    device_.down(host, dx, num_nodes_ * w * sizeof(T));
    device_.wait();
    std::fill_n(host + num_nodes_ * w, (num_rows_ - num_nodes_) * w, T(0));
    exchange.reverse(exchange.context, host, static_cast<int>(w));
    device_.up(dx, host, num_local_ * w * sizeof(T));
  }
};

}    // namespace
